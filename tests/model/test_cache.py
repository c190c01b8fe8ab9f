# SPDX-License-Identifier: Apache-2.0
"""Rings against a dictionary of positions; a row of a drawing is a slot, a number the position that stands there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from keras import ops
from numpy.typing import NDArray

from gemmary.base.config import PRESETS, GemmaConfig
from gemmary.model.cache import Pair, Span, allocate, read, write
from gemmary.model.weights import backend_array, numpy_array


def span(slots: Sequence[int], starts: Sequence[int], counts: Sequence[int], past: int = 1000) -> Span:
    slots, starts, counts = (ops.convert_to_tensor(np.int32(each)) for each in (slots, starts, counts))
    return Span(slots, starts, counts, past)


def ring(size: int, slots: int = 1) -> list[Pair]:
    return [(ops.zeros((slots, 2, size, 3)), ops.zeros((slots, 2, size, 3)))]


def chunk(rows: Sequence[Sequence[float]]) -> list[Pair]:
    """Keys that hold a number for each token; values hold it with the other sign."""
    keys = np.tile(np.float32(rows)[:, None, :, None], (1, 2, 1, 3))
    return [(ops.convert_to_tensor(keys), ops.convert_to_tensor(-keys))]


def drawn(cache: Sequence[Pair]) -> list[list[int]]:
    """What each slot's ring holds, after a look that keys and values, heads and numbers agree."""
    keys, values = (numpy_array(each) for each in cache[0])
    assert (keys == keys[:, :1, :, :1]).all() and (values == -keys).all()
    found: list[list[int]] = keys[:, 0, :, 0].astype(int).tolist()
    return found


def test_positions_stand_at_their_remainder() -> None:
    cache = write(ring(6), chunk([[10, 11, 12, 13]]), span([0], [0], [4]))
    assert drawn(cache) == [[10, 11, 12, 13, 0, 0]]
    cache = write(cache, chunk([[14, 15, 16, 17]]), span([0], [4], [4]))
    assert drawn(cache) == [[16, 17, 12, 13, 14, 15]]
    cache = write(cache, chunk([[18]]), span([0], [8], [1]))
    assert drawn(cache) == [[16, 17, 18, 13, 14, 15]]


def test_padding_is_never_written() -> None:
    cache = write(ring(6), chunk([[10, 11, 12, 99]]), span([0], [0], [3]))
    cache = write(cache, chunk([[13, 14, 15, 16]]), span([0], [3], [4]))
    assert drawn(cache) == [[16, 11, 12, 13, 14, 15]]
    cache = write(cache, chunk([[17, 99, 99, 99]]), span([0], [7], [1]))
    assert drawn(cache) == [[16, 17, 12, 13, 14, 15]]


def test_a_row_that_is_padding_changes_nothing() -> None:
    cache = write(ring(4, slots=2), chunk([[10, 11], [20, 21]]), span([0, 1], [0, 0], [2, 2]))
    cache = write(cache, chunk([[99, 99], [22, 99]]), span([0, 1], [0, 2], [0, 1]))
    assert drawn(cache) == [[10, 11, 0, 0], [20, 21, 22, 0]]
    cache = write(cache, chunk([[99], [23]]), span([0, 1], [0, 3], [0, 1]))
    assert drawn(cache) == [[10, 11, 0, 0], [20, 21, 22, 23]]


def test_of_more_tokens_than_fit_the_last_stay() -> None:
    cache = write(ring(4), chunk([range(10, 21)]), span([0], [0], [11]))
    assert drawn(cache) == [[18, 19, 20, 17]]


def test_slots_may_come_in_any_order() -> None:
    cache = write(ring(3, slots=4), chunk([[30], [10]]), span([3, 1], [0, 0], [1, 1]))
    assert drawn(cache) == [[0, 0, 0], [10, 0, 0], [0, 0, 0], [30, 0, 0]]
    slots = span([3, 1], [1, 1], [1, 1]).slots
    assert numpy_array(read(cache[0][0], slots, 1000))[:, 0, :, 0].tolist() == [[30, 0, 0], [10, 0, 0]]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0, [-6, -5, -4, -3, -2, -1]),
        (1, [0, -5, -4, -3, -2, -1]),
        (6, [0, 1, 2, 3, 4, 5]),
        (8, [6, 7, 2, 3, 4, 5]),
        (8192, [8190, 8191, 8186, 8187, 8188, 8189]),
    ],
)
def test_what_stands_in_a_ring_is_computed(start: int, expected: list[int]) -> None:
    assert numpy_array(span([0], [start], [1]).seen(6)).tolist() == [expected]


