# SPDX-License-Identifier: Apache-2.0
"""The pieces of the forward pass against their formulas in float64."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from keras import ops
from numpy.typing import NDArray

from gemmary.base.config import PRESETS, GemmaConfig
from gemmary.formats.tensors import weights
from gemmary.model.gemma import _feed_forward, _Layer, embed, head, rotations
from gemmary.model.layers import product, project, rms_norm, rope_angles, rotate, sines, softcap
from gemmary.model.weights import backend_array, numpy_array
from gemmary.train.gradient import value_and_gradient

HALF_STEP = {"float32": 2.0**-24, "bfloat16": 2.0**-8}  # of what is rounded once, relative
TINY = GemmaConfig(vocab_size=8, num_layers=1, model_dim=6, num_heads=1, num_kv_heads=1, head_dim=4, mlp_dim=9)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)


def wide(array: Any) -> NDArray[np.float64]:
    """An array of the backend as float64."""
    return np.asarray(numpy_array(ops.cast(array, "float32")), np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("plus_one", [True, False])
def test_rms_norm_is_rounded_once(dtype: str, plus_one: bool) -> None:
    x, scale = backend_array(drawn(5, 640, scale=30), dtype), drawn(640, seed=1)
    exact = wide(x) / np.sqrt((wide(x) ** 2).mean(axis=1, keepdims=True) + 1e-6) * (scale.astype(np.float64) + plus_one)
    found = rms_norm(x, ops.convert_to_tensor(scale), eps=1e-6, plus_one=plus_one)
    assert found.dtype == x.dtype
    bound = (HALF_STEP[dtype] + 8 * HALF_STEP["float32"]) * np.abs(exact) + 2e-7  # of 1 + w, where w is near -1
    assert (np.abs(wide(found) - exact) <= bound).all()


def test_rms_norm_of_nothing_is_nothing() -> None:
    assert not wide(rms_norm(ops.zeros((2, 8)), ops.ones(8), eps=1e-6, plus_one=True)).any()


def test_a_scale_too_small_for_bfloat16_still_counts() -> None:
    scale = np.full(4, 2.0**-10, np.float32)  # in bfloat16 1 + w would be 1
    x = ops.convert_to_tensor(np.float32([1, 1, 1, 1]) * 100)
    np.testing.assert_allclose(wide(rms_norm(x, ops.convert_to_tensor(scale), eps=0.0, plus_one=True)), 1 + 2.0**-10)


@pytest.mark.parametrize(("base", "scale"), [(1e4, 1.0), (1e6, 1.0), (1e6, 8.0)])
def test_angles_are_those_of_float64_up_to_the_longest_context(base: float, scale: float) -> None:
    positions = np.int32([[0, 1, 511, 8191, 8192, 131_071]])
    exact = positions[0, :, None] / scale * base ** (-np.arange(0, 256, 2) / 256)
    found = wide(rope_angles(ops.convert_to_tensor(positions), 256, base, scale))[0]
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_neighbouring_positions_differ_where_bfloat16_has_one_number_for_both() -> None:
    assert float(ml_dtypes.bfloat16(8191)) == float(ml_dtypes.bfloat16(8192)) == 8192
    angles = wide(rope_angles(ops.convert_to_tensor(np.int32([[8191, 8192]])), 256, 1e4, 1.0))
    assert angles[0, 1, 0] - angles[0, 0, 0] == 1


def test_positions_in_floating_point_are_refused() -> None:
    with pytest.raises(TypeCheckError):
        rope_angles(ops.convert_to_tensor(np.float32([[8191]])), 256, 1e4, 1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("position", [0, 1, 4095, 8191])
def test_turned_heads_are_those_of_float64(position: int, dtype: str) -> None:
    x = backend_array(drawn(1, 1, 3, 256), dtype)
    angles = rope_angles(ops.convert_to_tensor(np.int32([[position]])), 256, 1e4, 1.0)
    found = wide(rotate(x, *sines(angles)))[0, 0]
    first, second = np.split(wide(x)[0, 0], 2, axis=1)
    angle = position * 1e4 ** (-np.arange(0, 256, 2) / 256)
    exact = np.concatenate([first * np.cos(angle) - second * np.sin(angle)] * 2, axis=1)
    exact[:, 128:] = second * np.cos(angle) + first * np.sin(angle)
    length = np.tile(np.hypot(first, second), 2)  # of each pair, on which an error of the angle acts
    angle_error = 2.0**-23 * position + 1e-6
    assert (np.abs(found - exact) <= HALF_STEP[dtype] * np.abs(exact) + angle_error * length).all()


def test_layers_with_a_window_turn_by_the_local_base_without_scale() -> None:
    config = PRESETS["gemma-3-27b-pt"]
    turns = rotations(config, ops.convert_to_tensor(np.int32([[1000]])))
    frequency = np.arange(0, 128, 2) / 128
    for is_local, angle in ((True, 1000 * 1e4**-frequency), (False, 1000 / 8 * 1e6**-frequency)):
        sin, cos = (wide(each)[0, 0, 0] for each in turns[is_local])
        both = np.concatenate([angle, angle])
        np.testing.assert_allclose(sin, np.sin(both) * np.repeat([-1, 1], 64), atol=3e-4)  # float32 knows 1000 to 6e-5
        np.testing.assert_allclose(cos, np.cos(both), atol=3e-4)


def test_projection_contracts_last_letters() -> None:
    x, weight = drawn(2, 3, 8), drawn(4, 5, 8, seed=1)
    exact = np.einsum("btd,nhd->btnh", x, weight, dtype=np.float64).reshape(2, 3, 20)
    np.testing.assert_allclose(wide(project(ops.convert_to_tensor(x), ops.convert_to_tensor(weight))), exact, atol=2e-6)


@pytest.mark.parametrize(
    "shapes", [((2, 5, 300), (300, 7)), ((2, 3, 5, 300), (2, 3, 300, 7)), ((1, 1, 300), (300, 900))]
)
def test_products_of_bfloat16_are_sums_in_float32(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    draw = np.random.default_rng(3)
    a, b = (draw.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in shapes)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    found: NDArray[np.float32] = numpy_array(product(*(backend_array(each, "bfloat16") for each in (a, b)), "float32"))
    # PyTorch and TensorFlow have rounded it before
    np.testing.assert_allclose(found, exact, rtol=2**-8, atol=1e-4 * 300**0.5)


@pytest.mark.parametrize("shapes", [((2, 5, 30), (30, 7)), ((2, 3, 5, 30), (2, 3, 30, 7))])
def test_slopes_of_products_are_those_of_float64(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    draw = np.random.default_rng(4)
    a, b = (draw.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in shapes)
    upstream = draw.standard_normal((*a.shape[:-1], b.shape[-1])).astype(ml_dtypes.bfloat16)
    weights: Any = backend_array(upstream, "bfloat16")

    def loss(each: dict[str, Any]) -> tuple[Any, Any]:
        return ops.sum(ops.cast(product(each["a"], each["b"], "bfloat16") * weights, "float32")), ()

    _, slopes = value_and_gradient(loss, {"a": backend_array(a, "bfloat16"), "b": backend_array(b, "bfloat16")})
    wide, a, b = (each.astype(np.float64) for each in (upstream, a, b))
    by_b = np.swapaxes(a, -1, -2) @ wide
    expected = {"a": wide @ np.swapaxes(b, -1, -2), "b": by_b if b.ndim > 2 else by_b.sum(axis=0)}
    for name, slope in slopes.items():
        found: NDArray[np.float32] = numpy_array(ops.cast(slope, "float32"))
        np.testing.assert_allclose(found, expected[name], rtol=2**-7, atol=0.05)


def test_soft_cap_is_the_hyperbolic_tangent() -> None:
    x = np.float32([-1e9, -60, -1e-3, 0, 2, 29, 1e9])
    np.testing.assert_allclose(wide(softcap(ops.convert_to_tensor(x), 30.0)), 30 * np.tanh(x / 30.0), rtol=1e-6)
    assert softcap(x, None) is x


def test_the_embedding_s_factor_is_rounded_to_the_activations() -> None:
    config = PRESETS["gemma-7b"].with_(vocab_size=8)
    ids = ops.convert_to_tensor(np.int32([[5]]))
    ones = np.ones((8, 3072), np.float32)
    assert math.sqrt(3072) == pytest.approx(55.4256, abs=1e-4)
    assert wide(embed(config, backend_array(ones, "bfloat16"), ids, "bfloat16"))[0, 0, 0] == 55.5
    assert wide(embed(config, backend_array(ones, "float32"), ids, "float32"))[0, 0, 0] == np.float32(math.sqrt(3072))


def test_the_mlp_gates_with_the_tanh_approximation_of_gelu() -> None:
    gate, up, down = drawn(9, 6, scale=2), drawn(9, 6, seed=1), drawn(6, 9, seed=2)
    names = {"mlp.gate": gate, "mlp.up": up, "mlp.down": down}
    layer = _Layer(TINY, {name: ops.convert_to_tensor(array) for name, array in names.items()})
    x = drawn(1, 4, 6, seed=3)
    before = x.astype(np.float64) @ gate.T.astype(np.float64)
    tanh = 0.5 * before * (1 + np.tanh(math.sqrt(2 / math.pi) * (before + 0.044715 * before**3)))
    exact = (tanh * (x.astype(np.float64) @ up.T)) @ down.T
    np.testing.assert_allclose(wide(_feed_forward(ops.convert_to_tensor(x), layer)), exact, rtol=0, atol=1e-5)


def test_the_head_norms_caps_and_reads_the_embedding() -> None:
    config = TINY.with_(final_softcap=2.0)
    shapes = {path: row.shape(config) for path, row, _ in weights(config)}
    table, norm, x = drawn(*shapes["embedding"]), drawn(*shapes["final_norm"], seed=1), drawn(1, 3, 6, seed=2)
    normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=-1, keepdims=True) + 1e-6) * (1 + norm)
    given = {"embedding": ops.convert_to_tensor(table), "final_norm": ops.convert_to_tensor(norm)}
    found = wide(head(config, given, ops.convert_to_tensor(x)))
    np.testing.assert_allclose(found, 2 * np.tanh(normed @ table.T / 2), rtol=0, atol=2e-6)
