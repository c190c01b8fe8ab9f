# SPDX-License-Identifier: Apache-2.0
"""The key-value cache: one ring of positions a layer and slot; position p stands at p modulo the ring's length.

    ring of 6:     after positions 0 to 5               after 6 and 7 too
    index          0  1  2  3  4  5                     0  1  2  3  4  5
    position       0  1  2  3  4  5                     6  7  2  3  4  5

Positions are computed, never stored. A chunk of tokens attends to the ring as it was and to itself, and is written
afterwards, so a pass reads the cache and changes nothing; padding is never written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
from jaxtyping import Float, Int, Shaped
from keras import ops

from gemmary.base.config import GemmaConfig
from gemmary.model.layers import is_jax_on_cpu

Array = Any
Pair = tuple[Array, Array]  # keys and values of one layer

_BITS = "uint16"  # a store of bfloat16 as its bits


def allocate(config: GemmaConfig, *, slots: int, length: int, chunk: int, dtype: str) -> list[Pair]:
    """Empty rings for every layer, (slots, K, S, H) each: `slots` sequences of at most `length` positions.

    >>> from gemmary.base.config import PRESETS
    >>> pairs = allocate(PRESETS["gemma-3-270m"], slots=1, length=1024, chunk=8, dtype="float32")
    >>> tuple(pairs[0][0].shape), tuple(pairs[5][0].shape)
    ((1, 1, 520, 256), (1, 1, 1024, 256))
    """
    if dtype == "bfloat16" and is_jax_on_cpu():  # as bits: for one position XLA would turn all of a store to float32
        dtype = _BITS
    shapes = [(slots, config.num_kv_heads, ring, config.head_dim) for ring in config.cache_lengths(length, chunk)]
    return [(ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for shape in shapes]


@dataclass(frozen=True)
class Span:
    """Where a chunk of T tokens of B sequences stands: slots, first positions, and how many tokens are not padding.

    `past` positions at most were run before in any of the slots: no more of a ring is looked at.

    >>> span = Span(*(ops.array([number], "int32") for number in (0, 8, 2)), past=8)  # slot 0 has run 0 to 7
    >>> [int(position) for position in span.positions(2)[0]]
    [8, 9]
    >>> [int(position) for position in span.seen(6)[0]]
    [6, 7, 2, 3, 4, 5]
    """

    slots: Int[Array, "B"]  # each once; all of them in order when B is their number
    starts: Int[Array, "B"]
    counts: Int[Array, "B"]
    past: int

    def positions(self, length: int) -> Int[Array, "B T"]:
        """The position of every token, padding included."""
        return ops.expand_dims(self.starts, 1) + ops.arange(length, dtype="int32")

    def last(self, tokens: Shaped[Array, "B T *rest"]) -> Shaped[Array, "B 1 *rest"]:
        """Of each row the last token that is not padding.

        >>> span = Span(*(ops.array([number], "int32") for number in (0, 8, 2)), past=8)
        >>> int(span.last(ops.array([[5, 6, 0]]))[0, 0])
        6
        """
        if tokens.shape[1] == 1:
            return tokens
        at = ops.reshape(ops.maximum(self.counts - 1, 0), (-1, *(1 for _ in tokens.shape[1:])))
        return ops.take_along_axis(tokens, ops.broadcast_to(at, (tokens.shape[0], 1, *tokens.shape[2:])), axis=1)

    def seen(self, ring: int) -> Int[Array, "B S"]:
        """The position at each index of a ring that is looked at, before the chunk; below 0 where there is none."""
        return _held(self.starts - 1, ring)[:, : min(ring, self.past)]


def read(store: Shaped[Array, "slots K R H"], slots: Int[Array, "B"], size: int) -> Float[Array, "B K S H"]:
    """The first S places of some slots' rings, as in `Span.seen`.

    >>> tuple(read(ops.zeros((2, 1, 6, 4)), ops.array([1], "int32"), 5).shape)
    (1, 1, 5, 4)
    """
    part = store[:, :, :size]
    part = part if part.shape[0] == slots.shape[0] else ops.take(part, slots, axis=0)
    return ops.view(part, "bfloat16") if keras.backend.standardize_dtype(store.dtype) == _BITS else part


def _held(last: Int[Array, "B"], ring: int) -> Int[Array, "B R"]:
    """The newest position up to `last` at each index of a ring."""
    last = ops.expand_dims(last, 1)
    return last - (last - ops.arange(ring, dtype="int32")) % ring


def write(cache: Sequence[Pair], fresh: Sequence[Pair], span: Span) -> list[Pair]:
    """The cache with a chunk's keys and values, (B, K, T, H) each, in it; PyTorch writes in place.

    >>> cache, fresh = [(ops.zeros((1, 1, 3, 2)),) * 2], [(ops.ones((1, 1, 2, 2)),) * 2]
    >>> span = Span(*(ops.array([number], "int32") for number in (0, 2, 2)), past=2)
    >>> [float(key[0]) for key in write(cache, fresh, span)[0][0][0, 0]]  # positions 2 and 3 stand at 2 and 0
    [1.0, 0.0, 1.0]
    """
    if keras.backend.backend() == "torch":
        places = list(zip(span.slots.tolist(), span.starts.tolist(), span.counts.tolist(), strict=True))
        put = partial(_put_in_place, places=places)
    else:
        put = partial(_put, span=span)
    pairs = zip(cache, fresh, strict=True)
    return [(put(keys, k), put(values, v)) for (keys, values), (k, v) in pairs]


def _put(
    store: Shaped[Array, "slots K R H"], fresh: Float[Array, "B K T H"], span: Span
) -> Shaped[Array, "slots K R H"]:
    if keras.backend.standardize_dtype(store.dtype) == _BITS:
        fresh = ops.view(fresh, _BITS)
    size, length = store.shape[2], fresh.shape[2]
    newest = _held(span.starts + span.counts - 1, size) - ops.expand_dims(span.starts, 1)
    for row in range(fresh.shape[0]):
        slot, start, count = span.slots[row], span.starts[row], span.counts[row]
        if length == 1:  # one place, which XLA writes without touching the rest
            at, new = start % size, fresh[row : row + 1]
            old = ops.slice(store, (slot, 0, at, 0), new.shape)
            store = ops.slice_update(store, (slot, 0, at, 0), ops.where(count > 0, new, old))
            continue
        index = newest[row]  # of the chunk's tokens, below 0 where an older one stays
        new = ops.take(fresh[row : row + 1], ops.maximum(index, 0), axis=2)
        old = ops.slice(store, (slot, 0, 0, 0), (1, *store.shape[1:]))
        mixed = ops.where(ops.reshape(index >= 0, (1, 1, -1, 1)), new, old)
        store = ops.slice_update(store, (slot, 0, 0, 0), mixed)
    return store


def _put_in_place(
    store: Float[Array, "slots K R H"], fresh: Float[Array, "B K T H"], places: Sequence[tuple[int, int, int]]
) -> Float[Array, "slots K R H"]:
    size = store.shape[2]
    for row, (slot, start, count) in enumerate(places):
        for first in range(max(0, count - size), count, size):  # of more than fits, the last
            at = (start + first) % size
            head = min(size - at, count - first)
            store[slot, :, at : at + head] = fresh[row, :, first : first + head]
            if first + head < count:
                store[slot, :, : count - first - head] = fresh[row, :, first + head : count]
    return store
