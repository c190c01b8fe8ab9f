# SPDX-License-Identifier: Apache-2.0
"""The forward pass once more, in NumPy and for whole sequences, rounding where the native engine rounds.

What is not rounded is float64.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig

Array = NDArray[np.float64]


class Rounds(IntEnum):
    NOTHING = 0
    OPERANDS = 1  # activations that meet a matrix to int8 in groups of 32, keys and values to bfloat16
    QUERIES = 2  # and queries and the shares of positions too, as kernels that multiply bfloat16 do


def logits(config: GemmaConfig, weights: Mapping[str, Array], ids: Sequence[int], rounds: Rounds) -> Array:
    """(T, V) logits after every token."""
    x = weights["embedding"][list(ids)] * np.sqrt(np.float32(config.model_dim))
    for layer, window in enumerate(config.windows):
        one = {path.split(".", 2)[2]: array for path, array in weights.items() if path.startswith(f"layers.{layer}.")}
        for part, name in ((_attention, "attention"), (_mlp, "mlp")):
            y = part(config, one, _norm(config, x, one[f"{name}_norm"]), window, rounds)
            x = x + (_norm(config, y, one[f"{name}_post_norm"]) if config.post_norm else y)
    return _cap(_times(_norm(config, x, weights["final_norm"]), weights["embedding"], rounds), config.final_softcap)


def _attention(config: GemmaConfig, one: Mapping[str, Array], x: Array, window: int | None, rounds: Rounds) -> Array:
    heads = {name: _times(x, one[f"attention.{name}"], rounds) for name in ("query", "key", "value")}
    q, k, v = (each.reshape(len(x), -1, config.head_dim) for each in heads.values())
    if config.qk_norm:
        q, k = _norm(config, q, one["attention.query_norm"]), _norm(config, k, one["attention.key_norm"])
    base, scale = (config.rope_base, config.rope_scale) if window is None else (config.rope_base_local, 1.0)
    q, k = _rotate(q, base, scale) * config.query_scale, _rotate(k, base, scale)
    if rounds >= Rounds.OPERANDS:
        k, v = _half(k), _half(v)
    if rounds >= Rounds.QUERIES:
        q = _half(q)
    groups = config.num_heads // config.num_kv_heads
    scores = _cap(np.einsum("tnh,snh->nts", q, k.repeat(groups, axis=1)), config.attn_softcap)
    distance = np.arange(len(x))[:, None] - np.arange(len(x))
    seen = (distance >= 0) & (distance < (window or len(x)))
    scores = np.where(seen, scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = (_half(scores) if rounds >= Rounds.QUERIES else scores) / scores.sum(axis=-1, keepdims=True)
    mixed = np.einsum("nts,snh->tnh", shares, v.repeat(groups, axis=1)).reshape(len(x), -1)
    return _times(mixed, one["attention.output"], rounds)


def _mlp(config: GemmaConfig, one: Mapping[str, Array], x: Array, window: int | None, rounds: Rounds) -> Array:
    gate, up = _times(x, one["mlp.gate"], rounds), _times(x, one["mlp.up"], rounds)
    gelu = gate * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return _times(gelu * up, one["mlp.down"], rounds)


def _times(x: Array, matrix: Array, rounds: Rounds) -> Array:
    """The matrix, as rows, times int8 activations."""
    if rounds >= Rounds.OPERANDS:
        padded = np.pad(x, ((0, 0), (0, -x.shape[-1] % 32)))
        groups = padded.reshape(len(x), -1, 32)
        scale = np.abs(groups).max(axis=-1, keepdims=True) / 127
        safe = np.where(scale == 0, 1, scale)
        x = (np.rint(groups / safe) * scale).reshape(len(x), -1)[:, : x.shape[-1]]
    return x @ matrix.reshape(-1, x.shape[-1]).T


def _half(x: Array) -> Array:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def _norm(config: GemmaConfig, x: Array, scale: Array) -> Array:
    factor = scale + (1 if config.norm_plus_one else 0)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_eps) * factor


def _rotate(x: Array, base: float, scale: float) -> Array:
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None, None] / scale * base ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=-1
    )


def _cap(x: Array, cap: float | None) -> Array:
    return x if cap is None else cap * np.tanh(x / cap)
