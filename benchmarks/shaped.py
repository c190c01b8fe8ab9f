# SPDX-License-Identifier: Apache-2.0
"""GGUF files of a Gemma's sizes with random weights, to measure speed and memory where the real ones may not be had.

Matrices are Q4_0 and the embedding, which is the output head too, is Q6_K: so `llama-quantize` writes Q4_0 (llama.cpp's
src/llama-quant.cpp). Norms are ones and a matrix with K columns has a deviation of 1 / sqrt(K), so that activations
stay near 1 from layer to layer.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.formats.gguf_file import Value, head_bytes, read_head
from gemmary.formats.quantize import LAYOUTS, BlockType
from gemmary.formats.storage import written_whole
from gemmary.formats.tensors import weights

MOSTLY_Q4_0 = 2  # llama.cpp's number of a file type
DEVIATION = {BlockType.Q4_0: 4.61, BlockType.Q6_K: 18.47}  # of codes that are all as likely
PART = 1 << 20  # blocks made at a time


def write_shaped(path: Path, config: GemmaConfig, pieces: Path) -> None:
    """Write a model of the architecture gemma; its vocabulary is the first V pieces of the GGUF file `pieces`."""
    tensors = {}
    for weight, row, layer in weights(config):
        matrix = BlockType.Q6_K if weight == "embedding" else BlockType.Q4_0
        tensors[row.gguf.at(layer)] = BlockType.F32 if row.is_norm else matrix, row.gguf.shape(config)
    random = np.random.default_rng(0)
    with written_whole(path) as file:
        file.write(head_bytes(sizes_of(config) | vocabulary(pieces, config.vocab_size), tensors))
        for kind, shape in tensors.values():
            for part in parts(random, kind, shape):
                file.write(part.data)


def sizes_of(config: GemmaConfig) -> dict[str, Value]:
    return {
        "general.architecture": "gemma",
        "general.file_type": MOSTLY_Q4_0,
        "general.quantization_version": 2,
        "gemma.context_length": config.max_length,
        "gemma.embedding_length": config.model_dim,
        "gemma.block_count": config.num_layers,
        "gemma.feed_forward_length": config.mlp_dim,
        "gemma.attention.head_count": config.num_heads,
        "gemma.attention.head_count_kv": config.num_kv_heads,
        "gemma.attention.key_length": config.head_dim,
        "gemma.attention.value_length": config.head_dim,
        "gemma.attention.layer_norm_rms_epsilon": config.norm_eps,
    }


def vocabulary(pieces: Path, size: int) -> dict[str, Value]:
    """The tokenizer's keys, its lists cut to `size` pieces."""
    keys = {key: value for key, value in read_head(pieces).metadata.items() if key.startswith("tokenizer.ggml.")}
    return {key: value[:size] if isinstance(value, tuple | np.ndarray) else value for key, value in keys.items()}


def parts(random: np.random.Generator, kind: BlockType, shape: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
    """The bytes of one tensor, which take whole 32 in every Gemma's sizes."""
    if kind is BlockType.F32:
        yield np.ones(shape, np.float32).view(np.uint8)
        return
    left = kind.num_bytes(shape) // kind.block_bytes
    while left:
        count = min(left, PART)
        blocks = np.frombuffer(bytearray(random.bytes(count * kind.block_bytes)), LAYOUTS[kind])
        blocks["d"] = 1 / (DEVIATION[kind] * shape[-1] ** 0.5)
        if kind is BlockType.Q6_K:
            blocks["scales"] = 1
        yield blocks.view(np.uint8)
        left -= count
