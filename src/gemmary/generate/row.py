# SPDX-License-Identifier: Apache-2.0
"""One sequence on its way through an engine's slot, and how much of it is worth guessing beforehand."""

from dataclasses import dataclass, field

from gemmary.generate.request import FinishReason

_LONGEST_PAUSE = 32  # tokens: text that repeats nothing is tried as rarely, and has to repeat itself as long


@dataclass(kw_only=True)
class Pace:
    """The most tokens to draft next, by how many of the last were accepted.

    All right: twice as many. Fewer than half: as many as were right and one more; after a single wrong one none for
    1, 2, 4, ... 32 tokens.

    >>> pace = Pace()
    >>> pace.judge(10, drafted=2, accepted=2)
    >>> pace.most(13), pace.most(14)
    (4, 4)
    >>> for position in (13, 14):
    ...     pace.judge(position, drafted=1, accepted=0)
    >>> pace.most(14), pace.most(15)
    (0, 1)
    """

    width: int = 2
    pause: int = 1
    resumes: int = 0  # the position from which there are drafts again

    def most(self, position: int) -> int:
        """How many tokens to draft for the positions from `position` on.

        >>> Pace(width=3, resumes=5).most(4), Pace(width=3, resumes=5).most(5)
        (0, 3)
        """
        return self.width if position >= self.resumes else 0

    def judge(self, position: int, *, drafted: int, accepted: int) -> None:
        """Learn how many of the drafts were accepted, at least one having been made; `position` is the next token's.

        >>> pace = Pace(width=8)
        >>> pace.judge(100, drafted=8, accepted=3)
        >>> pace.width
        4
        """
        if accepted == drafted:
            self.width, self.pause = max(self.width, 2 * drafted), 1
        elif 2 * accepted < drafted and self.width > 1:
            self.width = accepted + 1
        elif 2 * accepted < drafted:
            self.resumes, self.pause = position + self.pause, min(2 * self.pause, _LONGEST_PAUSE)


@dataclass(kw_only=True, eq=False)
class Row:
    """One sequence on its way through a slot; with `max_tokens` 0 its tokens are run and none is added.

    >>> Row(tokens=[2, 651], max_tokens=8).is_replying
    False
    """

    tokens: list[int]  # the prompt, then the reply
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    num_given: int = 0  # with `max_tokens` 0, the first tokens: what follows each of them is not judged
    slot: int | None = None
    num_run: int = 0  # tokens whose keys and values are in the slot
    num_cached: int = 0  # tokens that were there before
    pace: Pace = field(default_factory=Pace)
    num_drafted: int = 0
    num_accepted: int = 0  # drafted tokens that became the reply's
    finish_reason: FinishReason | None = None
    num_prompt: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)

    @property
    def is_replying(self) -> bool:
        """Whether the reply has begun.

        >>> Row(tokens=[2, 651], max_tokens=0).is_replying
        False
        """
        return len(self.tokens) > self.num_prompt
