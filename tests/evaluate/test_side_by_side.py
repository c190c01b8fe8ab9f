# SPDX-License-Identifier: Apache-2.0
"""Replies are shuffled before they are judged, a judge's liking for a place cancels out, and the rates add up."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

import gemmary
from gemmary.base.errors import GemmaryError, InputError
from gemmary.evaluate.judge import generator_judge
from gemmary.evaluate.side_by_side import Pair, Rating, SideBySide, Verdict, compare


class Judge:
    """Says "Verdict: " and what a function of the two replies returns; keeps what it was asked, call by call."""

    def __init__(self, decide: object) -> None:
        self.decide = decide
        self.calls: list[list[tuple[str, str]]] = []

    def __call__(self, questions: Sequence[str]) -> list[str]:
        found = [re.findall(r"<reply \d>\n(.*?)\n</reply \d>", each, re.DOTALL) for each in questions]
        self.calls.append([(first, second) for first, second in found])
        return [f"Thoughts.\nVerdict: {self.decide(first, second)}" for first, second in found]  # type: ignore[operator]

    @property
    def asked(self) -> list[tuple[str, str]]:
        return [shown for call in self.calls for shown in call]


def replies(count: int) -> tuple[list[str], list[str], list[str]]:
    """Prompts, and what A and B say to them."""
    numbers = range(count)
    return [f"prompt {n}" for n in numbers], [f"a{n}" for n in numbers], [f"b{n}" for n in numbers]


def likes_a(first: str, second: str) -> int:
    return 1 if first.startswith("a") else 2


def result_of(**counts: int) -> SideBySide:
    """A result with so many pairs of each verdict."""
    kinds: dict[str, Verdict] = {"win": "win", "tie": "tie", "loss": "loss", "unreadable": "unreadable"}
    pairs = [
        Pair(prompt="p", reply_a="a", reply_b="b", ratings=(Rating(is_flipped=False, verdict=kinds[kind], text=""),))
        for kind, count in counts.items()
        for _ in range(count)
    ]
    return SideBySide(pairs=tuple(pairs))


def test_the_better_one_wins_wherever_it_stands() -> None:
    judge = Judge(likes_a)
    result = compare(*replies(40), judge)
    assert (result.count("win"), result.win_rate, result.shares) == (40, 1.0, (1.0, 0.0, 0.0))
    assert sum(first.startswith("b") for first, _ in judge.asked) == 20
    assert result.first_share == 0.5


def test_a_judge_who_always_prefers_the_first_gives_an_even_rate() -> None:
    result = compare(*replies(200), Judge(lambda first, second: 1))
    assert (result.win_rate, result.first_share) == (0.5, 1.0)
    low, high = result.interval
    assert low < 0.5 < high
    assert compare(*replies(7), Judge(lambda first, second: 2)).win_rate == pytest.approx(3 / 7)


def test_asked_in_both_orders_such_a_judge_makes_ties_and_a_fair_one_none() -> None:
    judge = Judge(lambda first, second: 1)
    result = compare(*replies(6), judge, both_orders=True)
    assert (result.count("tie"), result.win_rate, result.first_share) == (6, 0.5, 1.0)
    assert sorted(judge.asked) == sorted(
        [(f"a{n}", f"b{n}") for n in range(6)] + [(f"b{n}", f"a{n}") for n in range(6)]
    )
    assert compare(*replies(6), Judge(likes_a), both_orders=True).count("win") == 6


def test_in_both_orders_a_preference_and_a_tie_are_a_tie_and_one_unreadable_is_unreadable() -> None:
    for second, expected in (("tie", "tie"), ("?", "unreadable")):
        judge = Judge(lambda first, other, said=second: 1 if first.startswith("a") else said)
        assert compare(*replies(1), judge, both_orders=True).pairs[0].verdict == expected


def test_the_order_depends_on_the_seed_alone() -> None:
    def asked(seed: int) -> list[tuple[str, str]]:
        judge = Judge(likes_a)
        compare(*replies(20), judge, seed=seed)
        return judge.asked

    assert asked(0) == asked(0) != asked(1)


def test_equal_replies_are_a_tie_that_nobody_is_asked_about() -> None:
    judge = Judge(lambda first, second: 1)
    result = compare(["p", "q"], ["same", "a"], ["same", "b"], judge)
    assert [len(pair.ratings) for pair in result.pairs] == [0, 1] and result.pairs[0].verdict == "tie"
    assert len(judge.asked) == 1
    all_equal = compare(["p"], ["same"], ["same"], lambda questions: pytest.fail("nobody should be asked"))
    assert (all_equal.win_rate, all_equal.first_share) == (0.5, None)


def test_what_cannot_be_read_is_counted_and_in_no_share() -> None:
    judge = Judge(lambda first, second: "well..." if "3" in first else likes_a(first, second))
    result = compare(*replies(4), judge)
    assert [result.count(kind) for kind in ("win", "tie", "loss", "unreadable")] == [3, 0, 0, 1]
    assert result.win_rate == 1.0 and result.interval == result_of(win=3).interval
    assert result.pairs[3].ratings[0].text == "Thoughts.\nVerdict: well..."
    nothing = compare(*replies(3), Judge(lambda first, second: None))
    assert (nothing.win_rate, nothing.shares, nothing.first_share) == (None, None, None)
    assert nothing.interval == (0.0, 1.0)


def test_ties_are_split_evenly_as_in_the_report() -> None:
    result = result_of(win=448, tie=229, loss=323)  # Gemma 1.0 IT 2B, safety, W/T/L in tenths of a percent: 56.5%
    assert result.win_rate == pytest.approx(0.565, abs=0.004)
    result = result_of(win=425, tie=184, loss=391)  # Gemma 1.0 IT 7B, instruction following: 51.7%
    assert result.win_rate == pytest.approx(0.517, abs=0.0005)


@pytest.mark.parametrize(("wins", "losses"), [(0, 5), (5, 0), (1, 0), (30, 70), (612, 388)])
def test_the_interval_without_ties_is_that_of_scipy(wins: int, losses: int) -> None:
    expected = binomtest(wins, wins + losses).proportion_ci(method="wilson")
    assert result_of(win=wins, loss=losses).interval == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_interval_holds_the_true_rate_at_least_as_often_as_it_says() -> None:
    generator, hits = np.random.default_rng(0), 0
    for wins, ties, losses in generator.multinomial(60, (0.45, 0.2, 0.35), size=400).tolist():
        low, high = result_of(win=wins, tie=ties, loss=losses).interval
        hits += low <= 0.55 <= high
    assert 0.95 <= hits / 400 < 1


def test_prompts_are_judged_in_batches_and_counted() -> None:
    judge = Judge(likes_a)
    ticks: list[int] = []
    compare(*replies(40), judge, rubric="Length.", tick=ticks.append)
    assert ticks == [len(call) for call in judge.calls] == [16, 16, 8]


def test_the_rubric_reaches_the_judge() -> None:
    heard: list[str] = []

    def judge(questions: Sequence[str]) -> list[str]:
        heard.extend(questions)
        return ["Verdict: tie"] * len(questions)

    compare(["p"], ["x"], ["y"], judge, rubric="- Does it rhyme?")
    assert "- Does it rhyme?" in heard[0]


def test_lists_that_do_not_fit_and_none_are_refused() -> None:
    judge = Judge(likes_a)
    for prompts, a, b in (([], [], []), (["p"], ["a"], []), (["p"], ["a", "c"], ["b"]), (["p", "q"], ["a"], ["b"])):
        with pytest.raises(InputError, match=r"^expected prompts with a reply of A and one of B to each, got \d"):
            compare(prompts, a, b, judge)
    assert judge.calls == []


def test_a_judge_who_leaves_questions_out_is_refused_and_what_it_raises_is_passed_on() -> None:
    with pytest.raises(InputError, match=r"^expected 3 answers of the judge, got 1: "):
        compare(*replies(3), lambda questions: ["Verdict: 1"])

    def fails(questions: Sequence[str]) -> list[str]:
        raise GemmaryError("expected an answer, got none")

    with pytest.raises(GemmaryError, match="expected an answer, got none"):
        compare(*replies(3), fails)


@pytest.mark.slow
def test_a_real_model_judges_and_whatever_it_says_is_counted(default_checkpoint: Path) -> None:
    generator = gemmary.load(str(default_checkpoint), adapter="chat", max_length=2048)
    prompts = ["What is the capital of France?", "What is 2 + 2?", "Name a colour."]
    good, bad = ["Paris.", "2 + 2 = 4.", "Blue."], ["I like trains.", "5", ""]
    result = compare(prompts, good, bad, generator_judge(generator, max_tokens=128))
    counts = {kind: result.count(kind) for kind in ("win", "tie", "loss", "unreadable")}
    assert sum(counts.values()) == 3
    assert [len(pair.ratings) for pair in result.pairs] == [1, 1, 1]
