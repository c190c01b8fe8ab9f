# SPDX-License-Identifier: Apache-2.0
"""Examples to batches: several in a row of T tokens, each blind to the others, and what is learned from them.

    ids         2 a b 2 c d e 0     padding 0
    segments    1 1 1 2 2 2 2 0     documents of the row, counted from 1
    positions   0 1 2 0 1 2 3 0     within the document
    at          0 1 5               places of the flat B * T whose next token is learned ...
    targets     a b e               ... that token ...
    weights     1 1 1               ... and 1; these three are padded with 0 to one of eight sizes

A batch is a function of the examples, the settings and its step: training goes on at step n knowing n alone. Rows are
packed once, best fit, the longest example first; each epoch draws their order from a Philox generator keyed with seed
and epoch.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import InputError
from gemmary.corpus.examples import Example

_PACKING = 2**64 - 1  # the epoch whose order the packing uses; no training gets there


class Batches:
    """Batches without end: `batch(step)` is that of any step from 0.

    With `accumulate` A > 1 a step is A batches of B rows; every array has A in front and all have the same sizes. At an
    epoch's end rows may be missing; padding (segments 0, weights 0) stands for them.

    >>> example = Example(np.array([2, 7, 8], np.int32), np.array([False, True, True]), 1)
    >>> batches = Batches([example] * 5, batch_size=2, length=6, seed=1)
    >>> batches.steps_per_epoch, batches.num_rows, batches.num_tokens, batches.num_learned
    (2, 3, 15, 10)
    >>> batch = batches.batch(0)
    >>> {name: array.shape for name, array in batch.items()}["segments"]
    (2, 6)
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        length: int,
        seed: int,
        packed: bool = True,
        accumulate: int = 1,
    ) -> None:
        longest = max((len(example.ids) for example in examples), default=0)
        if not 0 < longest <= length:
            raise InputError(f"expected examples of 1 to {length} tokens, got {longest}: load them for this length")
        if min(batch_size, accumulate) < 1:
            got = f"{batch_size} and {accumulate}"
            raise InputError(f"expected a batch_size >= 1 and accumulate >= 1, got {got}: use 1 or more of both")
        self.shape = (accumulate, batch_size, length)  # A B T
        self._examples, self._seed = examples, _checked(seed)
        lengths = np.array([len(example.ids) for example in examples])
        order = self._drawn(_PACKING, len(examples))
        self._rows = _best_fit(lengths, order, length) if packed else [[at] for at in order.tolist()]
        self._epoch = (0, self._drawn(0, len(self._rows)))
        self.num_rows = len(self._rows)  # of an epoch, as are the numbers of tokens
        self.num_tokens = int(lengths.sum())
        self.num_learned = sum(int(example.mask[1:].sum()) for example in examples)
        self.steps_per_epoch = -(-self.num_rows // (accumulate * batch_size))

    def batch(self, step: int) -> dict[str, NDArray[np.int32] | NDArray[np.float32]]:
        """The arrays of one step, as the picture above has them; raises InputError for a step below 0."""
        if step < 0:
            raise InputError(f"expected a step >= 0, got {step}: count from 0")
        epoch, place = divmod(step, self.steps_per_epoch)
        known = self._epoch  # read once: other threads may ask for other epochs
        if known[0] != epoch:
            known = self._epoch = (epoch, self._drawn(epoch, self.num_rows))
        accumulate, size, length = self.shape
        first = place * accumulate * size
        chosen = [known[1][first + a * size :][:size].tolist() for a in range(accumulate)]
        grids = np.zeros((3, *self.shape), np.int32)
        learned = [self._fill(grids[:, a], rows) for a, rows in enumerate(chosen)]
        unit = -(-size * length // 8)
        most = max(1, *(each.shape[1] for each in learned))
        entries = np.zeros((2, accumulate, -(-most // unit) * unit), np.int32)
        weights = np.zeros(entries.shape[1:], np.float32)
        for a, each in enumerate(learned):
            entries[:, a, : each.shape[1]] = each
            weights[a, : each.shape[1]] = 1
        names = ("ids", "segments", "positions", "at", "targets", "weights")
        arrays = dict(zip(names, (*grids, *entries, weights), strict=True))
        return arrays if accumulate > 1 else {name: array[0] for name, array in arrays.items()}

    def _fill(self, grids: NDArray[np.int32], rows: list[int]) -> NDArray[np.int32]:
        """Write a batch's ids, segments and positions (3 B T); return `at` and `targets` of what is learned (2 M)."""
        learned = [np.zeros((2, 0), np.int32)]
        for b, row in enumerate(rows):
            start = 0
            for segment, document in enumerate(self._rows[row], 1):
                example = self._examples[document]
                end = start + len(example.ids)
                grids[0, b, start:end] = example.ids
                grids[1, b, start:end] = segment
                grids[2, b, start:end] = np.arange(end - start)
                before = np.flatnonzero(example.mask[1:])
                at = (b * grids.shape[2] + start + before).astype(np.int32)
                learned.append(np.stack([at, example.ids[before + 1]]))
                start = end
        return np.concatenate(learned, axis=1)

    def _drawn(self, epoch: int, count: int) -> NDArray[np.intp]:
        """An order of 0 .. count - 1 from raw random words, whose stream NumPy keeps for good (NEP 19)."""
        words = np.random.Philox(key=np.array([self._seed, epoch], np.uint64)).random_raw(count)
        return np.argsort(words, kind="stable")


def split(examples: Sequence[Example], held: float, seed: int) -> tuple[list[Example], list[Example]]:
    """What to train on and what to hold back: a share below 1, or a number of examples.

    A hash of the ids decides. With a share, an example stays on its side whatever comes or goes beside it; with a
    number, few change sides. Raises InputError for a share or number that leaves nothing on one of the sides.

    >>> examples = [Example(np.array([2, at], np.int32), np.array([False, True]), at) for at in range(100)]
    >>> kept, back = split(examples, 10, seed=0)
    >>> len(kept), len(back)
    (90, 10)
    """
    key = _checked(seed).to_bytes(8, "little")
    hashes = [blake2b(each.ids.astype("<i4").tobytes(), digest_size=8, key=key).digest() for each in examples]
    places = [int.from_bytes(each, "big") / 2**64 for each in hashes]
    limit = held if 0 < held < 1 else sorted(places)[int(held)] if held in range(1, len(places)) else 0
    kept = [each for each, place in zip(examples, places, strict=True) if place >= limit]
    back = [each for each, place in zip(examples, places, strict=True) if place < limit]
    if not kept or not back:
        got = f"{held} of {len(examples)}"
        raise InputError(f"expected examples to train on and examples to hold back, got {got}: hold back another part")
    return kept, back


def _checked(seed: int) -> int:
    if not 0 <= seed < 2**64:
        raise InputError(f"expected a seed from 0 to 2^64 - 1, got {seed}: use another")
    return seed


def _best_fit(lengths: NDArray[np.intp], order: NDArray[np.intp], size: int) -> list[list[int]]:
    """Rows of examples: each, the longest first, goes to the row with the least room that it fits in."""
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # free places, and the rows that have as many
    rooms = 0  # bit n is set when a row has n free places
    for at in order[np.argsort(-lengths[order], kind="stable")].tolist():
        needed = int(lengths[at])
        if fitting := rooms >> needed:
            room = needed + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            rooms ^= (not with_room[room]) << room
        else:
            room, row = size, len(rows)
            rows.append([])
        rows[row].append(at)
        if left := room - needed:
            with_room.setdefault(left, []).append(row)
            rooms |= 1 << left
    return rows
