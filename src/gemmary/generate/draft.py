# SPDX-License-Identifier: Apache-2.0
"""Guesses at how sequences go on, which the engine judges in one pass: the same reply in fewer steps.

    tokens ─► Drafter.propose ─► [last token, draft, draft, draft] ─► Engine.logits ─► picked: a token for each place
                                                                                        as long as it is the draft

What a drafter says never changes a reply: every token is picked from the engine's own logits.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, takewhile
from typing import Protocol
from weakref import WeakKeyDictionary

from gemmary.base.errors import InputError
from gemmary.generate.generator import Chunk, Engine
from gemmary.generate.row import Row
from gemmary.text.tokenizer import Tokenizer

_LENGTHS = (5, 3)  # tokens that must have stood before for what followed them to be guessed; the longest first


class Drafter(Protocol):
    """Something that guesses."""

    def propose(self, most: Mapping[Row, int]) -> dict[Row, list[int]]:
        """For each row at most so many tokens that may follow its own; it need not be asked for every row each time."""
        ...


class Lookup:
    """Guesses that what followed the last few tokens earlier in the prompt or the reply follows them again.

    >>> row = Row(tokens=[2, 5, 6, 7, 8, 9, 5, 6, 7], max_tokens=9)
    >>> Lookup().propose({row: 2})[row]
    [8, 9]
    """

    def __init__(self) -> None:
        self._indices: WeakKeyDictionary[Row, _Index] = WeakKeyDictionary()

    def propose(self, most: Mapping[Row, int]) -> dict[Row, list[int]]:
        """For each row at most so many tokens; none where its last tokens are new.

        >>> row = Row(tokens=[2, 5, 6, 7, 8], max_tokens=9)
        >>> Lookup().propose({row: 2})
        {Row(...): []}
        """
        return {row: self._indices.setdefault(row, _Index()).propose(row.tokens, count) for row, count in most.items()}


class _Index:
    """Where in a growing sequence each run of a few tokens ended last: what a token costs does not grow with it."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0  # ends that are in the index: the sequence's own is not yet

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        for end in range(self._num_indexed, len(tokens)):
            self._ends.update((run, end) for run in _runs(tokens, end))
        self._num_indexed = len(tokens)
        earlier = next((self._ends[run] for run in _runs(tokens, len(tokens)) if run in self._ends), None)
        if earlier is None:
            return []
        followed = tokens[earlier : earlier + most]
        return [followed[at % len(followed)] for at in range(most)]  # what reaches the end goes round


def _runs(tokens: Sequence[int], end: int) -> Iterable[tuple[int, ...]]:
    return (tuple(tokens[end - length : end]) for length in _LENGTHS if length <= end)


class DraftModel:
    """Guesses what a smaller model of the same vocabulary finds most probable; its slots follow the rows'.

    `engine` has as many slots as the engine it guesses for, or more; a row too long for it gets no drafts. Raises
    InputError for a model whose `tokenizer` has other pieces than the one of `target`.

    >>> import numpy as np
    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> class Counting:  # after each id comes the next one
    ...     num_slots, max_length, chunk_length = 1, 32, 8
    ...     def logits(self, chunks):
    ...         return np.stack([np.eye(16)[chunk.ids[-1] + 1] for chunk in chunks if chunk.num_logits])
    ...     def keep(self, slot, length):
    ...         return length
    >>> tokenizer = Tokenizer(Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", *"abcdef"], [0] * 10, [3] * 10))
    >>> model = DraftModel(Counting(), tokenizer, target=tokenizer)
    >>> row = Row(tokens=[2, 5, 4], max_tokens=9, slot=0)
    >>> model.propose({row: 3})[row]
    [5, 6, 7]
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, target: Tokenizer) -> None:
        self._engine = engine
        self._vocab_size = _common_size(tokenizer, target)
        self._rows: list[Row | None] = [None] * engine.num_slots  # the row that each slot follows
        self._held: list[list[int]] = [[] for _ in self._rows]  # the tokens whose keys and values it holds
        self._agreed = [0] * engine.num_slots  # of those, how many are known to be the row's

    def propose(self, most: Mapping[Row, int]) -> dict[Row, list[int]]:
        """For each row as many tokens as asked for; all rows run side by side. The class shows how."""
        drafts: dict[Row, list[int]] = {row: [] for row in most}
        ends = {row: min(len(row.tokens) + count, self._engine.max_length + 1) for row, count in most.items()}
        for row in most:
            self._take_back(row)
        while rows := [row for row in most if len(row.tokens) + len(drafts[row]) < ends[row]]:
            chunks = [self._chunk(row, drafts[row]) for row in rows]
            logits = iter(self._engine.logits(chunks)[:, : self._vocab_size])
            for row, chunk in zip(rows, chunks, strict=True):
                self._held[chunk.slot] += chunk.ids
                if chunk.num_logits:
                    drafts[row].append(int(next(logits).argmax()))
        return drafts

    def _take_back(self, row: Row) -> None:
        """Forget what the row's slot holds that is not the row's; the row's last token is always run again."""
        slot, tokens = _slot(row), row.tokens
        held, agreed = self._held[slot], self._agreed[slot] if self._rows[slot] is row else 0
        pairs = zip(islice(held, agreed, None), islice(tokens, agreed, len(tokens) - 1), strict=False)
        agreed += sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        del held[self._engine.keep(slot, agreed) if agreed else 0 :]
        self._rows[slot], self._agreed[slot] = row, len(held)

    def _chunk(self, row: Row, drafts: list[int]) -> Chunk:
        start = len(self._held[_slot(row)])
        ids = row.tokens[start : start + self._engine.chunk_length] if start < len(row.tokens) else drafts[-1:]
        is_last = start + len(ids) == len(row.tokens) + len(drafts)
        return Chunk(slot=_slot(row), start=start, ids=tuple(ids), num_logits=int(is_last))


def _slot(row: Row) -> int:
    assert row.slot is not None
    return row.slot


def _common_size(tokenizer: Tokenizer, target: Tokenizer) -> int:
    """The number of pieces that two vocabularies share from the first on; one may have more at its end."""
    size = min(tokenizer.vocab_size, target.vocab_size)
    pairs = zip(tokenizer.pieces, target.pieces, strict=False)
    wrong = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
    if wrong is not None:
        raise InputError(
            f"expected a draft model of the same vocabulary, got one whose piece {wrong} is "
            f"{tokenizer.pieces[wrong]!r} and not {target.pieces[wrong]!r}: use a smaller model of the same generation"
        )
    return size
