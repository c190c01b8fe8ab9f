# SPDX-License-Identifier: Apache-2.0
"""Which tokens of which sequence run next: continuous batching as a state machine over plain Python objects.

    submit ─► waiting ─(a slot is free)─► running ─(stop, length, cancelled)─► finished
                             │ plan(): chunks for the engine ─► advance(): what came of each │
                             └──── the slot remembers its tokens for the next sequence ◄─────┘

Every sequence that is replying gets its one token in every step. Prompts run in chunks beside them, first come first
served; while anybody is replying, prompts share one chunk's length a step, so that no reply waits for a long prompt.
Where a prompt is cut depends on that prompt alone. Nothing here runs a model or picks a token.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, takewhile

from gemmary.base.errors import ContextError
from gemmary.generate.generator import Chunk
from gemmary.generate.request import FinishReason


@dataclass(kw_only=True, eq=False)
class Row:
    """One sequence on its way through a slot; with `max_tokens` 0 its tokens are run and none is added.

    >>> Row(tokens=[2, 651], max_tokens=8).is_replying
    False
    """

    tokens: list[int]  # the prompt, then the reply
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    slot: int | None = None
    num_run: int = 0  # tokens whose keys and values are in the slot
    num_cached: int = 0  # tokens that were there before
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


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one row runs in one step.

    >>> Part(row=Row(tokens=[2, 651], max_tokens=1), chunk=Chunk(slot=0, start=0, ids=(2,))).needs_token
    False
    """

    row: Row
    chunk: Chunk

    @property
    def needs_token(self) -> bool:
        """Whether the token after the chunk is to be picked: the row's tokens end here and more are asked for.

        >>> Part(row=Row(tokens=[2, 651], max_tokens=1), chunk=Chunk(slot=0, start=1, ids=(651,))).needs_token
        True
        """
        return self.row.max_tokens > 0 and self.chunk.end == len(self.row.tokens)


class Scheduler:
    """Rows in, chunks out; `keep(slot, n)` says how many of a slot's first n positions a new sequence may go on from.

    >>> scheduler = Scheduler(num_slots=1, max_length=8, chunk_length=2, keep=lambda slot, length: length)
    >>> scheduler.submit(Row(tokens=[2, 5, 6], max_tokens=2))
    >>> [part] = scheduler.plan()
    >>> scheduler.advance(part, None)
    >>> [part] = scheduler.plan()
    >>> part.chunk, part.needs_token
    (Chunk(slot=0, start=2, ids=(6,)), True)
    >>> scheduler.advance(part, 7)
    >>> scheduler.finish(part.row, "cancelled")
    >>> scheduler.plan()
    []
    """

    def __init__(self, *, num_slots: int, max_length: int, chunk_length: int, keep: Callable[[int, int], int]) -> None:
        self._max_length = max_length
        self._chunk_length = chunk_length
        self._keep = keep
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

    def plan(self) -> list[Part]:
        """What to run next: one token of every row that is replying, and as much of the prompts as has room."""
        while self._waiting and self._free:
            self._start(self._waiting.popleft())
        replying = [row for row in self._running if row.is_replying]
        reading = [row for row in self._running if not row.is_replying]
        parts = [self._part(row) for row in [*replying, *reading]]
        if not replying:
            return parts
        sizes = accumulate(len(part.chunk.ids) for part in parts[len(replying) :])
        fitting = sum(size <= self._chunk_length for size in sizes)
        return parts[: len(replying) + max(1, fitting)]

    def advance(self, part: Part, token: int | None) -> None:
        """Record that a part has run and which token was picked after it; a row that has ended stays as it is."""
        row = part.row
        if row.finish_reason is not None:
            return
        row.num_run = part.chunk.end
        if token is not None:
            row.tokens.append(token)
            if token in row.stop_ids:
                self.finish(row, "stop")
        most = min(row.num_prompt + row.max_tokens, self._max_length)
        if len(row.tokens) == most and row.num_run >= row.num_prompt:
            self.finish(row, "length")

    def _part(self, row: Row) -> Part:
        assert row.slot is not None
        ids = row.tokens[row.num_run : row.num_run + self._chunk_length]
        return Part(row=row, chunk=Chunk(slot=row.slot, start=row.num_run, ids=tuple(ids)))

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
        """How many of the row's tokens the slot still holds; the last one must run, and when judging all must."""
        if row.max_tokens == 0:
            return 0
        pairs = zip(self._memory[slot], row.tokens[:-1], strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return self._keep(slot, common) if common else 0
