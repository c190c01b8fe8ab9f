# SPDX-License-Identifier: Apache-2.0
"""Two systems side by side: their replies to the same prompts, and which of the two a judge prefers how often.

prompt, A's reply, B's reply ─► shuffled: first, second ─► judge ─► A's win, tie or loss ─► win rate and its interval

The method is that of the Gemma report. B's reply stands first for one half of the prompts, drawn by a seed, so that a
judge's liking for a place cancels out. With `both_orders` every pair is asked about twice, the second time the other
way round, and a pair whose verdicts differ is a tie (Zheng et al. 2023): dearer, and a liking for a place makes ties
instead of noise. Equal replies are a tie that nobody is asked about. A pair with a verdict that cannot be read is
counted, and is in no share.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import Literal

from gemmary.base.errors import InputError
from gemmary.evaluate.intervals import wilson
from gemmary.evaluate.judge import RUBRIC, Judge, choice, question

Verdict = Literal["win", "tie", "loss", "unreadable"]  # from A's side
_BATCH = 16  # prompts between two ticks


@dataclass(frozen=True, kw_only=True)
class Rating:
    """What the judge said about a pair once; it is flipped when B's reply stood first.

    >>> Rating(is_flipped=True, verdict="loss", text="The first is right.\\nVerdict: 1").verdict
    'loss'
    """

    is_flipped: bool
    verdict: Verdict
    text: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt, the two replies, and how they were rated: not at all when they are equal.

    >>> Pair(prompt="Say hi.", reply_a="Hi.", reply_b="Hi.").verdict
    'tie'
    """

    prompt: str
    reply_a: str
    reply_b: str
    ratings: tuple[Rating, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """That of all ratings: unreadable if one of them is, else a tie if they differ."""
        found = {rating.verdict for rating in self.ratings}
        if "unreadable" in found:
            return "unreadable"
        return found.pop() if len(found) == 1 else "tie"


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """What came of a comparison, from A's side.

    >>> pair = Pair(prompt="Say hi.", reply_a="Hi.", reply_b="Hi.")
    >>> result = SideBySide(pairs=(pair, pair))
    >>> result.count("tie"), result.shares, result.win_rate, result.first_share
    (2, (0.0, 1.0, 0.0), 0.5, None)
    >>> [round(end, 2) for end in result.interval]
    [0.09, 0.91]
    """

    pairs: tuple[Pair, ...]

    def count(self, verdict: Verdict) -> int:
        """How many pairs have this verdict."""
        return sum(pair.verdict == verdict for pair in self.pairs)

    @property
    def shares(self) -> tuple[float, float, float] | None:
        """The shares of wins, ties and losses in what could be read; None where nothing could."""
        wins, ties, losses = self.count("win"), self.count("tie"), self.count("loss")
        readable = wins + ties + losses
        return (wins / readable, ties / readable, losses / readable) if readable else None

    @property
    def win_rate(self) -> float | None:
        """The share of wins, every tie being half of one; None where no verdict could be read."""
        shares = self.shares
        return shares[0] + shares[1] / 2 if shares else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the win rate, by Wilson's score; all of 0 to 1 where no verdict could be read.

        Unlike the bootstrap's it needs no seed, and does not shrink to a point when few pairs all end alike. It takes
        ties for wins and losses, whose variance is the larger one by a quarter of their share: with many ties it is
        wider than it need be.
        """
        readable, rate = len(self.pairs) - self.count("unreadable"), self.win_rate
        if rate is None:
            return 0.0, 1.0
        return wilson(rate, readable)

    @property
    def first_share(self) -> float | None:
        """The share of the judge's preferences that are for the reply that stood first: one half, if it is fair."""
        preferred = [rating for pair in self.pairs for rating in pair.ratings if rating.verdict in ("win", "loss")]
        first = sum((rating.verdict == "win") != rating.is_flipped for rating in preferred)
        return first / len(preferred) if preferred else None


def compare(
    prompts: Sequence[str],
    replies_a: Sequence[str],
    replies_b: Sequence[str],
    judge: Judge,
    *,
    rubric: str = RUBRIC,
    seed: int = 0,
    both_orders: bool = False,
    tick: Callable[[int], None] = lambda count: None,
) -> SideBySide:
    """Have the replies of A and B to the same prompts judged; `tick` is told how many more prompts are done.

    Raises InputError for no prompts, for replies that are not as many, and for a judge that does not answer as many
    questions as it is asked; what the judge itself raises is passed on.

    >>> import re
    >>> def brief(questions):  # a judge that likes few words
    ...     replies = [re.findall(r"<reply .>(.*?)</", each, re.DOTALL) for each in questions]
    ...     return [f"Verdict: {1 if len(first) < len(second) else 2}" for first, second in replies]
    >>> result = compare(["2 + 2?", "3 + 3?"], ["4", "6"], ["That is 4.", "6"], brief)
    >>> [pair.verdict for pair in result.pairs], result.win_rate
    (['win', 'tie'], 0.75)
    """
    if not prompts or not len(prompts) == len(replies_a) == len(replies_b):
        came = f"{len(prompts)} prompts with {len(replies_a)} and {len(replies_b)} replies"
        raise InputError(f"expected prompts with a reply of A and one of B to each, got {came}: give as many of each")
    flips = [at % 2 == 1 for at in range(len(prompts))]
    Random(seed).shuffle(flips)
    todo: list[tuple[Pair, list[bool]]] = []
    for prompt, a, b, flip in zip(prompts, replies_a, replies_b, flips, strict=True):
        orders = [] if a == b else [flip, not flip] if both_orders else [flip]
        todo.append((Pair(prompt=prompt, reply_a=a, reply_b=b), orders))
    done: list[Pair] = []
    for at in range(0, len(todo), _BATCH):
        done += _judged(todo[at : at + _BATCH], judge, rubric)
        tick(len(done) - at)
    return SideBySide(pairs=tuple(done))


def _judged(todo: Sequence[tuple[Pair, list[bool]]], judge: Judge, rubric: str) -> list[Pair]:
    """The pairs with a rating for each order that they are to be shown in."""
    asked = [(pair, is_flipped) for pair, orders in todo for is_flipped in orders]
    said = judge([_question(pair, is_flipped, rubric) for pair, is_flipped in asked]) if asked else []
    if len(said) != len(asked):
        raise InputError(f"expected {len(asked)} answers of the judge, got {len(said)}: return one for each question")
    ratings = iter([_rating(text, is_flipped) for (_, is_flipped), text in zip(asked, said, strict=True)])
    return [replace(pair, ratings=tuple(islice(ratings, len(orders)))) for pair, orders in todo]


def _question(pair: Pair, is_flipped: bool, rubric: str) -> str:
    first, second = (pair.reply_b, pair.reply_a) if is_flipped else (pair.reply_a, pair.reply_b)
    return question(pair.prompt, first, second, rubric)


def _rating(text: str, is_flipped: bool) -> Rating:
    of_a: dict[str, Verdict] = {"first": "loss", "second": "win"} if is_flipped else {"first": "win", "second": "loss"}
    of_a |= {"tie": "tie", "unreadable": "unreadable"}
    return Rating(is_flipped=is_flipped, verdict=of_a[choice(text)], text=text)
