# SPDX-License-Identifier: Apache-2.0
"""Open a checkpoint of any format; write one in any format.

gguf          one file, llama.cpp's              float32 float16 bfloat16 q8_0 q4_0 (reads more, see quantize.py)
safetensors   a folder, transformers'            float32 float16 bfloat16
keras         a folder, KerasHub's preset        float32 float16 bfloat16
torch         a file, gemma_pytorch's .ckpt      float32 float16 bfloat16
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import FileError, InputError
from gemmary.formats.content import Checkpoint
from gemmary.formats.gguf import read_gguf, write_gguf
from gemmary.formats.keras_file import read_keras, write_keras
from gemmary.formats.names import Format, Precision
from gemmary.formats.quantize import BlockType
from gemmary.formats.safetensors import read_safetensors, write_safetensors
from gemmary.formats.storage import FileBytes
from gemmary.formats.torch_file import read_torch, write_torch

__all__ = ["Checkpoint", "Format", "Precision", "open_checkpoint", "write_checkpoint"]

_BLOCKS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's configuration, vocabulary and list of tensors; no tensor is read before it is asked for.

    Raises FileError for what is missing, damaged or of an unknown kind.

    >>> open_checkpoint(Path("no-such-file"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a checkpoint, got no file or folder no-such-file: ...
    """
    if not path.exists():
        raise FileError(f"expected a checkpoint, got no file or folder {path}: give the path of one")
    if path.is_dir():
        return (read_keras if any(path.glob("model.weights.*")) else read_safetensors)(path)
    beginning = FileBytes(path).read(0, min(4, path.stat().st_size)).tobytes()
    if beginning == b"GGUF":
        return read_gguf(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if beginning[:2] == b"PK" or path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        return read_torch(path)
    if path.suffix in (".h5", ".json"):
        return open_checkpoint(path.parent)
    raise FileError(
        f"expected a .gguf, .safetensors or .ckpt file, or a folder of Hugging Face or KerasHub, got {path.name} of "
        f"another kind: give one of these"
    )


def write_checkpoint(
    checkpoint: Checkpoint,
    path: Path,
    *,
    format: Format,
    dtype: Precision = "float32",
    importance: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Write a checkpoint tensor by tensor; `path` holds all of it or, after an error, what it held before.

    `importance` says, by a weight's path, what an error in each column of its matrix matters when it is rounded to four
    bits; without it values are rounded as ggml's reference does. Raises InputError for a configuration, a shape or a
    precision that the format cannot hold.

    >>> from gemmary.base.config import PRESETS
    >>> nothing = Checkpoint(config=PRESETS["gemma-2b"], tensors={}, vocabulary=None)
    >>> write_checkpoint(nothing, Path("new"), format="safetensors", dtype="q4_0")
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected float32, float16 or bfloat16 for safetensors, got q4_0: write gguf
    """
    if dtype not in _BLOCKS:
        raise InputError(f"expected a precision of {', '.join(get_args(Precision))}, got {dtype!r}")
    if format == "gguf":
        write_gguf(checkpoint, path, BlockType[_BLOCKS[dtype]], importance)
        return
    if format not in _WRITERS:
        raise InputError(f"expected a format of {', '.join(get_args(Format))}, got {format!r}")
    if dtype.startswith("q"):
        raise InputError(f"expected float32, float16 or bfloat16 for {format}, got {dtype}: write gguf")
    _WRITERS[format](checkpoint, path, dtype)


_WRITERS: Mapping[str, Callable[[Checkpoint, Path, str], None]] = {
    "safetensors": write_safetensors,
    "keras": write_keras,
    "torch": write_torch,
}
