# SPDX-License-Identifier: Apache-2.0
"""Parts of a pass on PyTorch: a library computes what the trace does, is kept, and is done without where it must be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from gemmary.model.compiled import compile_part
from gemmary.model.weights import numpy_array

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="other backends compile whole passes"),
]


def part(power: int, x: Any, more: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Something of everything: a constant, a nest of arrays, a product, a softmax, several results."""
    y = ops.softmax(ops.matmul(x**power, ops.transpose(more["a"])), axis=-1)
    return y, [ops.where(more["b"], y, -2.0e38), ops.cast(x, "float32")]


def arguments(rows: int = 3) -> tuple[Any, dict[str, Any]]:
    random = np.random.default_rng(0)
    x, a, b = random.standard_normal((rows, 8)), random.standard_normal((5, 8)), random.random((rows, 5)) < 0.5
    return ops.convert_to_tensor(x, "float32"), {
        "a": ops.convert_to_tensor(a, "float32"),
        "b": ops.convert_to_tensor(b),
    }


def flat(results: Any) -> list[Any]:
    return [numpy_array(each) for each in keras.tree.flatten(results)]


def assert_right(run: Callable[..., Any], rows: int = 3) -> None:
    given = arguments(rows)
    found = run(2, *given)
    assert isinstance(found, tuple)
    assert isinstance(found[1], list)
    for one, other in zip(flat(found), flat(part(2, *given)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library."""
    made = tmp_path_factory.mktemp("libraries")
    assert_right(compile_part(part, made))
    assert [each.suffix for each in made.iterdir()] == [".pt2"]
    return made


def test_a_trace_computes_what_the_function_does() -> None:
    run = compile_part(part)
    for rows in (3, 1, 3):
        assert_right(run, rows)


def test_a_tensor_given_twice_is_refused() -> None:
    x, _ = arguments()
    with pytest.raises(ValueError, match="given once each, got one twice"):
        compile_part(lambda _, a, b: a + b)(None, x, x)


def test_what_was_compiled_is_not_compiled_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("gemmary.model.torch_parts._compile", lambda flatly, flat, path, settings: asked.append(path))
    assert_right(compile_part(part, folder))
    assert asked == []
    x, more = arguments()
    compile_part(part, folder)(2, ops.transpose(ops.convert_to_tensor(numpy_array(x).T.copy())), more)
    assert len(asked) == 1  # other strides want a library of their own


def test_a_record_tells_apart_what_computes_otherwise() -> None:
    import torch

    from gemmary.model.torch_parts import _Record

    def record(function: Callable[..., Any]) -> str:
        tensors = torch.ones(2, 2), torch.ones(2, 2)
        noted = _Record(tensors)
        with noted:
            results = function(*tensors)
        return noted.told(results)

    known, alike = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])
    functions = [
        lambda a, b: [a @ b],
        lambda a, b: [b @ a],
        lambda a, b: [a @ b, a],
        lambda a, b: [(a @ b).sum(0)],
        lambda a, b: [(a @ b).sum(1)],
        lambda a, b: [a * 2.0],
        lambda a, b: [a * 3.0],
        lambda a, b: [a * known],
        lambda a, b: [a * (known + 1.0)],
        lambda a, b: [a],
    ]
    assert len({record(each) for each in functions}) == len(functions)
    assert record(lambda a, b: [(a @ b) * known]) == record(lambda x, y: [torch.mm(x, y) * alike])
    freed = record(lambda a, b: [(a + 1.0).sum() + (b + 1.0).sum()])  # the second may lie where the first has lain
    assert freed != record(lambda a, b: [(a + 1.0).sum() + (a + 1.0).sum()])


def test_a_damaged_library_is_compiled_anew(folder: Path, tmp_path: Path) -> None:
    [known] = folder.iterdir()
    (tmp_path / known.name).write_bytes(known.read_bytes()[:10_000])
    assert_right(compile_part(part, tmp_path))
    assert (tmp_path / known.name).stat().st_size > 10_000


def test_without_a_compiler_or_a_place_to_write_there_is_a_trace(tmp_path: Path) -> None:
    import torch

    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="expected to compile C\\+\\+, but expected a folder to write"):
        assert_right(compile_part(part, tmp_path / "file" / "folder"))
    run = compile_part(part, tmp_path / "folder")
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "/nonexistent")}),
        pytest.warns(UserWarning, match="PyTorch takes half as long again: .*No working C\\+\\+ compiler"),
    ):
        assert_right(run)
    assert_right(run, rows=1)  # it does not try again, nor warn
    assert list((tmp_path / "folder").iterdir()) == []
