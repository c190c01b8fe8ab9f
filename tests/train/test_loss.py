# SPDX-License-Identifier: Apache-2.0
"""The chunked loss is the plain one: its value, its gradients, and how much memory it takes."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.typing import NDArray

from gemmary.model.weights import numpy_array
from gemmary.train.gradient import value_and_gradient
from gemmary.train.loss import token_log_probs

SIZES = {"tokens": 10, "dim": 16, "vocab": 50}


def drawn() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((SIZES["tokens"], SIZES["dim"])).astype(np.float32)
    table = draw.standard_normal((SIZES["vocab"], SIZES["dim"])).astype(np.float32)
    return x, table, draw.integers(0, SIZES["vocab"], len(x), np.int32), draw.random(len(x), np.float32)


def plain(cap: float | None) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Value and gradients of the weighted sum of log-probabilities, written out in float64."""
    x, table, targets, weights = (each.astype(np.float64) if each.dtype.kind == "f" else each for each in drawn())
    raw = x @ table.T
    logits = raw if cap is None else np.tanh(raw / cap) * cap
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    chosen = np.eye(len(table))[targets]
    slopes = weights[:, None] * (chosen - shares) * (1 if cap is None else 1 - np.tanh(raw / cap) ** 2)
    return float(np.sum(weights * np.log((shares * chosen).sum(1)))), slopes @ table, slopes.T @ x


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 4, 10, 64])
@pytest.mark.parametrize("learns_table", [False, True])
def test_value_and_gradients_are_those_of_the_plain_loss(cap: float | None, chunk: int, learns_table: bool) -> None:
    x, table, targets, weights = map(ops.convert_to_tensor, drawn())

    def loss(learned: dict[str, object]) -> tuple[object, object]:
        head = learned.get("table", table)
        found = token_log_probs(learned["x"], head, targets, cap=cap, learns_table=learns_table, chunk=chunk)
        return ops.sum(found * weights), weights

    learned = {"x": x, "table": table} if learns_table else {"x": x}
    (value, _), slopes = value_and_gradient(loss, learned)
    expected, by_x, by_table = plain(cap)
    np.testing.assert_allclose(float(value), expected, rtol=1e-5)
    np.testing.assert_allclose(numpy_array(slopes["x"]), by_x, rtol=0, atol=1e-5)
    if learns_table:
        np.testing.assert_allclose(numpy_array(slopes["table"]), by_table, rtol=0, atol=1e-5)


def test_a_sure_token_keeps_its_small_gradient_in_bfloat16() -> None:
    table = np.zeros((SIZES["vocab"], 4), np.float32)
    table[0, 0], table[1:, 1] = 1, 1
    hidden = np.float32([[12, 0, 0, 0]])  # 1 - p is 0.0003, and p in bfloat16 is 1

    def loss(learned: dict[str, object]) -> tuple[object, object]:
        head, target = ops.cast(table, "bfloat16"), ops.array([0], "int32")
        return ops.sum(token_log_probs(learned["x"], head, target, cap=None, learns_table=False)), target

    _, slopes = value_and_gradient(loss, {"x": ops.cast(hidden, "bfloat16")})
    doubt = 1 - np.exp(12) / (np.exp(12) + SIZES["vocab"] - 1)
    expected = np.float32([[doubt, -doubt, 0, 0]])
    np.testing.assert_allclose(numpy_array(ops.cast(slopes["x"], "float32")), expected, rtol=0.01)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only XLA says how much memory a program takes")
def test_memory_grows_with_the_chunk_and_not_with_the_length() -> None:
    import jax
    import jax.numpy as jnp

    def peak(tokens: int, chunk: int) -> int:
        def loss(x: object, table: object, targets: object) -> object:
            return jnp.sum(token_log_probs(x, table, targets, cap=None, learns_table=False, chunk=chunk))

        shapes = (
            jax.ShapeDtypeStruct((tokens, 8), "float32"),
            jax.ShapeDtypeStruct((65_536, 8), "float32"),
            jax.ShapeDtypeStruct((tokens,), "int32"),
        )
        found = jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis()
        assert found is not None
        return int(found.temp_size_in_bytes)

    logits = 65_536 * 4  # bytes of one token's
    assert peak(512, 16) < 6 * 16 * logits < 512 * logits
    assert peak(512, 16) < 1.2 * peak(128, 16)
    assert 1.5 * peak(512, 16) < peak(512, 32)
