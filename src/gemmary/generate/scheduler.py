# SPDX-License-Identifier: Apache-2.0
"""Which tokens of which sequence run next: continuous batching as a state machine over plain Python objects.

    submit ─► waiting ─(a slot is free)─► running ─(stop, length, cancelled)─► finished
                             │ plan(): chunks for the engine ─► advance(): what came of each │
                             └──── the slot remembers its tokens for the next sequence ◄─────┘

Every sequence that is replying runs its last token in every step, and drafts of the next ones where it has some.
Prompts run in chunks beside them, first come first served; while anybody is replying, prompts share one chunk's length
a step, so that no reply waits for a long prompt. Where a prompt is cut depends on that prompt alone. Nothing here runs
a model or picks a token.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

from gemmary.base.errors import ContextError
from gemmary.generate.generator import Chunk
from gemmary.generate.request import FinishReason
from gemmary.generate.row import Row


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one row runs in one step.

    >>> Part(row=Row(tokens=[2, 651], max_tokens=9), chunk=Chunk(slot=0, start=1, ids=(651, 7), num_logits=2)).drafts
    (7,)
    """

    row: Row
    chunk: Chunk

    @property
    def drafts(self) -> tuple[int, ...]:
        """The tokens that are not the row's yet; logits are wanted before, between and after them.

        >>> Part(row=Row(tokens=[2, 651], max_tokens=1), chunk=Chunk(slot=0, start=1, ids=(651,))).drafts
        ()
        """
        return self.chunk.ids[len(self.chunk.ids) - self.chunk.num_logits + 1 :]


