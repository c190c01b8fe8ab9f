# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: config.json, a tokenizer, and the weights in one or several .safetensors files.

    8 bytes: length of the header | {"name": {"dtype", "shape", "data_offsets"}, ...} | bytes ...

Our own sixty lines instead of the `safetensors` package: its NumPy reader knows no bfloat16, its writer wants all
tensors in memory at once, and the format is this one line. The package is the reference in the tests.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import CheckpointError, FileError
from gemmary.formats.content import Checkpoint, Entry, bind, cast, num_bytes, unbind
from gemmary.formats.hugging_face import config_from_json, config_to_json
from gemmary.formats.sentencepiece import Vocabulary, read_sentencepiece, write_sentencepiece
from gemmary.formats.storage import (
    FileBytes,
    listed_files,
    parse_json,
    read_json,
    shown,
    write_json,
    written_folder,
    written_whole,
)
from gemmary.formats.tensors import Stored, Weight
from gemmary.formats.tokenizer_json import read_tokenizer_json, write_tokenizer_json

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # the package's own limit
PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")  # text, and two ways to be beside images
_IGNORED = re.compile(
    r".*(vision_tower|multi_modal_projector|rotary_emb\.inv_freq)|(language_model\.)?lm_head\.weight$"
)
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PIECES, _TOKENIZER = "tokenizer.model", "tokenizer.json"


def read_safetensors(path: Path) -> Checkpoint:
    """Open a Hugging Face folder, or one .safetensors file with its config.json beside it.

    Reads the text models of Gemma 1 to 3, also inside multimodal ones. Raises FileError for what is missing or damaged,
    CheckpointError for tensors that do not fit the configuration.

    >>> read_safetensors(Path("no-such-folder"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected model.safetensors or model.safetensors.index.json in no-such-folder: ...
    """
    folder = path.parent if path.is_file() else path
    entries: dict[str, Entry] = {}
    for file in [path] if path.is_file() else _files(folder):
        for name, entry in read_entries(file).items():
            if name in entries:
                raise CheckpointError(f"expected every tensor in one file, got {shown(name)} twice in {folder.name}")
            entries[name] = entry
    config = config_from_json(read_json(folder / "config.json"))
    prefix = next((each for each in PREFIXES if f"{each}embed_tokens.weight" in entries), PREFIXES[0])
    tensors = bind(config, entries, partial(_name, prefix), _IGNORED)
    return Checkpoint(config=config, tensors=tensors, vocabulary=_vocabulary(folder))


def _name(prefix: str, row: Weight, layer: int | None) -> tuple[str, Stored]:
    return prefix + row.hf.at(layer), row.hf


def _files(folder: Path) -> list[Path]:
    if (folder / _ONE_FILE).exists():
        return [folder / _ONE_FILE]
    if not (folder / _INDEX).exists() and (folder / "adapter_config.json").exists():
        raise FileError(f"expected a model, got the adapter {folder.name}: give its base, and this one as the adapter")
    if not (folder / _INDEX).exists():
        raise FileError(
            f"expected {_ONE_FILE} or {_INDEX} in {folder.name}: give a Hugging Face folder with its weights"
        )
    return listed_files(folder / _INDEX)


def _vocabulary(folder: Path) -> Vocabulary | None:
    if (folder / _PIECES).exists():
        return read_sentencepiece(folder / _PIECES)
    return read_tokenizer_json(folder / _TOKENIZER) if (folder / _TOKENIZER).exists() else None


