# SPDX-License-Identifier: Apache-2.0
"""A checkpoint goes through every format and comes back bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
