# SPDX-License-Identifier: Apache-2.0
"""GGUF, llama.cpp's file: typed metadata, a list of tensors, then their bytes.

    "GGUF" version tensors keys | key type value ... | name dims type offset ... | padding | bytes ...

Everything is little-endian; strings and arrays carry 64-bit lengths, so nothing is allocated before a length is checked
against the file's. Our own reader because start-up reads 262,144 pieces: 0.1 s here, seconds with the `gguf` package.
Layout: ggml's docs/gguf.md; keys and conventions: llama.cpp's src/llama-arch.cpp and src/models/gemma*.cpp.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import CheckpointError, FileError, InputError
from gemmary.formats.content import Checkpoint, Entry, bind
from gemmary.formats.quantize import LAYOUTS, BlockType, dequantize
from gemmary.formats.sentencepiece import Vocabulary
from gemmary.formats.storage import FileBytes

Value = int | float | bool | str | tuple[str, ...] | NDArray[Any]

_ALIGNMENT = 32
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: Mapping[int, np.dtype[Any]] = {  # GGUF's number of a metadata type
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
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
        if self._take(4) != b"GGUF":
            raise FileError(f"expected a GGUF file, got {self._path.name} with another beginning: give a checkpoint")
        version = self._number(4)
        if version not in (2, 3):
            raise FileError(f"expected GGUF version 2 or 3, got {version}: convert it again with a current llama.cpp")
        num_tensors, num_keys = self._count(24), self._count(13)
        metadata: dict[str, Value] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"the key {key!r} once", "it twice")
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
                raise CheckpointError(f"expected every tensor once, got {name} twice in {self._path.name}")
            try:
                tensors[name] = GgufTensor(kind=kind, shape=shape, start=start + offset)
                end = tensors[name].start + tensors[name].num_bytes
            except InputError as error:
                raise CheckpointError(f"{name}: {error}") from None
            if end > self._size:
                raise self._damaged(f"{name} to end by byte {self._size}", f"{end}")
        return tensors

    def _tensor(self) -> tuple[str, BlockType, tuple[int, ...], int]:
        name, num_dims = self._string(), self._number(4)
        if not 1 <= num_dims <= 4:
            raise self._damaged(f"1 to 4 dimensions for {name}", str(num_dims))
        shape = tuple(reversed([self._number(8) for _ in range(num_dims)]))
        kind = self._number(4)
        if kind not in BlockType._value2member_map_:
            known = ", ".join(each.name for each in BlockType)
            raise FileError(
                f"expected a tensor type of {known}, got ggml's type {kind} for {name}: convert it to one of them"
            )
        if 0 in shape:
            raise self._damaged(f"sizes > 0 for {name}", str(shape))
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
        return float(str(value)) if dtype.kind == "f" else value.item()  # type: ignore[no-any-return]  # 1e-6, not 9.99e-7

    def _scalar(self, kind: int) -> np.dtype[Any]:
        if kind not in _SCALARS:
            raise self._damaged("a metadata type of 0 to 12", str(kind))
        return _SCALARS[kind]

    def _strings(self, count: int) -> tuple[str, ...]:
        read, limit, strings = self._read, self._size, []
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            raw = read(length) if length < limit else b""
            if len(raw) != length:
                raise self._damaged(f"a string of {length} bytes", "the file's end")
            strings.append(raw)
        try:
            return tuple(raw.decode() for raw in strings)
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


@dataclass(frozen=True, kw_only=True)
class _Architecture:
    """What llama.cpp takes for granted of an architecture, by its name."""

    features: Mapping[str, bool]
    period: int  # every such layer attends to everything
    window: int | None = None
    attn_softcap: float | None = None
    final_softcap: float | None = None
    wide_queries_at: int | None = None  # this many layers scale queries by D / N instead of the head's size
    own_local_base: bool = False  # RoPE of layers with a window starts from 10,000, unscaled


_ARCHITECTURES: Mapping[str, _Architecture] = MappingProxyType(
    {
        "gemma": _Architecture(features={"post_norm": False, "qk_norm": False}, period=1),
        "gemma2": _Architecture(
            features={"post_norm": True, "qk_norm": False},
            period=2,
            window=4096,
            attn_softcap=50.0,
            final_softcap=30.0,
            wide_queries_at=46,
        ),
        "gemma3": _Architecture(
            features={"post_norm": True, "qk_norm": True},
            period=6,
            window=1024,
            wide_queries_at=62,
            own_local_base=True,
        ),
    }
)


def read_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file of the architectures gemma, gemma2 and gemma3.

    Raises FileError for a damaged file or another architecture, CheckpointError for tensors that do not fit.

    >>> read_gguf(Path("no-such-file"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a readable file, got no-such-file: No such file or directory
    """
    head, source = read_head(path), FileBytes(path)
    config = _config(head)
    entries = {
        name: Entry(shape=tensor.shape, read=partial(read_tensor, source, tensor))
        for name, tensor in head.tensors.items()
    }
    tensors = bind(config, entries, lambda row, layer: (row.gguf.at(layer), row.gguf), _IGNORED)
    return Checkpoint(config=config, tensors=tensors, vocabulary=_vocabulary(head.metadata))