class Scheduler:
    """Rows in, chunks out; `keep(slot, n)` says how many of a slot's first n positions a new sequence may go on from.

    >>> scheduler = Scheduler(num_slots=1, max_length=8, chunk_length=2, keep=lambda slot, length: length)
    >>> scheduler.submit(Row(tokens=[2, 5, 6], max_tokens=2))
    >>> [part] = scheduler.plan()
    >>> scheduler.advance(part, None)
    >>> [part] = scheduler.plan()
    >>> part.chunk
    Chunk(slot=0, start=2, ids=(6,), num_logits=1)
    >>> scheduler.advance(part, 7)
    >>> scheduler.finish(part.row, "cancelled")
    >>> scheduler.plan()
    []
    """

    def __init__(
        self,
        *,
        num_slots: int,
        max_length: int,
        chunk_length: int,
        keep: Callable[[int, int], int],
        num_drafts: int = 0,
    ) -> None:
        self._max_length = max_length
        self._chunk_length = chunk_length
        self._keep = keep
        self._num_drafts = num_drafts
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._free = list(range(num_slots))  # the longest unused first
        self._memory: list[list[int]] = [[] for _ in range(num_slots)]  # the tokens each free slot holds

    def check_length(self, num_prompt: int, *, max_tokens: int = 1) -> None:
        """Raise ContextError for a prompt that leaves no room for a token, or, with none wanted, does not fit.

        >>> scheduler = Scheduler(num_slots=1, max_length=8, chunk_length=2, keep=lambda slot, length: length)
        >>> scheduler.check_length(8)
        Traceback (most recent call last):
        gemmary.base.errors.ContextError: expected at most 7 tokens, got 8: the context holds 8; shorten the prompt ...
        """
        most = self._max_length - min(max_tokens, 1)
        if num_prompt > most:
            raise ContextError(
                f"expected at most {most} tokens, got {num_prompt}: the context holds {self._max_length}; shorten the "
                "prompt or load the model with a larger max_length"
            )

    def submit(self, row: Row) -> None:
        """Put a row at the end of the queue; raises ContextError as `check_length` does."""
        self.check_length(len(row.tokens), max_tokens=row.max_tokens)
        self._waiting.append(row)

    def finish(self, row: Row, reason: FinishReason) -> None:
        """End a row, wherever it is, and free its slot at once; nothing happens to one that has ended."""
        if row.finish_reason is not None:
            return
        row.finish_reason = reason
        if row.slot is None:
            self._waiting.remove(row)
            return
        self._running.remove(row)
        self._memory[row.slot] = row.tokens[: row.num_run]
        self._free.append(row.slot)

    def drafting(self) -> dict[Row, int]:
        """The rows whose next step may judge drafts, and at most how many each: they share what a step may judge.

        >>> scheduler = Scheduler(num_slots=1, max_length=9, chunk_length=4, keep=lambda slot, n: n, num_drafts=7)
        >>> scheduler.submit(Row(tokens=[2, 5], max_tokens=5))
        >>> scheduler.drafting()
        {}
        >>> scheduler.advance(scheduler.plan()[0], 6)
        >>> list(scheduler.drafting().values())
        [2]
        """
        paces = {row: row.pace.most(len(row.tokens)) for row in self._running if row.is_replying}
        share = min(self._num_drafts // max(1, sum(most > 0 for most in paces.values())), self._chunk_length - 1)
        rows = {row: min(share, most, self._end(row) - len(row.tokens) - 1) for row, most in paces.items()}
        return {row: most for row, most in rows.items() if most > 0}

    def plan(self, drafts: Mapping[Row, Sequence[int]] | None = None) -> list[Part]:
        """What to run next: one token of every row that is replying, and as much of the prompts as has room.

        `drafts` are tokens that may follow those of rows that are replying, at most as many as `drafting` says.
        """
        while self._waiting and self._free:
            self._start(self._waiting.popleft())
        replying = [row for row in self._running if row.is_replying]
        reading = [row for row in self._running if not row.is_replying]
        parts = [self._part(row, (drafts or {}).get(row, ())) for row in [*replying, *reading]]
        if not replying:
            return parts
        sizes = accumulate(len(part.chunk.ids) for part in parts[len(replying) :])
        fitting = sum(size <= self._chunk_length for size in sizes)
        return parts[: len(replying) + max(1, fitting)]

    def advance(self, part: Part, token: int | None) -> None:
        """Record that a part has run and which token was picked after it; a row that has ended stays as it is.

        A part with drafts gives several tokens, one call each; what was drafted otherwise runs again.
        """
        row = part.row
        if row.finish_reason is not None:
            return
        row.num_run = min(part.chunk.end, len(row.tokens))
        if token is not None:
            row.tokens.append(token)
            if token in row.stop_ids:
                self.finish(row, "stop")
        if len(row.tokens) == self._end(row) and row.num_run >= row.num_prompt:
            self.finish(row, "length")

    def judge(self, part: Part, num_accepted: int) -> None:
        """Record how many of a part's drafts became the row's tokens.

        >>> row = Row(tokens=[2, 651, 7], max_tokens=9, slot=0)
        >>> scheduler = Scheduler(num_slots=1, max_length=9, chunk_length=4, keep=lambda slot, n: n, num_drafts=7)
        >>> scheduler.judge(Part(row=row, chunk=Chunk(slot=0, start=1, ids=(651, 7), num_logits=2)), 1)
        >>> row.num_drafted, row.num_accepted
        (1, 1)
        """
        if part.drafts:
            part.row.num_drafted += len(part.drafts)
            part.row.num_accepted += num_accepted
            part.row.pace.judge(len(part.row.tokens), drafted=len(part.drafts), accepted=num_accepted)

    def _end(self, row: Row) -> int:
        return min(row.num_prompt + row.max_tokens, self._max_length)

    def _part(self, row: Row, drafts: Sequence[int]) -> Part:
        assert row.slot is not None
        end = row.num_run + self._chunk_length
        ids = row.tokens[row.num_run : min(end, row.num_given) if row.num_run < row.num_given else end]
        is_last = row.max_tokens > 0 and row.num_run + len(ids) == len(row.tokens)
        num_logits = 1 + len(drafts) if is_last else 0
        return Part(row=row, chunk=Chunk(slot=row.slot, start=row.num_run, ids=(*ids, *drafts), num_logits=num_logits))

    def _start(self, row: Row) -> None:
        """Give the row the free slot that saves it most, unless that throws away more than it saves."""
        saved = {slot: self._saved(slot, row) for slot in self._free}
        slot = max(self._free, key=saved.__getitem__)
        if 2 * saved[slot] < len(self._memory[slot]):
            slot = self._free[0]
        self._free.remove(slot)
        self._memory[slot] = []
        row.slot, row.num_run, row.num_cached = slot, saved[slot], saved[slot]
        self._running.append(row)

    def _saved(self, slot: int, row: Row) -> int:
        """How many of the row's tokens the slot still holds; the last one must run, and when judging all that count."""
        may_be_there = row.tokens[:-1] if row.max_tokens else row.tokens[: row.num_given]
        pairs = zip(self._memory[slot], may_be_there, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return self._keep(slot, common) if common else 0
