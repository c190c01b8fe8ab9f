# SPDX-License-Identifier: Apache-2.0
"""Block formats, bit for bit against the gguf package, which is written from ggml's own source."""

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from gemmary.base.errors import CheckpointError, InputError
from gemmary.formats.quantize import LAYOUTS, BlockType, dequantize, quantize

BLOCKS = [kind for kind in BlockType if not kind.is_float]
WRITTEN = [BlockType.F32, BlockType.F16, BlockType.BF16, BlockType.Q8_0, BlockType.Q4_0]


def random_blocks(kind: BlockType, shape: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Every bit pattern of the integers; factors of both signs, from the smallest to the largest."""
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, kind.num_bytes(shape), dtype=np.uint8)
    blocks = raw.view(LAYOUTS[kind])
    for name in ("d", "m", "e"):
        if name in (blocks.dtype.names or ()):
            half = generator.integers(0, 1 << 16, blocks.size, dtype=np.uint16).view(np.float16)
            blocks[name] = np.where(np.isfinite(half), half, np.float16(0.5))
    return raw


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(1, 256), (7, 512), (600, 256)])  # the last is more than is worked on at a time
def test_blocks_mean_what_ggml_says_bit_for_bit(kind: BlockType, shape: tuple[int, int]) -> None:
    raw = random_blocks(kind, shape)
    expected = quants.dequantize(raw.reshape(shape[0], -1), GGMLQuantizationType[kind.name])
    assert dequantize(raw, kind, shape).tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("kind", [BlockType.F32, BlockType.F16, BlockType.BF16], ids=lambda kind: kind.name)
def test_float_types_mean_what_ggml_says_bit_for_bit(kind: BlockType) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(LAYOUTS[kind])
    raw = values.view(np.uint8).reshape(3, -1)
    theirs = raw.view(np.float16 if kind is BlockType.F16 else np.float32) if kind is not BlockType.BF16 else raw
    expected = quants.dequantize(theirs, GGMLQuantizationType[kind.name])
    assert dequantize(raw.ravel(), kind, (3, 5)).tobytes() == expected.astype(np.float32).tobytes()


def hard_values() -> NDArray[np.float32]:
    """Rows of 64: weights, all zeros, halves that round, one large value, tiny ones, negative zeros."""
    generator = np.random.default_rng(1)
    rows = [generator.normal(0, scale, 64) for scale in (1e-3, 0.05, 1, 100)]
    rows += [np.zeros(64), np.full(64, -0.0), np.linspace(-127, 127, 64).round() / 2, np.arange(64) - 31.5]
    rows += [np.r_[-8.0, np.arange(63) / 8 - 4], np.r_[1e4, generator.normal(size=63)], np.full(64, 1e-9)]
    return np.asarray(rows, np.float32)


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.name)
def test_values_are_rounded_as_ggml_rounds_them(kind: BlockType) -> None:
    values = hard_values()
    expected = quants.quantize(values, GGMLQuantizationType[kind.name])
    assert quantize(values, kind).tobytes() == expected.tobytes()


@pytest.mark.parametrize(("kind", "steps"), [(BlockType.Q8_0, 127), (BlockType.Q4_0, 8)])
def test_the_error_is_at_most_half_a_step(kind: BlockType, steps: int) -> None:
    values = np.random.default_rng(2).normal(0, 0.05, (500, 1024)).astype(np.float32)
    back = dequantize(quantize(values, kind).ravel(), kind, values.shape)
    largest = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True)
    error = np.abs((back - values).reshape(-1, 32)) / largest
    # half a step; the factor itself is a float16; and -8..7 has no +8, where a whole step is lost
    lost = 1 if kind is BlockType.Q4_0 else 0.5
    assert error.max() <= (lost + 1e-3 * steps) / steps


@pytest.mark.parametrize("kind", [BlockType.Q8_0, BlockType.Q4_0])
def test_quantising_what_was_quantised_changes_nothing(kind: BlockType) -> None:
    once = quantize(hard_values(), kind)
    values = dequantize(once.ravel(), kind, (11, 64))
    again = dequantize(quantize(values, kind).ravel(), kind, (11, 64))
    np.testing.assert_allclose(again, values, rtol=2**-11)


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_factor_that_is_not_finite_is_refused(kind: BlockType, value: float) -> None:
    raw = random_blocks(kind, (2, 256))
    raw.view(LAYOUTS[kind])["d"][-1] = value
    with pytest.raises(CheckpointError, match=f"got NaN or infinity in a block of {kind.name}"):
        dequantize(raw, kind, (2, 256))


@pytest.mark.parametrize("kind", list(BlockType), ids=lambda kind: kind.name)
def test_a_wrong_number_of_bytes_is_refused(kind: BlockType) -> None:
    raw = np.zeros(kind.num_bytes((2, 256)), np.uint8)
    for wrong in (raw[:-1], np.zeros(raw.size + kind.block_bytes, np.uint8), raw[:0]):
        with pytest.raises(CheckpointError, match=f"expected {raw.size} bytes for {kind.name}"):
            dequantize(wrong, kind, (2, 256))


def test_rows_that_are_not_whole_blocks_are_refused() -> None:
    with pytest.raises(InputError, match="expected rows of a multiple of 32 values for Q4_0, got 33"):
        quantize(np.zeros((2, 33), np.float32), BlockType.Q4_0)
    with pytest.raises(InputError, match="expected rows of a multiple of 256 values for Q6_K, got 128"):
        BlockType.Q6_K.num_bytes((2, 128))


@pytest.mark.parametrize("kind", [kind for kind in BLOCKS if kind not in WRITTEN], ids=lambda kind: kind.name)
def test_types_that_are_only_read_say_what_is_written(kind: BlockType) -> None:
    with pytest.raises(InputError, match=r"can be written \(F32, F16, BF16, Q8_0, Q4_0\)"):
        quantize(np.zeros((1, 256), np.float32), kind)


@pytest.mark.parametrize("kind", [BlockType.Q8_0, BlockType.Q4_0])
def test_values_beyond_the_range_of_a_factor_are_refused(kind: BlockType) -> None:
    with pytest.raises(InputError, match=f"expected values within {kind.name}, got larger ones"):
        quantize(np.full((1, 32), 1e9, np.float32), kind)


@pytest.mark.parametrize("kind", [BlockType.Q8_0, BlockType.Q4_0])
def test_values_below_the_range_of_a_factor_become_zero(kind: BlockType) -> None:
    values = np.zeros((2, 32), np.float32)
    values[:, 3] = [1e-44, -1e-38]
    assert not dequantize(quantize(values, kind).ravel(), kind, (2, 32)).any()


def test_a_block_has_the_sizes_of_ggml() -> None:
    from gguf import GGML_QUANT_SIZES

    for kind in BlockType:
        assert (kind.block_length, kind.block_bytes) == GGML_QUANT_SIZES[GGMLQuantizationType[kind.name]]
        assert kind == GGMLQuantizationType[kind.name].value


def test_half_precision_arrays_are_quantised_as_their_values() -> None:
    values = np.random.default_rng(3).normal(size=(2, 64)).astype(ml_dtypes.bfloat16)
    assert quantize(values, BlockType.Q8_0).tobytes() == quantize(values.astype(np.float32), BlockType.Q8_0).tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_fitted_factors_have_the_least_weighted_error(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_t(4, (300, 96)).astype(np.float32)
    importance = generator.exponential(1, 96).astype(np.float32) ** 2

    def errors(raw: NDArray[np.uint8], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        return (weights * (dequantize(raw.ravel(), BlockType.Q4_0, values.shape) - values) ** 2).reshape(-1, 32).sum(1)

    ones = np.ones(96, np.float32)
    rounded, fitted, alike = (quantize(values, BlockType.Q4_0, each) for each in (None, importance, ones))
    assert (errors(fitted, importance) <= errors(rounded, importance) * 1.001).all()  # d is rounded to float16
    assert (errors(alike, ones) <= errors(rounded, ones) * 1.001).all()
    assert errors(fitted, importance).sum() < 0.95 * errors(alike, importance).sum()
    assert errors(alike, ones).sum() < 0.95 * errors(rounded, ones).sum()


def test_fitting_is_for_four_bits_and_bears_all_values() -> None:
    importance = np.linspace(0, 1, 64, dtype=np.float32)
    for kind in (BlockType.Q8_0, BlockType.BF16):
        assert quantize(hard_values(), kind, importance).tobytes() == quantize(hard_values(), kind).tobytes()
    fitted = quantize(hard_values(), BlockType.Q4_0, importance)
    found = dequantize(fitted.ravel(), BlockType.Q4_0, hard_values().shape)
    assert np.isfinite(found).all() and not found[~hard_values().any(axis=1)].any()


def test_what_four_bits_can_hold_is_kept() -> None:
    whole = np.random.default_rng(0).integers(-8, 8, (50, 32)).astype(np.float32)
    whole[:, 0] = -8
    fitted = quantize(whole * np.float32(0.25), BlockType.Q4_0, np.ones(32, np.float32))
    np.testing.assert_array_equal(dequantize(fitted.ravel(), BlockType.Q4_0, (50, 32)), whole / 4)