_IGNORED = re.compile(r"rope_freqs\.weight$")


def read_tensor(source: FileBytes, tensor: GgufTensor) -> NDArray[Any]:
    """One tensor in the file's layout: float types as they are, block formats as float32.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "raw").write_bytes(np.float32([1, 2]).tobytes())
    ...     read_tensor(FileBytes(Path(folder, "raw")), GgufTensor(kind=BlockType.F32, shape=(2,), start=0))
    array([1., 2.], dtype=float32)
    """
    raw = source.read(tensor.start, tensor.num_bytes)
    if tensor.kind.is_float:
        return raw.view(LAYOUTS[tensor.kind]).reshape(tensor.shape)
    return dequantize(raw, tensor.kind, tensor.shape)


def _config(head: GgufFile) -> GemmaConfig:
    name = head.metadata.get("general.architecture")
    if name not in _ARCHITECTURES:
        raise FileError(
            f"expected the architecture gemma, gemma2 or gemma3, got {name!r}: give a Gemma of one of these"
        )
    known, keys = _ARCHITECTURES[str(name)], _Keys(head.metadata, f"{name}.")
    num_layers, num_heads = keys.size("block_count"), keys.size("attention.head_count")
    model_dim, rope_base = keys.size("embedding_length"), keys.real("rope.freq_base", 10_000.0)
    head_dim = keys.size("attention.key_length", model_dim // num_heads)
    query_dim = model_dim // num_heads if num_layers == known.wide_queries_at else head_dim
    embedding = head.tensors.get("token_embd.weight")
    try:
        return GemmaConfig(
            vocab_size=embedding.shape[0] if embedding else 0,
            num_layers=num_layers,
            model_dim=model_dim,
            num_heads=num_heads,
            num_kv_heads=keys.size("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            mlp_dim=keys.size("feed_forward_length"),
            max_length=keys.size("context_length"),
            norm_eps=keys.real("attention.layer_norm_rms_epsilon", 1e-6),
            query_scale=query_dim**-0.5,
            rope_base=rope_base,
            rope_base_local=keys.real("rope.freq_base_swa", 10_000.0 if known.own_local_base else rope_base),
            rope_scale=keys.real("rope.scaling.factor", 1.0),
            window_pattern=_window_pattern(keys, known),
            attn_softcap=keys.optional("attn_logit_softcapping", known.attn_softcap),
            final_softcap=keys.optional("final_logit_softcapping", known.final_softcap),
            **known.features,
        )
    except InputError as error:
        raise FileError(f"{head.path.name}: {error}") from None


def _window_pattern(keys: "_Keys", known: _Architecture) -> tuple[int | None, ...]:
    if known.window is None:
        return (None,)
    period, window = keys.size("attention.sliding_window_pattern", known.period), known.window
    if period > 1024:
        raise FileError(f"expected a sliding_window_pattern up to 1024, got {period}: fetch the file again")
    return (*(keys.size("attention.sliding_window", window),) * (period - 1), None)


@dataclass(frozen=True)
class _Keys:
    """Metadata under an architecture's name, with their kinds checked."""

    metadata: Mapping[str, Value]
    prefix: str

    def size(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(self.prefix + key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise FileError(
                f"expected a whole number > 0 for {self.prefix}{key}, got {str(value)[:40]}: fetch the file again"
            )
        return value

    def real(self, key: str, default: float) -> float:
        value = self.metadata.get(self.prefix + key, default)
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise FileError(
                f"expected a number > 0 for {self.prefix}{key}, got {str(value)[:40]}: fetch the file again"
            )
        return value

    def optional(self, key: str, default: float | None) -> float | None:
        return self.real(key, default) if default is not None or self.prefix + key in self.metadata else None


def _vocabulary(metadata: Mapping[str, Value]) -> Vocabulary | None:
    pieces = metadata.get("tokenizer.ggml.tokens")
    if pieces is None:
        return None
    scores, kinds = (metadata.get(f"tokenizer.ggml.{key}") for key in ("scores", "token_type"))
    if not isinstance(pieces, tuple) or not isinstance(scores, np.ndarray) or not isinstance(kinds, np.ndarray):
        raise FileError(
            "expected tokenizer.ggml.tokens, .scores and .token_type of a SentencePiece vocabulary: fetch again"
        )
    return Vocabulary.from_rows(pieces, scores, kinds)
