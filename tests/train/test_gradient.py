# SPDX-License-Identifier: Apache-2.0
"""What keeps its arguments alone has the gradient of what keeps everything, compiled or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from gemmary.model.layers import project
from gemmary.model.lora import LowRank
from gemmary.model.weights import backend_array, numpy_array
from gemmary.train import gradient
from gemmary.train.gradient import again, value_and_gradient


def part(scale: float, weights: dict[str, Any], x: Any, mask: Any) -> Any:
    """A product with what is learned beside what is not, and a mask, which has no gradient."""
    return ops.where(mask, ops.tanh(project(x, weights["matrix"])) * scale, 0.0) + weights["bias"]


def slopes_of(run: Callable[..., Any], dtype: str) -> dict[str, Any]:
    random = np.random.default_rng(0)
    x, base, down, up = (np.float32(random.standard_normal(shape)) for shape in ((1, 3, 8), (6, 8), (2, 8), (6, 2)))
    frozen, mask = backend_array(base, dtype), ops.convert_to_tensor(random.random((1, 3, 6)) < 0.5)
    learned = {name: backend_array(each, "float32") for name, each in (("x", x), ("down", down), ("up", up))}

    def loss(each: dict[str, Any]) -> tuple[Any, Any]:
        matrix = LowRank(frozen, each["down"], each["up"])
        y = run(2.0, {"matrix": matrix, "bias": ops.ones(6, dtype)}, ops.cast(each["x"], dtype), mask)
        return ops.sum(ops.square(ops.cast(y, "float32"))), ops.zeros(())

    (value, _), slopes = value_and_gradient(loss, learned)
    return {"value": numpy_array(value), **{name: numpy_array(each) for name, each in slopes.items()}}


def assert_equal(found: dict[str, Any], expected: dict[str, Any], bound: float) -> None:
    for name, each in expected.items():
        np.testing.assert_allclose(found[name], each, rtol=bound, atol=bound * np.abs(each).max(), err_msg=name)


def test_what_is_computed_again_has_the_same_gradient() -> None:
    assert_equal(slopes_of(again(part), "float32"), slopes_of(part, "float32"), 1e-6)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="other backends compile whole steps")
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_so_have_the_libraries_of_both_passes(
    dtype: str, bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient, "cache_folder", lambda: tmp_path)
    fresh = gradient._again_on_torch.__wrapped__(part)
    assert_equal(slopes_of(fresh, dtype), slopes_of(part, dtype), bound)
    assert [each.suffix for each in (tmp_path / "torch").iterdir()] == [".pt2"] * 2
