# SPDX-License-Identifier: Apache-2.0
"""From a file's tensors to ours and back; values of configurations, checked as they are taken."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gemmary.base.config import PRESETS, GemmaConfig
from gemmary.base.errors import CheckpointError, FileError, InputError
from gemmary.formats.checkpoint import Checkpoint
from gemmary.formats.content import Entry, Fields, bind, cast, check_finite, check_fits, unbind
from gemmary.formats.tensors import Stored, Weight

NOTHING = re.compile("nothing")


def gguf(row: Weight, layer: int | None) -> tuple[str, Stored]:
    return row.gguf.at(layer), row.gguf


def torch(row: Weight, layer: int | None) -> tuple[str, Stored]:
    return row.torch.at(layer), row.torch


def test_bind_is_the_inverse_of_unbind(tiny: Checkpoint) -> None:
    for name_of in (gguf, torch):
        back = bind(tiny.config, unbind(tiny.config, tiny.tensors, name_of), name_of, NOTHING)
        assert back.keys() == tiny.tensors.keys()
        for path, read in tiny.tensors.items():
            np.testing.assert_allclose(back[path](), read(), atol=1e-7)


def test_nothing_is_read_before_it_is_asked_for(make_tiny: Callable[..., Checkpoint]) -> None:
    tiny, asked = make_tiny("gemma1"), []

    def counting(path: str) -> Callable[[], Any]:
        return lambda: asked.append(path) or tiny.tensors[path]()

    entries = unbind(tiny.config, {path: counting(path) for path in tiny.tensors}, gguf)
    tensors = bind(tiny.config, entries, gguf, NOTHING)
    assert not asked
    tensors["final_norm"]()
    assert asked == ["final_norm"]


def test_what_is_missing_unknown_or_of_another_shape_is_named(make_tiny: Callable[..., Checkpoint]) -> None:
    tiny = make_tiny("gemma1")
    entries = unbind(tiny.config, tiny.tensors, gguf)
    up, norm = "blk.2.ffn_up.weight", "output_norm.weight"
    without = {name: entry for name, entry in entries.items() if name != up}
    changed = {
        f"expected the tensor {up}, got {len(without)} others": without,
        "expected no other tensors than a Gemma's, got x.y": entries | {"x\ny": entries[up]},
        r"expected output_norm.weight of shape \(64,\), got \(65,\)": entries | {norm: one((65,))},
        r"expected output_norm.weight of shape \(64,\), got \(64, 1\)": entries | {norm: one((64, 1))},
        r"expected output_norm.weight of shape \(64,\), got \(\)": entries | {norm: one(())},
    }
    for error, found in changed.items():
        with pytest.raises(CheckpointError, match=error):
            bind(tiny.config, found, gguf, NOTHING)
    ignored = bind(tiny.config, entries | {"vision.a": entries[up]}, gguf, re.compile("vision"))
    assert ignored.keys() == tiny.tensors.keys()


def one(shape: tuple[int, ...]) -> Entry:
    return Entry(shape=shape, read=lambda: np.zeros(shape, np.float32))


def test_a_tensor_that_lies_about_its_shape_or_holds_nan_is_not_written(make_tiny: Callable[..., Checkpoint]) -> None:
    tiny = make_tiny("gemma1")
    wrong = {"final_norm": lambda: np.zeros(3, np.float32)}
    with pytest.raises(CheckpointError, match=r"expected final_norm of shape \(64,\), got \(3,\)"):
        unbind(tiny.config, {**tiny.tensors, **wrong}, gguf)["output_norm.weight"].read()
    wrong = {"final_norm": lambda: np.full(64, np.nan, np.float32)}
    with pytest.raises(CheckpointError, match="expected finite values in final_norm"):
        unbind(tiny.config, {**tiny.tensors, **wrong}, gguf)["output_norm.weight"].read()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1 << 20, (1 << 21) - 1])
def test_one_value_that_is_not_finite_is_found(dtype: str, value: float, at: int) -> None:
    array = np.zeros(1 << 21, dtype)
    array[at] = value
    with pytest.raises(CheckpointError, match="expected finite values in a, got NaN or infinity"):
        check_finite(array.reshape(2, -1), "a")


def test_large_values_whose_sum_overflows_are_finite() -> None:
    check_finite(np.full(1000, 3e38, np.float32), "a")
    check_finite(np.full(1000, 65504, np.float16), "a")
    check_finite(np.full((10, 10), 3e38, "bfloat16"), "a")
    check_finite(np.zeros((0, 3), np.float32), "a")


def test_a_cast_rounds_and_refuses_what_does_not_fit() -> None:
    values = np.float32([1, 1.0009766, -65504])
    assert cast(values, np.dtype(np.float16), "a").tolist() == [1, 1.0009765625, -65504]
    assert cast(values, np.dtype(np.float32), "a") is values
    with pytest.raises(InputError, match="expected values within float16 in a, got larger ones"):
        cast(np.float32([70000]), np.dtype(np.float16), "a")


@pytest.mark.parametrize("value", [None, 0, -1, 2**31, 1.0, "8", True, [8], {}])
def test_a_size_is_a_whole_number(value: Any) -> None:
    with pytest.raises(FileError, match=r"expected a whole number > 0 for heads in a\.json, got "):
        Fields({"heads": value}, "a.json").size("heads")
    assert Fields({"heads": 8}, "a.json").size("heads") == 8
    assert Fields({"heads": None}, "a.json").size("heads", 4) == 4  # null is as good as nothing


@pytest.mark.parametrize("value", [None, 0, -1.0, 1e31, float("nan"), float("inf"), "1", False, [1.0]])
def test_a_real_number_is_positive_and_finite(value: Any) -> None:
    with pytest.raises(FileError, match=r"expected a number > 0 for eps in a\.json, got "):
        Fields({"eps": value}, "a.json").real("eps")
    assert Fields({"eps": 1}, "a.json").real("eps") == 1.0


def test_optional_values_and_flags() -> None:
    fields = Fields({"g.cap": 30, "g.none": None, "g.yes": True, "g.one": 1}, "m.gguf", "g.")
    assert fields.optional("cap") == 30 and fields.optional("none", 50.0) is None and fields.optional("no", 50.0) == 50
    assert fields.flag("yes", False) is True and fields.flag("no", True) is True
    with pytest.raises(FileError, match=r"expected true or false for g\.one in m\.gguf, got 1"):
        fields.flag("one", False)


def test_a_long_value_is_quoted_short() -> None:
    with pytest.raises(FileError) as caught:
        Fields({"heads": "8\n" * 9999}, "a.json").size("heads")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_what_does_not_fit_is_named_with_its_value() -> None:
    config: GemmaConfig = PRESETS["gemma-3-4b-pt"]
    check_fits(config, "a program", rope_scale=True)
    with pytest.raises(InputError, match=r"that a program computes, got rope_scale=8\.0: write another format"):
        check_fits(config, "a program", query_scale=True, rope_scale=False)
