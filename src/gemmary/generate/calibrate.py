# SPDX-License-Identifier: Apache-2.0
"""What a model multiplies its matrices by: the mean square of every input of every matrix over a text.

    ids ─► windows ─► layer after layer, in NumPy and float32 ─► one number for each column of each matrix

An error in a weight matters as much as what it is multiplied by is large: `quantize` weighs errors so. The engines show
no layer's insides, so the pass is written down here once more; one layer's weights are in memory at a time.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import InputError
from gemmary.formats.content import Checkpoint
from gemmary.formats.tensors import weights

Array = NDArray[np.float32]
Note = Callable[[str, Array], None]  # the matrices of a path are multiplied by this


def alike(config: GemmaConfig) -> dict[str, Array]:
    """As if all inputs of a matrix were of one size: (columns,) ones for every matrix.

    >>> from gemmary.base.config import PRESETS
    >>> alike(PRESETS["gemma-3-270m"])["layers.0.mlp.down"].shape
    (2048,)
    """
    return {
        path: np.ones(row.gguf.shape(config)[1], np.float32)
        for path, row, layer in weights(config)
        if layer is not None and not row.is_norm
    }


def input_squares(
    checkpoint: Checkpoint, windows: Sequence[Sequence[int]], *, tick: Callable[[], None] = lambda: None
) -> dict[str, Array]:
    """(columns,) mean squares of the inputs of every layer's matrices, by its path in the weight table.

    A window is a sequence of ids that begins with BOS; `tick` is called after every layer. Raises InputError when there
    is none.

    >>> config = GemmaConfig(vocab_size=32, num_layers=1, model_dim=8, num_heads=2, num_kv_heads=1, mlp_dim=16)
    >>> ones = {path: lambda row=row: np.ones(row.shape(config), np.float32) for path, row, _ in weights(config)}
    >>> checkpoint = Checkpoint(config=config, tensors=ones, vocabulary=None)
    >>> input_squares(checkpoint, [[2, 5, 6]])["layers.0.mlp.up"].round(3)
    array([4., 4., 4., 4., 4., 4., 4., 4.], dtype=float32)
    """
    config, count = checkpoint.config, sum(map(len, windows))
    if not count:
        raise InputError("expected ids to calibrate with, got none: give a text")
    embedding = checkpoint.tensors["embedding"]()
    states = [embedding[list(ids)].astype(np.float32) * np.float32(config.model_dim**0.5) for ids in windows]
    del embedding
    sums: dict[str, Array] = {}
    for layer, local in enumerate(config.windows):
        one = _layer(checkpoint, layer)

        def note(path: str, inputs: Array, layer: int = layer) -> None:
            name = f"layers.{layer}.{path}"
            sums[name] = sums.get(name, np.float32(0)) + np.square(inputs).sum(axis=0) / np.float32(count)

        states = [_run(config, one, state, local, note) for state in states]
        tick()
    return sums


def _layer(checkpoint: Checkpoint, layer: int) -> dict[str, Array]:
    """A layer's weights in float32: matrices by their rows, norms as they multiply."""
    config, found = checkpoint.config, {}
    for path, row, at in weights(config):
        if at == layer:
            array = checkpoint.tensors[path]().astype(np.float32).reshape(row.gguf.shape(config))
            found[path.split(".", 2)[2]] = array + config.norm_plus_one if row.is_norm else array
    return found


def _run(config: GemmaConfig, one: Mapping[str, Array], x: Array, local: int | None, note: Note) -> Array:
    attended = _attention(config, one, _norm(config, x, one["attention_norm"]), local, note)
    x = x + (_norm(config, attended, one["attention_post_norm"]) if config.post_norm else attended)
    mixed = _mlp(one, _norm(config, x, one["mlp_norm"]), note)
    return x + (_norm(config, mixed, one["mlp_post_norm"]) if config.post_norm else mixed)


def _attention(config: GemmaConfig, one: Mapping[str, Array], x: Array, local: int | None, note: Note) -> Array:
    heads = []
    for name in ("query", "key", "value"):
        note(f"attention.{name}", x)
        heads.append(_product(x, one[f"attention.{name}"]).reshape(len(x), -1, config.head_dim))
    q, k, v = heads
    if config.qk_norm:
        q, k = _norm(config, q, one["attention.query_norm"]), _norm(config, k, one["attention.key_norm"])
    base, scale = (config.rope_base_local, 1.0) if local else (config.rope_base, config.rope_scale)
    turn = _turn(len(x), config.head_dim, base, scale)
    q, k = _rotated(q, *turn) * np.float32(config.query_scale), _rotated(k, *turn)
    distance = np.arange(len(x))[:, None] - np.arange(len(x))
    hidden = (distance < 0) | (distance >= (local or len(x)))
    mixed = np.empty_like(q)
    for head in range(config.num_heads):
        group = head * config.num_kv_heads // config.num_heads
        scores = q[:, head] @ k[:, group].T
        if config.attn_softcap:
            scores = np.float32(config.attn_softcap) * np.tanh(scores / np.float32(config.attn_softcap))
        scores[hidden] = -np.inf
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed[:, head] = shares @ v[:, group] / shares.sum(axis=1, keepdims=True)
    flat = mixed.reshape(len(x), -1)
    note("attention.output", flat)
    return _product(flat, one["attention.output"])


def _mlp(one: Mapping[str, Array], x: Array, note: Note) -> Array:
    note("mlp.gate", x)
    note("mlp.up", x)
    gate, up = _product(x, one["mlp.gate"]), _product(x, one["mlp.up"])
    gelu = (
        gate * np.float32(0.5) * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * (gate + np.float32(0.044715) * gate**3)))
    )
    note("mlp.down", gelu * up)
    return _product(gelu * up, one["mlp.down"])


def _product(x: Array, matrix: Array) -> Array:
    found: Array = x @ matrix.T
    return found


def _norm(config: GemmaConfig, x: Array, scale: Array) -> Array:
    found: Array = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(config.norm_eps)) * scale
    return found


def _turn(length: int, head_dim: int, base: float, scale: float) -> tuple[Array, Array]:
    """(T, 1, H / 2) cosines and sines of the angles by which positions turn a head's halves."""
    angles = np.arange(length)[:, None, None] / scale * base ** (-np.arange(head_dim // 2) / (head_dim // 2))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotated(x: Array, cosines: Array, sines: Array) -> Array:
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
