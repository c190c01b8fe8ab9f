# SPDX-License-Identifier: Apache-2.0
"""Block formats: the NumPy reference of what the bytes of a quantised tensor mean, and how they are made.

    type   values  bytes  one value
    Q8_0     32     34    d * q                  q in -128..127
    Q4_0     32     18    d * (q - 8)            q in 0..15
    Q4_1     32     20    d * q + m
    Q5_0     32     22    d * (q - 16)           q in 0..31, the fifth bits apart
    Q5_1     32     24    d * q + m
    Q4_K    256    144    d * s * q - e * t      s, t in 0..63 for every 32 values
    Q5_K    256    176    d * s * q - e * t      q in 0..31
    Q6_K    256    210    d * s * (q - 32)       q in 0..63, s in -128..127 for every 16 values

d, m and e are float16. The layouts are those of ggml (ggml/src/ggml-common.h); F32, F16 and BF16 are blocks of one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import CheckpointError, InputError

Blocks = NDArray[Any]  # a structured array, one element a block
Bytes = NDArray[np.uint8]
Values = NDArray[np.float32]


class BlockType(IntEnum):
    """How a tensor is stored; the numbers are ggml's.

    >>> BlockType["Q6_K"].block_length, BlockType["Q6_K"].block_bytes
    (256, 210)
    """

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30

    @property
    def is_float(self) -> bool:
        """Whether every value stands for itself.

        >>> BlockType.BF16.is_float, BlockType.Q8_0.is_float
        (True, False)
        """
        return not LAYOUTS[self].names

    @property
    def block_length(self) -> int:
        """Values in a block.

        >>> BlockType.BF16.block_length
        1
        """
        return 1 if self.is_float else 256 if self.name.endswith("_K") else 32

    @property
    def block_bytes(self) -> int:
        """Bytes of a block.

        >>> BlockType.Q4_0.block_bytes
        18
        """
        return LAYOUTS[self].itemsize

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape; raises InputError when its rows are not whole blocks.

        >>> BlockType.Q4_0.num_bytes((2, 64))
        72
        """
        if shape and shape[-1] % self.block_length:
            raise InputError(
                f"expected rows of a multiple of {self.block_length} values for {self.name}, got {shape[-1]}: "
                "use another type, such as Q8_0 or BF16"
            )
        return prod(shape) // self.block_length * self.block_bytes


