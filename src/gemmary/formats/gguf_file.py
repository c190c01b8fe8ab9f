# SPDX-License-Identifier: Apache-2.0
"""The GGUF container, llama.cpp's file: typed metadata, a list of tensors, then their bytes.

    "GGUF" version tensors keys | key type value ... | name dims type offset ... | padding | bytes ...

Everything is little-endian; strings and arrays carry 64-bit lengths, so nothing is allocated before a length is checked
against the file's. Our own reader because start-up reads 262,144 pieces: 0.1 s here, seconds with the `gguf` package.
Layout: ggml's docs/gguf.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import CheckpointError, FileError, InputError
from gemmary.formats.content import Entry, cast
from gemmary.formats.quantize import LAYOUTS, BlockType, dequantize, quantize
from gemmary.formats.storage import FileBytes, shown, written_whole

Value = int | float | bool | str | tuple[str, ...] | NDArray[Any]

_ALIGNMENT = 32
_VERSION = 3
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
_SCALARS: Mapping[int, np.dtype[Any]] = {  # GGUF's number of a metadata type
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    _UINT32: np.dtype("<u4"),
    5: np.dtype("<i4"),
    _FLOAT32: np.dtype("<f4"),
    _BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """Where one tensor lies in the file.

    >>> GgufTensor(kind=BlockType.Q4_0, shape=(2, 64), start=0).num_bytes
    72
    """

    kind: BlockType
    shape: tuple[int, ...]  # outermost first
    start: int  # from the beginning of the file

    @property
    def num_bytes(self) -> int:
        """Bytes it takes.

        >>> GgufTensor(kind=BlockType.F32, shape=(3,), start=0).num_bytes
        12
        """
        return self.kind.num_bytes(self.shape)


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """The head of a GGUF file: its metadata and where its tensors lie.

    >>> GgufFile(path=Path("m.gguf"), metadata={"general.architecture": "gemma"}, tensors={}).metadata
    {'general.architecture': 'gemma'}
    """

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does; a folder does not.

    >>> is_gguf(Path("no-such-file"))
    False
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


_MAGIC = b"GGUF"


def read_head(path: Path) -> GgufFile:
    """Read the metadata and the list of tensors; raises FileError for a damaged or foreign file.

    >>> read_head(Path("no-such-file"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a readable file, got no-such-file: No such file or directory
    """
    try:
        with path.open("rb") as file:
            return _Head(file, path).parse()
    except OSError as error:
        raise FileError(f"expected a readable file, got {path}: {error.strerror}") from None


class _Head:
    """Reads the head in order, checking every length against what is left of the file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._read, self._path = file.read, path
        self._tell = file.tell
        self._size = path.stat().st_size

    def parse(self) -> GgufFile:
        if self._take(4) != _MAGIC:
            raise FileError(f"expected a GGUF file, got {self._path.name} with another beginning: give a checkpoint")
        version = self._number(4)
        if version not in (2, _VERSION):
            raise FileError(f"expected GGUF version 2 or 3, got {version}: convert it again with a current llama.cpp")
        num_tensors, num_keys = self._count(24), self._count(13)
        metadata: dict[str, Value] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"the key {shown(key)} once", "it twice")
            metadata[key] = self._value(self._number(4))
        found = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
            raise self._damaged("an alignment that is a multiple of 8", str(alignment)[:20])
        start = -(-self._tell() // alignment) * alignment
        return GgufFile(path=self._path, metadata=metadata, tensors=self._placed(found, start))

    def _placed(self, found: list[tuple[str, BlockType, tuple[int, ...], int]], start: int) -> dict[str, GgufTensor]:
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in found:
            if name in tensors:
                raise CheckpointError(f"expected every tensor once, got {shown(name)} twice in {self._path.name}")
            try:
                tensors[name] = GgufTensor(kind=kind, shape=shape, start=start + offset)
                end = tensors[name].start + tensors[name].num_bytes
            except InputError as error:
                raise CheckpointError(f"{shown(name)}: {error}") from None
            if end > self._size:
                raise self._damaged(f"{shown(name)} to end by byte {self._size}", f"{end}")
        return tensors

    def _tensor(self) -> tuple[str, BlockType, tuple[int, ...], int]:
        name, num_dims = self._string(), self._number(4)
        if not 1 <= num_dims <= 4:
            raise self._damaged(f"1 to 4 dimensions for {shown(name)}", str(num_dims))
        shape = tuple(reversed([self._number(8) for _ in range(num_dims)]))
        kind = self._number(4)
        if kind not in BlockType._value2member_map_:
            known = ", ".join(each.name for each in BlockType)
            raise FileError(f"expected a tensor type of {known}, got ggml's type {kind} for {shown(name)}: convert it")
        if 0 in shape:
            raise self._damaged(f"sizes > 0 for {shown(name)}", str(shape))
        return name, BlockType(kind), shape, self._number(8)

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            kind = self._number(4)
            if kind == _STRING:
                return self._strings(self._count(8))
            dtype = self._scalar(kind)
            return np.frombuffer(self._take(self._count(dtype.itemsize) * dtype.itemsize), dtype)
        dtype = self._scalar(kind)
        value = np.frombuffer(self._take(dtype.itemsize), dtype)[0]
        return float(str(value)) if dtype.kind == "f" else value.item()  # 1e-6, not 9.99e-7

    def _scalar(self, kind: int) -> np.dtype[Any]:
        if kind not in _SCALARS:
            raise self._damaged("a metadata type of 0 to 12", str(kind))
        return _SCALARS[kind]

    def _strings(self, count: int) -> tuple[str, ...]:
        read, limit, strings = self._read, self._size, []
        try:
            for _ in range(count):
                length = int.from_bytes(read(8), "little")
                raw = read(length) if length < limit else b""
                if len(raw) != length:
                    raise self._damaged(f"a string of {length} bytes", "the file's end")
                strings.append(raw.decode())
            return tuple(strings)
        except UnicodeDecodeError:
            raise self._damaged("strings in UTF-8", "other bytes") from None

    def _string(self) -> str:
        return self._strings(1)[0]

    def _count(self, item_bytes: int) -> int:
        count = self._number(8)
        if count * item_bytes > self._size:
            raise self._damaged("fewer items than bytes", f"a count of {count}")
        return count

    def _number(self, num_bytes: int) -> int:
        return int.from_bytes(self._take(num_bytes), "little")

    def _take(self, length: int) -> bytes:
        raw = self._read(length)
        if len(raw) != length:
            raise self._damaged(f"{length} more bytes", "the file's end")
        return raw

    def _damaged(self, expected: str, got: str) -> FileError:
        return FileError(
            f"expected {expected} in {self._path.name}, got {got}: it is truncated or damaged, fetch it again"
        )


def read_tensor(source: FileBytes, tensor: GgufTensor) -> NDArray[Any]:
    """One tensor in the file's layout: float types as they are, block formats as float32.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "raw").write_bytes(np.float32([1, 2]).tobytes())
    ...     read_tensor(FileBytes(Path(folder, "raw")), GgufTensor(kind=BlockType.F32, shape=(2,), start=0))
    array([1., 2.], dtype=float32)
    """
    kind, columns = tensor.kind, tensor.shape[-1]
    if kind.is_float:
        return source.read(tensor.start, tensor.num_bytes).view(LAYOUTS[kind]).reshape(tensor.shape)
    out = np.empty((prod(tensor.shape[:-1]), columns), np.float32)
    step, row_bytes = max(1, _CHUNK // columns), kind.num_bytes((columns,))
    for row in range(0, len(out), step):
        part = out[row : row + step]
        part[:] = dequantize(source.read(tensor.start + row * row_bytes, len(part) * row_bytes), kind, part.shape)
    return out.reshape(tensor.shape)


_CHUNK = 1 << 18  # values read at a time: the bytes of a whole tensor would be in memory beside it


def write_file(path: Path, metadata: Mapping[str, Value], tensors: Mapping[str, tuple[BlockType, Entry]]) -> None:
    """Write a GGUF file, tensor by tensor; whole numbers become uint32, real ones float32.

    Raises InputError for rows that are not whole blocks, before anything is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     one = (BlockType.F16, Entry(shape=(2,), read=lambda: np.float32([1, 2])))
    ...     write_file(Path(folder, "m.gguf"), {"answer": 42}, {"a": one})
    ...     read_head(Path(folder, "m.gguf")).metadata
    {'answer': 42}
    """
    start = head_bytes(metadata, {name: (kind, entry.shape) for name, (kind, entry) in tensors.items()})
    with written_whole(path) as file:
        file.write(start)
        for name, (kind, entry) in tensors.items():
            raw = quantize(cast(entry.read(), _SOURCE[kind], name), kind, entry.importance)
            file.write(raw.data)
            file.write(bytes(_aligned(raw.size) - raw.size))


def head_bytes(metadata: Mapping[str, Value], tensors: Mapping[str, tuple[BlockType, Sequence[int]]]) -> bytes:
    """What a file begins with; the bytes of the tensors follow, each padded to a multiple of 32.

    Raises InputError for rows that are not whole blocks.

    >>> len(head_bytes({"answer": 42}, {"a": (BlockType.F16, (2,))}))
    96
    """
    infos, offset = [], 0
    for name, (kind, shape) in tensors.items():
        sizes = b"".join(_uint(size, 8) for size in reversed(shape))
        infos.append(_text(name) + _uint(len(shape), 4) + sizes + _uint(kind, 4) + _uint(offset, 8))
        offset += _aligned(kind.num_bytes(shape))
    head = _MAGIC + _uint(_VERSION, 4) + _uint(len(tensors), 8) + _uint(len(metadata), 8)
    head += b"".join(_text(key) + _typed(value) for key, value in metadata.items()) + b"".join(infos)
    return head.ljust(_aligned(len(head)), b"\0")


_SOURCE = {kind: LAYOUTS[kind] if kind.is_float else LAYOUTS[BlockType.F32] for kind in BlockType}


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _uint(value: int, num_bytes: int) -> bytes:
    return value.to_bytes(num_bytes, "little")


def _text(value: str) -> bytes:
    raw = value.encode()
    return _uint(len(raw), 8) + raw


def _typed(value: Value) -> bytes:
    """A metadata value after the number of its type."""
    match value:
        case bool():
            return _uint(_BOOL, 4) + _uint(value, 1)
        case int():
            return _uint(_UINT32, 4) + _uint(value, 4)
        case float():
            return _uint(_FLOAT32, 4) + np.float32(value).tobytes()
        case str():
            return _uint(_STRING, 4) + _text(value)
        case tuple():
            return _uint(_ARRAY, 4) + _uint(_STRING, 4) + _uint(len(value), 8) + b"".join(map(_text, value))
    kind = next(number for number, dtype in _SCALARS.items() if dtype == value.dtype)
    return _uint(_ARRAY, 4) + _uint(kind, 4) + _uint(value.size, 8) + value.tobytes()
