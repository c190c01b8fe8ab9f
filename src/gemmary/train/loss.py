# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of wanted tokens from hidden states, without the logits of more than a chunk of tokens.

    x (M, D) ─► chunks (C, D) ─┬─► logits (C, V) ─► log-probability of each target
                               └─► its gradient by x, made at once while the logits are there

The logits of 4 × 512 tokens over 262,144 pieces are 2.1 GB in float32, their gradient as much again. Here the backward
pass finds x's gradient ready; that of the table, where it is learned, costs the logits a second time.
"""

from collections.abc import Callable
from functools import cache
from math import gcd
from typing import Any

import keras
from jaxtyping import Float, Int
from keras import ops

from gemmary.formats.locate import cache_folder
from gemmary.model.compiled import compile_part
from gemmary.model.layers import product, softcap

Array = Any

CHUNK = 256  # tokens: 268 MB of logits over 262,144 pieces


def token_log_probs(
    x: Float[Array, "M D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "M"],
    *,
    cap: float | None,
    learns_table: bool,
    chunk: int = CHUNK,
) -> Float[Array, "M"]:
    """Natural logarithms of the targets' probabilities, float32; x is what the head's norm gives, `cap` its soft cap.

    Products are in x's precision, all else in float32. Without `learns_table` the table is a constant.

    >>> x, table = ops.ones((2, 4)), ops.zeros((8, 4))
    >>> found = token_log_probs(x, table, ops.array([0, 7], "int32"), cap=None, learns_table=False)
    >>> [round(float(each), 4) for each in found]  # ln 1/8
    [-2.0794, -2.0794]
    """
    parts, wanted = _chunked(x, chunk), _chunked(targets, chunk)
    size = targets.shape[0]

    def run(x: Array, *learned: Array) -> tuple[Array, Callable[..., Any]]:
        head, judge = ops.cast(learned[0] if learned else table, x.dtype), _compiled_judge()
        log_probs, ready = ops.map(lambda both: judge(cap, *both, head), (x, wanted))  # one after the other

        def gradient(*arguments: Array, upstream: Array | None = None) -> Any:
            weights = -ops.expand_dims(arguments[-1] if upstream is None else upstream, -1)  # `_judged`'s sign
            by_x = ready * ops.cast(weights, ready.dtype)
            return (by_x, _by_table(x, learned[0], wanted, weights, cap)) if learned else by_x

        return log_probs, gradient

    given = (parts, table) if learns_table else (parts,)
    return ops.reshape(ops.custom_gradient(run)(*given), (-1,))[:size]


@cache
def _compiled_judge() -> Callable[..., tuple[Array, Array]]:
    return compile_part(_judge, cache_folder() / "torch")


def _judge(
    cap: float | None, x: Float[Array, "C D"], targets: Int[Array, "C"], head: Float[Array, "V D"]
) -> tuple[Float[Array, "C"], Float[Array, "C D"]]:
    """Log-probabilities of one chunk's targets, and the negative gradient of their sum by x."""
    log_probs, slopes, share = _judged(x, head, targets, cap)
    return log_probs, ops.cast(_by_hidden(slopes, head) * share, head.dtype)


def _judged(
    x: Float[Array, "C D"], head: Float[Array, "V D"], targets: Int[Array, "C"], cap: float | None
) -> tuple[Float[Array, "C"], Float[Array, "C V"], Float[Array, "C 1"]]:
    """Log-probabilities of one chunk's targets; slopes, and what to multiply a row of them by.

    Together they are the negative gradient by the product of x and the head: p - 1 of the target and p of all others,
    times the soft cap's slope. A pass over (C, V) numbers costs PyTorch a fifth of a product, so there are few.
    """
    logits = softcap(product(x, ops.transpose(head), "float32"), cap)
    at = ops.expand_dims(targets, -1)
    best = ops.max(logits, axis=-1, keepdims=True)
    slopes = ops.exp(logits - best)
    total = ops.sum(slopes, axis=-1, keepdims=True)
    own = ops.take_along_axis(logits, at, axis=-1)
    log_probs = own - best - ops.log(total)
    wanted = ops.expm1(log_probs) * total  # p - 1 rounded once: p of a sure token is 1 in bfloat16
    if cap is not None:  # tanh' = 1 - tanh^2
        slopes, wanted = (each * (1.0 - ops.square(z / cap)) for each, z in ((slopes, logits), (wanted, own)))
    places = ops.concatenate([ops.expand_dims(ops.arange(targets.shape[0], dtype=targets.dtype), -1), at], axis=-1)
    slopes = ops.scatter_update(ops.cast(slopes, x.dtype), places, ops.cast(wanted[:, 0], x.dtype))
    return log_probs[:, 0], slopes, 1.0 / total


def _by_hidden(slopes: Float[Array, "C V"], head: Float[Array, "V D"]) -> Float[Array, "C D"]:
    """slopes @ head, in float32 summed over parts of the vocabulary: XLA is half as fast at one long sum.

    With C = 128 it reaches 120 and 55 GFLOP/s. In bfloat16 it is the other way round: 90 and 305.
    """
    count = gcd(64, head.shape[0]) if keras.backend.standardize_dtype(head.dtype) == "float32" else 1
    parts = ops.reshape(slopes, (slopes.shape[0], count, -1))
    rows = ops.reshape(head, (count, -1, head.shape[1]))

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        return total + product(*part, "float32"), None  # bfloat16 would lose the small parts

    zeros = ops.zeros((slopes.shape[0], head.shape[1]))
    return ops.scan(add, zeros, (ops.transpose(parts, (1, 0, 2)), rows))[0]


def _by_table(
    x: Float[Array, "n C D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "n C"],
    weights: Float[Array, "n C 1"],
    cap: float | None,
) -> Float[Array, "V D"]:
    """The table's gradient, summed over chunks in its own precision."""
    head = ops.cast(table, x.dtype)

    def add(total: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, None]:
        part, wanted, factors = chunk
        _, slopes, share = _judged(part, head, wanted, cap)
        weighted = part * ops.cast(factors * share, part.dtype)
        return total + product(ops.transpose(slopes), weighted, total.dtype), None

    total, _ = ops.scan(add, ops.zeros_like(table), (x, targets, weights))
    return total


def _chunked(array: Array, chunk: int) -> Array:
    """(M, ...) as (chunks, C, ...), the last one filled up with zeros."""
    size, rest = array.shape[0], array.shape[1:]
    count = -(-size // chunk)
    chunk = -(-size // count)  # of like size: little is filled up
    padded = ops.pad(array, [(0, count * chunk - size), *((0, 0) for _ in rest)])
    return ops.reshape(padded, (count, chunk, *rest))