_HALF = "<f2"
LAYOUTS: Mapping[BlockType, np.dtype[Any]] = {
    BlockType.F32: np.dtype("<f4"),
    BlockType.F16: np.dtype(_HALF),
    BlockType.BF16: np.dtype(ml_dtypes.bfloat16),
    BlockType.Q8_0: np.dtype([("d", _HALF), ("q", "i1", 32)]),
    BlockType.Q4_0: np.dtype([("d", _HALF), ("q", "u1", 16)]),
    BlockType.Q4_1: np.dtype([("d", _HALF), ("m", _HALF), ("q", "u1", 16)]),
    BlockType.Q5_0: np.dtype([("d", _HALF), ("high", "u1", 4), ("q", "u1", 16)]),
    BlockType.Q5_1: np.dtype([("d", _HALF), ("m", _HALF), ("high", "u1", 4), ("q", "u1", 16)]),
    BlockType.Q4_K: np.dtype([("d", _HALF), ("e", _HALF), ("scales", "u1", 12), ("q", "u1", 128)]),
    BlockType.Q5_K: np.dtype([("d", _HALF), ("e", _HALF), ("scales", "u1", 12), ("high", "u1", 32), ("q", "u1", 128)]),
    BlockType.Q6_K: np.dtype([("q", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", _HALF)]),
}

_CHUNK = 1 << 17  # values worked on at a time: what they need stays in the cache of one core


def dequantize(raw: Bytes, kind: BlockType, shape: tuple[int, ...]) -> Values:
    """The float32 values that the bytes of one tensor mean.

    Raises CheckpointError for a wrong number of bytes and for a block whose factors are not finite.

    >>> dequantize(quantize(np.float32([[127.0] * 32]), BlockType.Q8_0).ravel(), BlockType.Q8_0, (1, 32))[0, :2]
    array([127., 127.], dtype=float32)
    """
    if raw.size != kind.num_bytes(shape):
        raise CheckpointError(
            f"expected {kind.num_bytes(shape)} bytes for {kind.name} of shape {shape}, got {raw.size}: fetch it again"
        )
    blocks = raw.view(LAYOUTS[kind])
    if kind.is_float:
        return blocks.astype(np.float32).reshape(shape)
    values = np.empty((blocks.size, kind.block_length), np.float32)
    for part in _chunks(blocks.size, kind.block_length):
        _check_finite(blocks[part], kind)
        _DEQUANTIZE[kind](blocks[part], values[part])
    return values.reshape(shape)


def quantize(array: NDArray[Any], kind: BlockType, importance: Values | None = None) -> Bytes:
    """The bytes of one tensor, shaped (..., bytes of a row), rounded as ggml's reference does.

    With `importance`, one number >= 0 for each column that says how much a squared error there matters, the factors of
    Q4_0 are those of the least error among several. Writes the float types, Q8_0 and Q4_0. Raises InputError for the
    others and for rows that are not whole blocks.

    >>> quantize(np.ones((2, 64), np.float32), BlockType.Q4_0).shape
    (2, 36)
    """
    row_bytes = kind.num_bytes(array.shape[-1:])
    if kind.is_float:
        return np.ascontiguousarray(array, LAYOUTS[kind]).view(np.uint8).reshape(*array.shape[:-1], row_bytes)
    if kind not in _QUANTIZE:
        known = ", ".join(each.name for each in (*(kind for kind in BlockType if kind.is_float), *_QUANTIZE))
        raise InputError(f"expected a type that can be written ({known}), got {kind.name}")
    values = np.ascontiguousarray(array).reshape(-1, kind.block_length)
    blocks = np.empty(len(values), LAYOUTS[kind])
    fits = kind is BlockType.Q4_0 and importance is not None
    columns = importance.reshape(-1, kind.block_length) if fits and importance is not None else None
    for part in _chunks(len(values), kind.block_length):
        if columns is None:
            _QUANTIZE[kind](values[part].astype(np.float32), blocks[part])
        else:
            one = columns[np.arange(part.start, min(part.stop, len(values))) % len(columns)]
            _fit_q4_0(values[part].astype(np.float32), one, blocks[part])
    return blocks.view(np.uint8).reshape(*array.shape[:-1], row_bytes)


def _chunks(num_blocks: int, block_length: int) -> Iterator[slice]:
    step = _CHUNK // block_length
    return (slice(start, start + step) for start in range(0, num_blocks, step))


def _check_finite(blocks: Blocks, kind: BlockType) -> None:
    # the integers are always finite: so are the values when the factors are
    for name in ("d", "m", "e"):
        if name in LAYOUTS[kind].fields and not np.isfinite(blocks[name]).all():  # type: ignore[operator]
            raise CheckpointError(f"expected finite values, got NaN or infinity in a block of {kind.name}")


def _nibbles(packed: Bytes, run: int) -> Bytes:
    """Split each run of bytes: first the low halves of the run, then the high halves."""
    runs = packed.reshape(len(packed), -1, run)
    out = np.empty((len(packed), runs.shape[1], 2, run), np.uint8)
    np.bitwise_and(runs, 15, out=out[:, :, 0])
    np.right_shift(runs, 4, out=out[:, :, 1])
    return out


def _dequantize_q8_0(blocks: Blocks, out: Values) -> None:
    out[:] = blocks["q"]
    out *= blocks["d"].astype(np.float32)[:, None]


def _centred(center: int) -> Callable[[Blocks, Values], None]:
    def dequantize_blocks(blocks: Blocks, out: Values) -> None:
        q = _five_bits(blocks).view(np.int8)
        q -= np.int8(center)
        out[:] = q
        out *= blocks["d"].astype(np.float32)[:, None]

    return dequantize_blocks


def _with_minimum(blocks: Blocks, out: Values) -> None:
    out[:] = _five_bits(blocks)
    out *= blocks["d"].astype(np.float32)[:, None]
    out += blocks["m"].astype(np.float32)[:, None]


def _five_bits(blocks: Blocks) -> Bytes:
    """The integers of a block of 32: four bits in `q`, and where the block has it the fifth in `high`."""
    q = _nibbles(blocks["q"], 16).reshape(-1, 32)
    if "high" in (blocks.dtype.names or ()):
        fifth = np.unpackbits(np.ascontiguousarray(blocks["high"]), axis=1, bitorder="little")
        fifth <<= 4
        q |= fifth
    return q


def _dequantize_super(blocks: Blocks, out: Values) -> None:
    """Q4_K and Q5_K: eight groups of 32, each with a scale and a minimum of six bits."""
    scale, minimum = _scales_of_six_bits(blocks["scales"])
    q = _nibbles(blocks["q"], 32).reshape(-1, 8, 32)
    if "high" in (blocks.dtype.names or ()):
        shifts = np.arange(8, dtype=np.uint8)[:, None]
        q |= ((blocks["high"][:, None] >> shifts) & 1) << 4
    groups = out.reshape(-1, 8, 32)
    groups[:] = q
    groups *= (blocks["d"].astype(np.float32)[:, None] * scale)[:, :, None]
    groups -= (blocks["e"].astype(np.float32)[:, None] * minimum)[:, :, None]


def _scales_of_six_bits(packed: Bytes) -> tuple[Values, Values]:
    """Twelve bytes: a[4], b[4], c[4] with six bits of the first four in a and b, the rest in c and their upper two."""
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([a & 63, (c & 15) | (a >> 2 & 48)], axis=1)
    minimum = np.concatenate([b & 63, (c >> 4) | (b >> 2 & 48)], axis=1)
    return scale.astype(np.float32), minimum.astype(np.float32)


def _dequantize_q6_k(blocks: Blocks, out: Values) -> None:
    q = _nibbles(blocks["q"], 64).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    q |= ((blocks["high"].reshape(-1, 2, 1, 32) >> shifts) & 3) << 4
    centred = q.view(np.int8)
    centred -= np.int8(32)
    groups = out.reshape(-1, 16, 16)
    groups[:] = centred.reshape(-1, 16, 16)
    groups *= (blocks["d"].astype(np.float32)[:, None] * blocks["scales"].astype(np.float32))[:, :, None]


_DEQUANTIZE: Mapping[BlockType, Callable[[Blocks, Values], None]] = {
    BlockType.Q8_0: _dequantize_q8_0,
    BlockType.Q4_0: _centred(8),
    BlockType.Q4_1: _with_minimum,
    BlockType.Q5_0: _centred(16),
    BlockType.Q5_1: _with_minimum,
    BlockType.Q4_K: _dequantize_super,
    BlockType.Q5_K: _dequantize_super,
    BlockType.Q6_K: _dequantize_q6_k,
}


def _inverse(d: Values) -> Values:
    # what is smaller has no inverse in float32, and is 0 as float16 anyhow
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=np.abs(d) > np.float32(1e-38))


def _put_factors(blocks: Blocks, d: Values, kind: BlockType) -> None:
    with np.errstate(over="ignore"):
        blocks["d"] = d[:, 0]
    if not np.isfinite(blocks["d"]).all():
        raise InputError(f"expected values within {kind.name}, got larger ones: use bfloat16 or float32")


def _quantize_q8_0(values: Values, blocks: Blocks) -> None:
    d = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    _put_factors(blocks, d, BlockType.Q8_0)
    scaled = values * _inverse(d)
    whole = np.trunc(scaled)
    blocks["q"] = whole + np.trunc(2 * (scaled - whole))  # halves away from zero, as C's roundf


def _quantize_q4_0(values: Values, blocks: Blocks) -> None:
    d = _largest(values) / np.float32(-8)
    _put_factors(blocks, d, BlockType.Q4_0)
    _put_nibbles(blocks, np.minimum((values * _inverse(d) + np.float32(8.5)).astype(np.uint8), 15))


def _largest(values: Values) -> Values:
    found: Values = np.take_along_axis(values, np.abs(values).argmax(axis=1, keepdims=True), axis=1)
    return found


def _put_nibbles(blocks: Blocks, q: Bytes) -> None:
    blocks["q"] = q[:, :16] | q[:, 16:] << 4


def _fit_q4_0(values: Values, importance: Values, blocks: Blocks) -> None:
    """Round with several factors; to each the best factor for what it rounded to follows; keep the best of all.

    With whole numbers q the weighted squared error of d q is least at d = sum(w v q) / sum(w q q), and then smaller
    than that of zeros by d sum(w v q).
    """
    largest, weighted = _largest(values), values * importance
    d, best = np.zeros_like(largest), np.zeros(len(values), np.float32)
    q = np.full(values.shape, 8, np.uint8)
    for reach in _REACHES:
        trial = np.clip(np.rint(values * _inverse(largest / np.float32(reach))), -8, 7)
        dot, square = np.einsum("bi,bi->b", weighted, trial), np.einsum("bi,bi,bi->b", importance, trial, trial)
        fitted = np.divide(dot, square, out=np.zeros_like(dot), where=square > 0)
        better = dot * fitted > best
        best[better], d[better, 0] = (dot * fitted)[better], fitted[better]
        q[better] = trial[better] + 8
    _put_factors(blocks, d, BlockType.Q4_0)
    _put_nibbles(blocks, q)


_REACHES = (-9.5, -9, -8.5, -8, -7.5, -7, -6.5)  # what the largest value of a block becomes, before it is cut to -8


_QUANTIZE: Mapping[BlockType, Callable[[Values, Blocks], None]] = {
    BlockType.Q8_0: _quantize_q8_0,
    BlockType.Q4_0: _quantize_q4_0,
}
