# SPDX-License-Identifier: Apache-2.0
"""Bytes on disk: files read in ranges that are checked against their length, and files written whole or not at all."""

import json
import os
import reprlib
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

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
        view, done = memoryview(out.data), 0
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

    Raises FileError when the disk refuses, and for a device or a pipe, whose place a file must not take.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_whole(Path(folder, "four")) as file:
    ...         _ = file.write(b"abcd")
    ...     os.listdir(folder)
    ['four']
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise FileError(f"expected the name of a file to write, got {path}, a device or a pipe: choose another")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise FileError(f"expected a folder to write {path} in: {error.strerror}") from None
    try:
        with os.fdopen(handle, "w+b", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        raise FileError(f"expected to write {path}, but: {error.strerror}; nothing was changed") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """A folder to fill with `written_whole`, which takes its place at `path` only when the block ends well.

    Raises FileError when there are files at `path` already, or when the disk refuses.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_folder(Path(folder, "new")) as new, written_whole(new / "four") as file:
    ...         _ = file.write(b"abcd")
    ...     os.listdir(Path(folder, "new"))
    ['four']
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileError(f"expected a new or empty folder to write, got {path} with files: choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise FileError(f"expected a folder to write {path} in: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.is_dir():
            path.rmdir()
        temporary.replace(path)
    except OSError as error:
        raise FileError(f"expected to write {path}, but: {error.strerror}; nothing was changed") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: Path, *, limit: int = 1 << 24) -> dict[str, Any]:
    """The object in a JSON file of at most `limit` bytes; raises FileError for anything else.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "config.json").write_text('{"a": 1}')
    ...     read_json(Path(folder, "config.json"))
    {'a': 1}
    """
    source = FileBytes(path)
    if source.size > limit:
        raise FileError(f"expected at most {limit} bytes of JSON in {path.name}, got {source.size}: give a checkpoint")
    return parse_json(source.read(0, source.size).tobytes(), path.name)


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in some bytes, no key twice; raises FileError for anything else.

    >>> parse_json(b"[]", "config.json")
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a JSON object in config.json, got a list: fetch the file again
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles)
    except FileError as error:
        raise FileError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"expected JSON in {where}, got something else ({error}): fetch the file again") from None
    if not isinstance(value, dict):
        raise FileError(f"expected a JSON object in {where}, got a {type(value).__name__}: fetch the file again")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON, whole or not at all.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "config.json"), {"a": 1})
    ...     read_json(Path(folder, "config.json"))
    {'a': 1}
    """
    with written_whole(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")


def listed_files(index: Path) -> list[Path]:
    """The files beside an index that its `weight_map` names; raises FileError for names that lead elsewhere.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "index.json"), {"weight_map": {"a": "1.h5", "b": ["1.h5", "2.h5"]}})
    ...     [path.name for path in listed_files(Path(folder, "index.json"))]
    ['1.h5', '2.h5']
    """
    names = read_json(index).get("weight_map")
    listed = (
        [each for value in names.values() for each in (value if isinstance(value, list) else [value])]
        if isinstance(names, dict)
        else []
    )
    if not listed or not all(isinstance(name, str) and _is_plain(name) for name in listed):
        raise FileError(f"expected a weight_map of names to files in {index.name}, got something else: fetch it again")
    return [index.with_name(name) for name in sorted(set(listed))]


def _is_plain(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..") and name.isprintable()


def shown(value: object) -> str:
    """A name or value from a file as an error may quote it: short, on one line, however long or nested it is.

    >>> shown("a name\\n" * 1000)
    'a name?a name?a name?a name?a name?a name?a name?a name?a name?a name?a name?a n'
    >>> shown([["nested"] * 1000])
    "[['nested', 'nested', 'nested', 'nested', 'nested', 'nested', ...]]"
    """
    text = value if isinstance(value, str) else reprlib.repr(value)
    return "".join(letter if letter.isprintable() else "?" for letter in text[:80])


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise FileError("expected every name once, got one twice: the file is damaged, fetch it again")
    return values


def _umask() -> int:
    mask = os.umask(0)  # the only way to ask for it is to set it
    os.umask(mask)
    return mask
