# SPDX-License-Identifier: Apache-2.0
"""Open a checkpoint of any format; write one in any format."""

from pathlib import Path

from gemmary.base.errors import FileError
from gemmary.formats.content import Checkpoint
from gemmary.formats.gguf import read_gguf

__all__ = ["Checkpoint", "open_checkpoint"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's configuration, vocabulary and list of tensors; no tensor is read before it is asked for.

    Raises FileError for what is missing, damaged or of an unknown kind.

    >>> open_checkpoint(Path("no-such-file"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a checkpoint, got no file or folder no-such-file: ...
    """
    if not path.exists():
        raise FileError(f"expected a checkpoint, got no file or folder {path}: give the path of one")
    return read_gguf(path)
