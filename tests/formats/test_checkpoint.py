# SPDX-License-Identifier: Apache-2.0
"""A checkpoint goes through every format and comes back bit for bit."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.base.errors import FileError, InputError
from gemmary.formats.checkpoint import Checkpoint, Format, open_checkpoint, write_checkpoint

NAMES: dict[str, str] = {"gguf": "model.gguf", "safetensors": "folder", "keras": "preset", "torch": "model.ckpt"}


def bits(checkpoint: Checkpoint, dtype: str = "float32") -> dict[str, bytes]:
    return {path: read().astype(dtype).tobytes() for path, read in checkpoint.tensors.items()}


def through(checkpoint: Checkpoint, format: Format, folder: Path, dtype: str = "float32") -> Checkpoint:
    path = folder / NAMES[format]
    write_checkpoint(checkpoint, path, format=format, dtype=dtype)
    return open_checkpoint(path)


@pytest.mark.parametrize("format", NAMES)
def test_what_is_written_is_read_back_bit_for_bit(tiny: Checkpoint, format: Format, tmp_path: Path) -> None:
    back = through(tiny, format, tmp_path)
    assert back.config == tiny.config
    assert bits(back) == bits(tiny)
    assert back.vocabulary is not None and tiny.vocabulary is not None
    assert back.vocabulary.pieces == tiny.vocabulary.pieces
    np.testing.assert_array_equal(back.vocabulary.kinds, tiny.vocabulary.kinds)


def test_a_chain_of_formats_changes_no_bit(tiny: Checkpoint, tmp_path: Path) -> None:
    current = tiny
    for at, format in enumerate(["safetensors", "gguf", "keras", "torch", "safetensors"]):
        current = through(current, format, tmp_path / str(at))  # type: ignore[arg-type]
    first, last = (tmp_path / at / "folder" / "model.safetensors" for at in ("0", "4"))
    assert first.read_bytes() == last.read_bytes()


@pytest.mark.parametrize("format", NAMES)
def test_bfloat16_survives_every_format(make_tiny: Callable[..., Checkpoint], format: Format, tmp_path: Path) -> None:
    tiny = make_tiny("gemma3", dtype="bfloat16")
    back = through(tiny, format, tmp_path, "bfloat16")
    assert back.tensors["layers.0.mlp.gate"]().dtype == "bfloat16"
    assert bits(back, "bfloat16") == bits(tiny, "bfloat16")


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_any_format_becomes_any_other(
    first: Format, second: Format, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    tiny = make_tiny("gemma2", dtype="float16")
    back = through(through(tiny, first, tmp_path / "1", "float16"), second, tmp_path / "2", "float16")
    assert back.config == tiny.config and bits(back, "float16") == bits(tiny, "float16")


@pytest.mark.parametrize("name", ["model.txt", "model", "model.bin.zip"])
def test_a_file_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"nothing of ours")
    with pytest.raises(FileError, match=r"expected a \.gguf, \.safetensors or \.ckpt file, or a folder"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "model.ckpt", "model.weights.h5", "config.json"])
def test_an_empty_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileError):
        open_checkpoint(tmp_path / name)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"expected model\.safetensors or model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_the_format_is_seen_from_the_content(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    tiny = make_tiny("gemma1")
    for format, name in NAMES.items():
        back = through(tiny, format, tmp_path)  # type: ignore[arg-type]
        if (tmp_path / name).is_file():
            (tmp_path / name).rename(tmp_path / f"{format}.other")
            assert bits(open_checkpoint(tmp_path / f"{format}.other")) == bits(back)
    for inner in ("folder/model.safetensors", "folder/config.json", "preset/model.weights.h5", "preset/config.json"):
        assert bits(open_checkpoint(tmp_path / inner)) == bits(tiny)


@pytest.mark.parametrize(
    ("format", "dtype", "error"),
    [
        ("onnx", "float32", "expected a format of gguf, safetensors, keras, torch, got 'onnx'"),
        ("gguf", "int8", "expected a precision of float32, float16, bfloat16, q8_0, q4_0, got 'int8'"),
        ("torch", "q8_0", "expected float32, float16 or bfloat16 for torch, got q8_0: write gguf"),
    ],
)
def test_unknown_formats_and_precisions_are_refused(format: Any, dtype: Any, error: str, tiny: Checkpoint) -> None:
    with pytest.raises(InputError, match=error):
        write_checkpoint(tiny, Path("nowhere"), format=format, dtype=dtype)


@pytest.mark.parametrize("format", NAMES)
def test_values_beyond_a_precision_are_refused_and_nothing_is_left(
    format: Format, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    tiny = make_tiny("gemma1")
    large = {"layers.1.mlp.up": lambda: np.full((96, 64), 1e6, np.float32)}
    checkpoint = Checkpoint(config=tiny.config, tensors={**tiny.tensors, **large}, vocabulary=None)
    with pytest.raises(InputError, match=r"expected values within float16 in .*, got larger ones"):
        write_checkpoint(checkpoint, tmp_path / NAMES[format], format=format, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_a_vocabulary_has_none_anywhere(
    make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    tiny = make_tiny("gemma3")
    bare = Checkpoint(config=tiny.config, tensors=tiny.tensors, vocabulary=None)
    for format in NAMES:
        assert through(bare, format, tmp_path / format).vocabulary is None  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_default_goes_through_a_chain_of_formats_bit_for_bit(default_checkpoint: Path, tmp_path: Path) -> None:
    current, sums = open_checkpoint(default_checkpoint), []
    for at, format in enumerate(["safetensors", "gguf", "keras", "safetensors"]):
        folder = tmp_path / str(at)
        current = through(current, format, folder)  # type: ignore[arg-type]
        if format == "safetensors":
            with (folder / "folder" / "model.safetensors").open("rb") as file:
                sums.append(hashlib.file_digest(file, "sha256").hexdigest())
        shutil.rmtree(tmp_path / str(at - 1), ignore_errors=True)
    assert sums[0] == sums[1]