def read_entries(path: Path) -> dict[str, Entry]:
    """The tensors of one .safetensors file, read when asked for; raises FileError for a damaged file.

    >>> read_entries(Path("no-such-file"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a readable file, got no-such-file: No such file or directory
    """
    source = FileBytes(path)
    header, start = _header(source)
    header.pop("__metadata__", None)
    return {name: _entry(source, start, name, fields) for name, fields in header.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """What a .safetensors file says of itself beside its tensors; raises FileError for a damaged file.

    >>> read_metadata(Path("no-such-file"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a readable file, got no-such-file: No such file or directory
    """
    found = _header(FileBytes(path))[0].get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise FileError(f"expected names and texts in the metadata of {path.name}, got {shown(found)}: fetch it again")
    return found


def _header(source: FileBytes) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors' bytes begin."""
    length = int.from_bytes(source.read(0, 8).tobytes(), "little")
    if length > min(source.size - 8, _MAX_HEADER):
        raise FileError(
            f"expected a safetensors header within {source.path.name}, got a length of {length}: fetch it again"
        )
    return parse_json(source.read(8, length).tobytes(), source.path.name), 8 + length


def _entry(source: FileBytes, start: int, name: str, fields: Any) -> Entry:
    called = shown(name)
    match fields:
        case {"dtype": str(kind), "shape": [*sizes], "data_offsets": [int(begin), int(end)]}:
            if kind not in _DTYPES:
                raise FileError(f"expected F32, F16 or BF16 for {called}, got {shown(kind)}: convert it to one of them")
            if not all(isinstance(size, int) and 0 < size < 2**40 for size in sizes):
                raise CheckpointError(f"expected sizes > 0 for {called}, got {shown(sizes)}: fetch the file again")
            dtype, shape = _DTYPES[kind], tuple(sizes)
            if end - begin != num_bytes(shape, dtype) or begin < 0 or start + end > source.size:
                raise CheckpointError(
                    f"expected {num_bytes(shape, dtype)} bytes for {called} in {source.path.name}, "
                    f"got {shown(begin)} to {shown(end)}: "
                    "it is truncated or damaged, fetch it again"
                )
            return Entry(shape=shape, read=partial(_read, source, start + begin, dtype, shape))
        case _:
            raise FileError(f"expected dtype, shape and data_offsets for {called}, got {shown(fields)}: fetch it again")


def _read(source: FileBytes, start: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return source.read(start, num_bytes(shape, dtype)).view(dtype).reshape(shape)


def write_safetensors(checkpoint: Checkpoint, path: Path, dtype: str, *, shard_bytes: int = 5_000_000_000) -> None:
    """Write a folder that transformers loads; each file at most `shard_bytes`, unless a tensor is more.

    Raises InputError for a configuration that no Hugging Face class of Gemma has, FileError when `path` is taken.

    >>> from gemmary.base.config import PRESETS
    >>> write_safetensors(Checkpoint(config=PRESETS["gemma-2b"], tensors={}, vocabulary=None), Path("new"), "float32")
    Traceback (most recent call last):
    gemmary.base.errors.CheckpointError: expected the weight embedding, got 0 others: ...
    """
    entries = unbind(checkpoint.config, checkpoint.tensors, partial(_name, PREFIXES[0]))
    config, kind = config_to_json(checkpoint.config, dtype), np.dtype(dtype)
    with written_folder(path) as folder:
        shards = list(_shards(entries, kind, shard_bytes))
        names = (
            [_ONE_FILE]
            if len(shards) == 1
            else [f"model-{at:05d}-of-{len(shards):05d}.safetensors" for at in range(1, len(shards) + 1)]
        )
        for name, shard in zip(names, shards, strict=True):
            write_entries(folder / name, shard, kind)
        if len(shards) > 1:
            total = sum(num_bytes(entry.shape, kind) for entry in entries.values())
            weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
            write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        write_json(folder / "config.json", config)
        if checkpoint.vocabulary is not None:
            write_sentencepiece(checkpoint.vocabulary, folder / _PIECES)
            write_tokenizer_json(checkpoint.vocabulary, folder / _TOKENIZER)
            write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)


_TOKENIZER_CONFIG = {
    "tokenizer_class": "GemmaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
}


def _shards(entries: Mapping[str, Entry], dtype: np.dtype[Any], limit: int) -> Iterator[dict[str, Entry]]:
    shard: dict[str, Entry] = {}
    size = 0
    for name, entry in entries.items():
        size += num_bytes(entry.shape, dtype)
        if shard and size > limit:
            yield shard
            shard, size = {}, num_bytes(entry.shape, dtype)
        shard[name] = entry
    yield shard


def write_entries(
    path: Path, entries: Mapping[str, Entry], dtype: np.dtype[Any], metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write one .safetensors file, tensor by tensor; `metadata` is what it says of itself.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     one = {"a": Entry(shape=(2,), read=lambda: np.float32([1, 2]))}
    ...     write_entries(Path(folder, "a.safetensors"), one, np.dtype(np.float32))
    ...     read_entries(Path(folder, "a.safetensors"))["a"].read()
    array([1., 2.], dtype=float32)
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, entry in entries.items():
        begin, end = end, end + num_bytes(entry.shape, dtype)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, entry in entries.items():
            file.write(cast(entry.read(), dtype, name).view(np.uint8).data)