def test_no_more_of_a_ring_is_looked_at_than_was_run() -> None:
    where = span([0], [3], [1], past=4)
    assert numpy_array(where.seen(6)).tolist() == [[0, 1, 2, -3]]
    assert tuple(read(ring(6)[0][0], where.slots, 4).shape) == (1, 2, 4, 3)
    assert numpy_array(where.positions(3)).tolist() == [[3, 4, 5]]


@pytest.mark.parametrize("size", [1, 5, 8, 24])
def test_rings_hold_what_a_dictionary_holds(size: int) -> None:
    draw = np.random.default_rng(size)
    slots, length = 3, 8
    cache = ring(size, slots)
    known: list[dict[int, int]] = [{} for _ in range(slots)]  # the number written last at each place of each slot
    ends, number = [0] * slots, 0
    for _ in range(25):
        rows = int(draw.integers(1, slots + 1))
        order = np.arange(slots) if rows == slots else draw.permutation(slots)[:rows]
        counts = draw.integers(0, length + 1, rows)
        starts = np.array([draw.choice([ends[slot], ends[slot], max(0, ends[slot] - 3), 0]) for slot in order])
        fresh = np.full((rows, length), 9999)
        for row, (slot, start, count) in enumerate(zip(order, starts, counts, strict=True)):
            fresh[row, :count] = np.arange(number + 1, number + count + 1)
            known[slot].update({(start + at) % size: number + 1 + at for at in range(count)})
            number, ends[slot] = number + count, start + count
        cache = write(cache, chunk(fresh.tolist()), span(order.tolist(), starts.tolist(), counts.tolist()))
        assert drawn(cache) == [[held.get(place, 0) for place in range(size)] for held in known]


@pytest.mark.parametrize(("window", "most"), [(16, 8), (5, 3), (1, 4)])
def test_a_ring_of_a_window_and_a_chunk_shows_every_position_in_the_window(window: int, most: int) -> None:
    draw, size = np.random.default_rng(window), window + most
    cache, end = ring(size), 0
    for _ in range(20):
        count = int(draw.integers(1, most + 1))
        cache = write(
            cache, chunk([[*range(1 + end, 1 + end + count), *[9999] * (most - count)]]), span([0], [end], [count])
        )
        end += count
        for back in range(min(end, most) + 1):  # a sequence may also go on from up to a chunk before its end
            start = end - back
            [seen], [held] = numpy_array(span([0], [start], [1]).seen(size)).tolist(), drawn(cache)
            shown = dict(zip(seen, held, strict=True))
            wanted = range(max(0, start - window + 1), start)
            assert {position: shown.get(position) for position in wanted} == {p: p + 1 for p in wanted}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_layer_has_the_ring_that_its_window_needs(dtype: str) -> None:
    config = PRESETS["gemma-3-270m"].with_(num_layers=7)
    pairs = allocate(config, slots=2, length=1024, chunk=8, dtype=dtype)
    assert [tuple(keys.shape) for keys, _ in pairs] == [(2, 1, size, 256) for size in (*[520] * 5, 1024, 520)]
    assert all(keys.shape == values.shape for keys, values in pairs)
    nbytes = sum(2 * int(np.prod(keys.shape)) * {"float32": 4, "bfloat16": 2}[dtype] for keys, _ in pairs)
    assert nbytes == config.cache_bytes(1024, chunk=8, itemsize={"float32": 4, "bfloat16": 2}[dtype], slots=2)


def test_bfloat16_is_written_as_it_is() -> None:
    config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, head_dim=2, mlp_dim=4)
    cache = allocate(config, slots=1, length=4, chunk=4, dtype="bfloat16")
    fresh: Any = backend_array(np.float32([[[[1.5, -2], [3, 0.25]]]]), "bfloat16")
    cache = write(cache, [(fresh, fresh)], span([0], [3], [2]))
    held: NDArray[np.float32] = numpy_array(ops.cast(read(cache[0][0], span([0], [5], [1]).slots, 4), "float32"))
    assert held[0, 0].tolist() == [[3, 0.25], [0, 0], [0, 0], [1.5, -2]]
