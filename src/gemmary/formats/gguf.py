# SPDX-License-Identifier: Apache-2.0
"""GGUF checkpoints: what llama.cpp's architectures gemma, gemma2 and gemma3 say in metadata, and what they imply.

    architecture   features             attends to everything   queries scaled by D / N
    gemma          neither norm         every layer             never
    gemma2         post_norm            every second layer      with 46 layers (27B)
    gemma3         post_norm, qk_norm   every sixth layer       with 62 layers (27B)

Norms hold 1 + w. Queries and keys are not permuted: llama.cpp turns the halves of a head, as the model was trained.
Keys and conventions: llama.cpp's src/llama-arch.cpp, src/models/gemma*.cpp and convert_hf_to_gguf.py.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import FileError, InputError
from gemmary.formats.content import Blocks, Checkpoint, Entry, Fields, bind, check_fits, unbind
from gemmary.formats.gguf_file import GgufFile, GgufTensor, Value, read_head, read_tensor, write_file
from gemmary.formats.quantize import BlockType
from gemmary.formats.sentencepiece import SPACE, Kind, Vocabulary
from gemmary.formats.storage import FileBytes, shown
from gemmary.formats.tensors import Stored, Weight, weights


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
    tensors = bind(config, entries, _name, _IGNORED)
    for weight, row, layer in weights(config):
        exact = head.metadata.get(_EXACT + row.gguf.at(layer))
        if isinstance(exact, np.ndarray) and exact.shape == row.shape(config):
            tensors[weight] = partial(_exact, tensors[weight], exact)
    blocks = {
        weight: _blocks(source, head.tensors[row.gguf.at(layer)])
        for weight, row, layer in weights(config)
        if not row.is_norm
    }
    return Checkpoint(config=config, tensors=tensors, vocabulary=_vocabulary(head.metadata), blocks=blocks)


def _blocks(source: FileBytes, tensor: GgufTensor) -> Blocks:
    """A matrix as it lies in the file: all of ours have their rows there."""
    rows, columns = tensor.shape
    row_bytes = tensor.kind.num_bytes((columns,))

    def read(first: int, count: int) -> NDArray[np.uint8]:
        return source.read(tensor.start + first * row_bytes, count * row_bytes)

    return Blocks(kind=tensor.kind, shape=(rows, columns), read=read)


_IGNORED = re.compile(r"rope_freqs\.weight$")
_EXACT = "gemmary.exact."  # and a norm's name: the w that 1 + w in float32 does not give back


def _name(row: Weight, layer: int | None) -> tuple[str, Stored]:
    return row.gguf.at(layer), row.gguf


def _exact(read: Callable[[], NDArray[Any]], exact: NDArray[Any]) -> NDArray[Any]:
    rounded = read()
    return np.where(
        (exact + np.float32(1)) - np.float32(1) == rounded, exact, rounded
    )  # not where the file was changed


def _config(head: GgufFile) -> GemmaConfig:
    name = head.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise FileError(
            f"expected the architecture gemma, gemma2 or gemma3, got {shown(name)}: give a Gemma of one of these"
        )
    known, keys = _ARCHITECTURES[name], Fields(head.metadata, head.path.name, f"{name}.")
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


def _window_pattern(keys: Fields, known: _Architecture) -> tuple[int | None, ...]:
    if known.window is None:
        return (None,)
    period, window = keys.size("attention.sliding_window_pattern", known.period), known.window
    if period > 1024:
        raise FileError(f"expected a sliding_window_pattern up to 1024, got {period}: fetch the file again")
    return (*(keys.size("attention.sliding_window", window),) * (period - 1), None)


def _vocabulary(metadata: Mapping[str, Value]) -> Vocabulary | None:
    pieces = metadata.get("tokenizer.ggml.tokens")
    if pieces is None:
        return None
    scores, kinds = (metadata.get(f"tokenizer.ggml.{key}") for key in ("scores", "token_type"))
    if not isinstance(pieces, tuple) or not isinstance(scores, np.ndarray) or not isinstance(kinds, np.ndarray):
        raise FileError(
            "expected tokenizer.ggml.tokens, .scores and .token_type of a SentencePiece vocabulary: fetch again"
        )
    size = len(pieces)
    while size and pieces[size - 1] == f"[PAD{size - 1}]":  # as written below, and by llama.cpp's converter
        size -= 1
    return Vocabulary.from_rows(pieces[:size], scores[:size], kinds[:size])


def write_gguf(
    checkpoint: Checkpoint, path: Path, kind: BlockType, importance: Mapping[str, NDArray[np.float32]] | None = None
) -> None:
    """Write a file that llama.cpp loads; norms stay float32 and the embedding at least Q8_0.

    `importance` says, by a weight's path, what an error in each column of its matrix matters. Raises InputError for a
    configuration that llama.cpp would compute otherwise.

    >>> from gemmary.base.config import PRESETS
    >>> write_gguf(Checkpoint(config=PRESETS["gemma-2b"], tensors={}, vocabulary=None), Path("m.gguf"), BlockType.F32)
    Traceback (most recent call last):
    gemmary.base.errors.CheckpointError: expected the weight embedding, got 0 others: ...
    """
    config = checkpoint.config
    metadata = _metadata(config, kind) | _tokenizer(checkpoint.vocabulary, config.vocab_size)
    entries = unbind(config, checkpoint.tensors, _name)
    tensors: dict[str, tuple[BlockType, Entry]] = {}
    for weight, row, layer in weights(config):
        name = row.gguf.at(layer)
        entry = replace(entries[name], importance=(importance or {}).get(weight))
        tensors[name] = (max(kind, BlockType[row.lowest], key=_bits), entry)
        if row.is_norm:
            exact = checkpoint.tensors[weight]().astype(np.float32)
            if ((exact + np.float32(1)) - np.float32(1)).tobytes() != exact.tobytes():
                metadata[_EXACT + name] = exact
    write_file(path, metadata, tensors)


def _bits(kind: BlockType) -> float:
    return 8 * kind.block_bytes / kind.block_length


_FILE_TYPES = {  # llama.cpp's number for "mostly" that type
    BlockType.F32: 0,
    BlockType.F16: 1,
    BlockType.Q4_0: 2,
    BlockType.Q8_0: 7,
    BlockType.BF16: 32,
}


def _metadata(config: GemmaConfig, kind: BlockType) -> dict[str, Value]:
    if kind not in _FILE_TYPES:
        known = ", ".join(each.name for each in _FILE_TYPES)
        raise InputError(f"expected a type that can be written ({known}), got {kind.name}")
    name = _architecture(config)
    known_name = _ARCHITECTURES[name]
    values: dict[str, Value | None] = {
        "context_length": config.max_length,
        "embedding_length": config.model_dim,
        "block_count": config.num_layers,
        "feed_forward_length": config.mlp_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rope_base,
        "rope.freq_base_swa": config.rope_base_local if known_name.own_local_base else None,
        "rope.scaling.type": "linear" if config.rope_scale != 1 else None,
        "rope.scaling.factor": config.rope_scale if config.rope_scale != 1 else None,
        "attention.sliding_window": config.window_pattern[0],
        "attention.sliding_window_pattern": len(config.window_pattern) if known_name.window else None,
        "attn_logit_softcapping": config.attn_softcap,
        "final_logit_softcapping": config.final_softcap,
    }
    general: dict[str, Value] = {
        "general.architecture": name,
        "general.type": "model",
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
    }
    return general | {f"{name}.{key}": value for key, value in values.items() if value is not None}


def _architecture(config: GemmaConfig) -> str:
    """The architecture that computes what this configuration says."""
    features = {"post_norm": config.post_norm, "qk_norm": config.qk_norm}
    name = next((name for name, known in _ARCHITECTURES.items() if known.features == features), None)
    if name is None:
        raise InputError("expected post_norm wherever there is qk_norm, got qk_norm alone: llama.cpp has no such Gemma")
    known = _ARCHITECTURES[name]
    wide = config.num_layers == known.wide_queries_at
    query_dim = config.model_dim // config.num_heads if wide else config.head_dim
    window, pattern = config.window_pattern[0], config.window_pattern
    check_fits(
        config,
        f"llama.cpp's {name}",
        norm_plus_one=config.norm_plus_one,
        query_scale=abs(config.query_scale * query_dim**0.5 - 1) < 1e-6,
        window_pattern=pattern == (*(window,) * (len(pattern) - 1), None) and (len(pattern) > 1) == bool(known.window),
        attn_softcap=(config.attn_softcap is None) == (known.attn_softcap is None),
        final_softcap=(config.final_softcap is None) == (known.final_softcap is None),
        rope_scale=known.own_local_base or config.rope_scale == 1,
        rope_base_local=known.own_local_base or not window or config.rope_base_local == config.rope_base,
    )
    return name


def _tokenizer(vocabulary: Vocabulary | None, num_rows: int) -> dict[str, Value]:
    """The vocabulary's keys; llama.cpp wants a piece for every row of the embedding."""
    if vocabulary is None:
        return {"tokenizer.ggml.model": "none"}
    if vocabulary.size > num_rows:
        raise InputError(
            f"expected at most {num_rows} pieces, one for each row of the embedding, got {vocabulary.size}"
        )
    pieces, padding = list(vocabulary.pieces), num_rows - vocabulary.size
    for at in np.flatnonzero(vocabulary.kinds == Kind.USER_DEFINED).tolist():
        pieces[at] = pieces[at].replace(SPACE, " ")
    kinds = np.pad(vocabulary.kinds.astype(np.int32), (0, padding), constant_values=Kind.UNUSED)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": (*pieces, *(f"[PAD{at}]" for at in range(vocabulary.size, num_rows))),
        "tokenizer.ggml.scores": np.pad(vocabulary.scores, (0, padding)),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": vocabulary.id_of("<bos>"),
        "tokenizer.ggml.eos_token_id": vocabulary.id_of("<eos>"),
        "tokenizer.ggml.unknown_token_id": vocabulary.unknown_id,
        "tokenizer.ggml.padding_token_id": vocabulary.id_of("<pad>"),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
