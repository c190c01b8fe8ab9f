# SPDX-License-Identifier: Apache-2.0
"""Bytes on disk: files read in ranges that are checked against their length, and files written whole or not at all."""

import os
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import FileError


class FileBytes:
    """An open file, read in ranges; closed when no reader of it is left.

    Ranges are read, not mapped: a file cut short meanwhile gives an error and not a dead process, the pages do not
    count as ours, and a file that is replaced while open keeps its old bytes here.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "four")
    ...     _ = path.write_bytes(b"abcd")
    ...     FileBytes(path).read(1, 2).tobytes()
    b'bc'
    """

    def __init__(self, path: Path) -> None:
        """Open the file; raises FileError when that is not possible."""
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise FileError(f"expected a readable file, got {path}: {error.strerror}") from None
        self._lock = threading.Lock()
        weakref.finalize(self, self._file.close)

    def read(self, start: int, length: int) -> NDArray[np.uint8]:
        """`length` bytes from `start`; raises FileError when the file does not hold them."""
        if start < 0 or length < 0 or start + length > self.size:
            raise FileError(
                f"expected bytes {start} to {start + length} in {self.path.name}, got a file of {self.size}: "
                "it is truncated or damaged, fetch it again"
            )
        out = np.empty(length, np.uint8)
        view, done = memoryview(out), 0
        with self._lock:
            self._file.seek(start)
            while done < length:
                count = self._file.readinto(view[done:])
                if not count:
                    raise FileError(f"expected {self.size} bytes in {self.path.name}, got fewer: it was cut while open")
                done += count
        return out


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its place at `path` only when the block ends well and its bytes are on the disk.

    Raises FileError when the disk refuses.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_whole(Path(folder, "four")) as file:
    ...         _ = file.write(b"abcd")
    ...     os.listdir(folder)
    ['four']
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise FileError(f"expected a folder to write {path} in: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        raise FileError(f"expected to write {path}, but: {error.strerror}; nothing was changed") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)  # the only way to ask for it is to set it
    os.umask(mask)
    return mask
