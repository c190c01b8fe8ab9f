# SPDX-License-Identifier: Apache-2.0
"""Gemma: the one forward pass for Gemma 1, 2 and 3, on JAX, PyTorch and TensorFlow.

    ids ─► embed ─► [ x + attention(norm x), x + feed_forward(norm x) ] × L ─► norm ─► head ─► logits

The pass is a pure function of a mapping from the weight table's paths to arrays, so one text is jitted on JAX, traced
on PyTorch and TensorFlow, and differentiated by `train/`. As a Keras model it is `keras_model.py`'s.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from keras import ops

from gemmary.base.config import GemmaConfig
from gemmary.formats.tensors import rows
from gemmary.model.cache import Pair, Span, read
from gemmary.model.layers import product, project, rms_norm, rope_angles, rotate, row_products, sines, softcap

Array = Any
Weights = Mapping[str, Array]

_BLOCK = 128  # queries that attend together
NEGATIVE = -2.0e38  # a masked score: finite, so that a row with every score masked gives no NaN


def every(tokens: Array) -> Array:
    """The Pick that takes all tokens.

    >>> every(1)
    1
    """
    return tokens


class _Layer:
    """One layer's weights, by their names in the table without the layer."""

    def __init__(self, config: GemmaConfig, named: Weights) -> None:
        self.config, self.named = config, named

    def norm(self, x: Float[Array, "... D"], name: str) -> Float[Array, "... D"]:
        """The RMSNorm of that name."""
        return rms_norm(x, self.named[name], eps=self.config.norm_eps, plus_one=self.config.norm_plus_one)

    def post_norm(self, x: Float[Array, "... D"], name: str) -> Float[Array, "... D"]:
        """The RMSNorm of that name in models that norm what a part returns; others leave it."""
        return self.norm(x, name) if self.config.post_norm else x

    def project(self, x: Float[Array, "B T D"], names: tuple[str, ...]) -> list[Float[Array, "B T _"]]:
        """The products of x with the matrices of those names, one of `TOGETHER`, which may be held as one."""
        joint = self.named.get(" ".join(names))
        if joint is None:
            return [project(x, self.named[name]) for name in names]
        *ends, _ = accumulate(_outputs(self.config)[name] for name in names)
        return list(ops.split(project(x, joint), ends, axis=-1))


# matrices that multiply the same; held as one (by `weights.as_matrices`) they are read faster, under their names joined
TOGETHER = ("attention.query", "attention.key", "attention.value"), ("mlp.gate", "mlp.up")


@cache
def _outputs(config: GemmaConfig) -> dict[str, int]:
    """A layer's weights by their names in the table without the layer, and the rows that each has as a matrix."""
    return {row.path.removeprefix("layers.{i}."): row.gguf.shape(config)[0] for row in rows(config)[1:-1]}


@cache
def _paths(config: GemmaConfig, index: int) -> list[tuple[str, str]]:
    return [(name, f"layers.{index}.{name}") for name in (*_outputs(config), *map(" ".join, TOGETHER))]


def layer_weights(config: GemmaConfig, all_weights: Weights, index: int) -> dict[str, Array]:
    """A layer's weights by their names in the table without the layer.

    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> list(layer_weights(config, {"embedding": 1, "layers.0.mlp.down": 2}, 0))
    ['mlp.down']
    """
    return {name: all_weights[path] for name, path in _paths(config, index) if path in all_weights}


def attention_mask(queries: Int[Array, "B T"], keys: Int[Array, "B S"], window: int | None) -> Bool[Array, "B T S"]:
    """Which key positions each query position sees: not after it, at most `window` with itself, none below 0.

    >>> import numpy as np
    >>> positions = np.arange(4)[None]
    >>> np.asarray(attention_mask(positions, positions, 2)).astype(int)[0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    distance = ops.expand_dims(queries, 2) - ops.expand_dims(keys, 1)
    seen = ops.logical_and(distance >= 0, ops.expand_dims(keys, 1) >= 0)
    return seen if window is None else ops.logical_and(seen, distance < window)


Part = tuple[Float[Array, "B K _ H"], Float[Array, "B K _ H"], Bool[Array, "B T _"]]  # keys, values, who sees them


def attend(q: Float[Array, "B T N H"], parts: Sequence[Part], cap: float | None) -> Float[Array, "B T NH"]:
    """Softmax attention over all parts at once; N / K query heads share a key-value head. Softmax is float32.

    >>> from keras import ops
    >>> q, k = ops.ones((1, 3, 4, 2)), ops.ones((1, 2, 5, 2))
    >>> attend(q, [(k, k, ops.ones((1, 3, 5), "bool"))], None).shape == (1, 3, 8)
    True
    """
    _, length, heads, head_dim = q.shape  # TensorFlow's fit leaves the batch open
    kv_heads = parts[0][0].shape[1]
    groups = heads // kv_heads
    # the queries of one key-value head are the rows of one matrix: multi-query attention is a single product
    q = ops.transpose(ops.reshape(q, (-1, length, kv_heads, groups, head_dim)), (0, 2, 1, 3, 4))
    q = ops.reshape(q, (-1, kv_heads, length * groups, head_dim))
    scores = ops.concatenate([_scores(q, keys, mask, cap) for keys, _, mask in parts], axis=-1)
    # the first token alone: Keras warns of a softmax over one score
    shares = ops.cast(ops.softmax(scores, axis=-1) if scores.shape[-1] > 1 else ops.ones_like(scores), q.dtype)
    output, at = [], 0
    for _, values, _ in parts:
        output.append(product(shares[..., at : at + values.shape[2]], values, q.dtype))
        at += values.shape[2]
    mixed = ops.reshape(sum(output[1:], output[0]), (-1, kv_heads, length, groups, head_dim))
    return ops.reshape(ops.transpose(mixed, (0, 2, 1, 3, 4)), (-1, length, heads * head_dim))


def _scores(
    q: Float[Array, "B K TG H"], keys: Float[Array, "B K S H"], mask: Bool[Array, "B T S"], cap: float | None
) -> Float[Array, "B K TG S"]:
    scores = row_products(q, keys, "float32")  # bfloat16 loses the small exponentials
    (_, kv_heads, rows, size), length = scores.shape, mask.shape[1]
    grouped = ops.reshape(softcap(scores, cap), (-1, kv_heads, length, rows // length, size))
    masked = ops.where(ops.expand_dims(ops.expand_dims(mask, 1), 3), grouped, NEGATIVE)
    return ops.reshape(masked, (-1, kv_heads, rows, size))


Rotation = tuple[Float[Array, "B T 1 H"], Float[Array, "B T 1 H"]]
Rotations = dict[bool, Rotation]
Look = Callable[[Array, Array], Sequence[Part]]  # from the tokens' own keys and values to all that they attend to
Remat = Callable[[Callable[..., Array]], Callable[..., Array]]  # of `_whole`: what keeps its arguments alone
Pick = Callable[[Array], Array]  # of an array (B, T, ...) the Q tokens that are wanted of a layer


def _attention(
    x: Float[Array, "B T D"], layer: _Layer, rotation: Rotation, look: Look, pick: Pick
) -> Float[Array, "B Q D"]:
    """Project to heads, turn by position, attend to what `look` shows, project back."""
    config = layer.config
    q, k, v = (_heads(each, config.head_dim) for each in layer.project(x, TOGETHER[0]))
    q = pick(q)
    if config.qk_norm:
        q, k = layer.norm(q, "attention.query_norm"), layer.norm(k, "attention.key_norm")
    q, k = rotate(q, *map(pick, rotation)) * config.query_scale, rotate(k, *rotation)
    parts = [(*pair, pick(mask)) for *pair, mask in look(ops.swapaxes(k, 1, 2), ops.swapaxes(v, 1, 2))]
    blocks = [attend(some, seen, config.attn_softcap) for some, seen in _blocks(q, parts)]
    mixed = blocks[0] if len(blocks) == 1 else ops.concatenate(blocks, axis=1)
    return project(mixed, layer.named["attention.output"])


def _blocks(q: Float[Array, "B Q N H"], parts: Sequence[Part]) -> Iterator[tuple[Array, Sequence[Part]]]:
    """A few queries at a time, and what they may see: of the last part, the queries' own, no key after them."""
    *past, (keys, values, own) = parts
    for first in range(0, q.shape[1], _BLOCK):
        some, ahead = slice(first, first + _BLOCK), slice(0, first + _BLOCK if q.shape[1] > 1 else None)
        before = [(k, v, mask[:, some]) for k, v, mask in past]
        yield q[:, some], [*before, (keys[:, :, ahead], values[:, :, ahead], own[:, some, ahead])]


def _heads(x: Float[Array, "B T NH"], head_dim: int) -> Float[Array, "B T N H"]:
    return ops.reshape(x, (-1, x.shape[1], x.shape[2] // head_dim, head_dim))


def _feed_forward(x: Float[Array, "B T D"], layer: _Layer) -> Float[Array, "B T D"]:
    """GeGLU with the tanh approximation of GELU, whatever a checkpoint's legacy field says."""
    gate, up = layer.project(x, TOGETHER[1])
    return project(ops.gelu(gate, approximate=True) * up, layer.named["mlp.down"])


def _block(
    x: Float[Array, "B T D"], layer: _Layer, rotation: Rotation, look: Look, pick: Pick
) -> Float[Array, "B Q D"]:
    """One layer: attention and mlp, each normed before, and after where the model has it, each added to x."""
    mixed = _attention(layer.norm(x, "attention_norm"), layer, rotation, look, pick)
    x = pick(x) + layer.post_norm(mixed, "attention_post_norm")
    return x + layer.post_norm(_feed_forward(layer.norm(x, "mlp_norm"), layer), "mlp_post_norm")


def embed(config: GemmaConfig, table: Float[Array, "V D"], ids: Int[Array, "B T"], dtype: str) -> Float[Array, "B T D"]:
    """The ids' rows, times sqrt(D) rounded to the activations' precision as in the reference (7B in bfloat16: 55.5).

    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> float(embed(config, ops.ones((8, 4)), ops.array([[5]], "int32"), "float32")[0, 0, 0])
    2.0
    """
    return ops.cast(ops.take(table, ids, axis=0), dtype) * ops.cast(config.model_dim**0.5, dtype)


def head(config: GemmaConfig, all_weights: Weights, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Logits in float32 from the last layer's output; the embedding is the head.

    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> from gemmary.formats.tensors import weights
    >>> zeros = {path: ops.zeros(row.shape(config)) for path, row, _ in weights(config)}
    >>> tuple(head(config, zeros, ops.ones((1, 3, 4))).shape)
    (1, 3, 8)
    """
    x = rms_norm(x, all_weights["final_norm"], eps=config.norm_eps, plus_one=config.norm_plus_one)
    return softcap(ops.cast(project(x, all_weights["embedding"]), "float32"), config.final_softcap)


def rotations(config: GemmaConfig, positions: Int[Array, "B T"]) -> Rotations:
    """Sines and cosines for layers with a window (True) and without (False).

    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> sin, cos = rotations(config, ops.zeros((1, 3), "int32"))[False]
    >>> tuple(sin.shape), float(cos[0, 2, 0, 0])
    ((1, 3, 1, 256), 1.0)
    """
    bases = {True: (config.rope_base_local, 1.0), False: (config.rope_base, config.rope_scale)}
    return {local: sines(rope_angles(positions, config.head_dim, *base)) for local, base in bases.items()}


def forward(
    config: GemmaConfig,
    all_weights: Weights,
    ids: Int[Array, "B T"],
    *,
    segments: Int[Array, "B T"] | None = None,
    positions: Int[Array, "B T"] | None = None,
    dtype: str = "float32",
    remat: Remat | None = None,
) -> Float[Array, "B T D"]:
    """The last layer's output for whole sequences, as in training; logits are `head` of it.

    `segments` numbers the documents packed into a row: a token sees its own only; then `positions` count within them.
    With `remat` (`again` in train/gradient.py) of a layer only its input is kept for the backward pass.

    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> from gemmary.formats.tensors import weights
    >>> zeros = {path: ops.zeros(row.shape(config)) for path, row, _ in weights(config)}
    >>> tuple(forward(config, zeros, ops.zeros((1, 3), "int32")).shape)
    (1, 3, 4)
    """
    order = ops.zeros_like(ids, dtype="int32") + ops.arange(ids.shape[1], dtype="int32")
    # in order: a set's would change with the address of None, and with it the program and its name in JAX's cache
    masks = {window: attention_mask(order, order, window) for window in dict.fromkeys(config.windows)}
    if segments is not None:
        same = ops.expand_dims(segments, 2) == ops.expand_dims(segments, 1)
        masks = {window: ops.logical_and(mask, same) for window, mask in masks.items()}
    turns = rotations(config, order if positions is None else positions)
    run = remat(_whole) if remat else _whole
    x = embed(config, all_weights["embedding"], ids, dtype)
    for index, window in enumerate(config.windows):
        x = run(config, layer_weights(config, all_weights, index), x, turns[window is not None], masks[window])
    return x


def _whole(
    config: GemmaConfig, named: Weights, x: Float[Array, "B T D"], turn: Rotation, mask: Bool[Array, "B T T"]
) -> Float[Array, "B T D"]:
    """One layer for whole sequences."""
    return layer_pass(config, named, x, turn, [], mask)[0]


def layer_pass(
    config: GemmaConfig,
    named: Weights,
    x: Float[Array, "B T D"],
    turn: Rotation,
    before: Sequence[Part],
    own: Bool[Array, "B T T"],
    *,
    pick: Pick = every,
) -> tuple[Float[Array, "B Q D"], Pair]:
    """One layer for the next chunk of tokens, which attend to `before` and to themselves; its keys and values too.

    `named` are the layer's `layer_weights`.

    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> zeros = {row.path.removeprefix("layers.{i}."): ops.zeros(row.shape(config)) for row in rows(config)[1:-1]}
    >>> turn = rotations(config, ops.zeros((1, 3), "int32"))[False]
    >>> x, (k, v) = layer_pass(config, zeros, ops.ones((1, 3, 4)), turn, [], ops.ones((1, 3, 3), "bool"))
    >>> float(x[0, 2, 3]), tuple(k.shape)
    (1.0, (1, 1, 3, 256))
    """
    fresh: list[Pair] = []

    def look(k: Array, v: Array) -> Sequence[Part]:
        fresh.append((k, v))
        return [*before, (k, v, own)]

    return _block(x, _Layer(config, named), turn, look, pick), fresh[0]


class Sight(NamedTuple):
    """What a layer must know of a chunk's positions: their rotation, and who sees whom in the chunk and in the ring.

    >>> Sight(turn=(0, 1), own=True, past=None).own
    True
    """

    turn: Rotation
    own: Bool[Array, "B T T"]
    past: Bool[Array, "B T S"] | None  # None where nothing was run before


def sights(config: GemmaConfig, span: Span, length: int, rings: Sequence[int]) -> list[Sight]:
    """Of a chunk of that length, the Sight of each kind of layers, first the first layer's; `rings` are all layers'.

    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> span = Span(*(ops.array([number], "int32") for number in (0, 1, 3)), past=2)
    >>> [sight] = sights(config, span, 3, [16])
    >>> tuple(sight.own.shape), tuple(sight.past.shape)
    ((1, 3, 3), (1, 3, 2))
    """
    positions = span.positions(length)
    found = []
    for window, ring in dict(zip(config.windows, rings, strict=True)).items():  # layers of one window have rings alike
        past = attention_mask(positions, span.seen(ring), window) if span.past else None
        own = attention_mask(positions, positions, window)
        found.append(Sight(rotations(config, positions)[window is not None], own, past))
    return found


def cached_layer_pass(
    config: GemmaConfig,
    named: Weights,
    x: Float[Array, "B T D"],
    sight: Sight,
    rings: Pair,
    slots: Int[Array, "B"],
    *,
    pick: Pick = every,
) -> tuple[Float[Array, "B Q D"], Pair]:
    """`layer_pass` for the next chunk of some slots, which attend to what was run before in the layer's rings too.

    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> zeros = {row.path.removeprefix("layers.{i}."): ops.zeros(row.shape(config)) for row in rows(config)[1:-1]}
    >>> span = Span(*(ops.array([number], "int32") for number in (0, 1, 3)), past=2)
    >>> [sight], rings = sights(config, span, 3, [16]), (ops.zeros((1, 1, 16, 256)),) * 2
    >>> x, (k, v) = cached_layer_pass(config, zeros, ops.ones((1, 3, 4)), sight, rings, span.slots)
    >>> float(x[0, 2, 3]), tuple(k.shape)
    (1.0, (1, 1, 3, 256))
    """
    seen = sight.past
    before = [] if seen is None else [(*(read(ring, slots, seen.shape[2]) for ring in rings), seen)]
    return layer_pass(config, named, x, sight.turn, before, sight.own, pick=pick)


def forward_cached(
    config: GemmaConfig,
    layers: Sequence[Weights],
    x: Float[Array, "B T D"],
    sights: Sequence[Sight],
    slots: Int[Array, "B"],
    cache: Sequence[Pair],
    *,
    pick: Pick = every,
) -> tuple[Float[Array, "B Q D"], list[Pair]]:
    """The last layer's output for the next chunk of some slots, and the keys and values to `write` into the cache.

    `layers` are all `layer_weights`, `x` is the chunk's `embed`. The last layer computes no more than the tokens that
    `pick` takes. The `sights` are computed before: within one compiled pass XLA would compute them again for every head
    of every layer. A model's layers may be run in several stretches, each with a config of its own.

    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> from gemmary.formats.tensors import weights
    >>> zeros = {path: ops.zeros(row.shape(config)) for path, row, _ in weights(config)}
    >>> layers = [layer_weights(config, zeros, 0)]
    >>> from gemmary.model.cache import allocate
    >>> cache = allocate(config, slots=1, length=16, chunk=3, dtype="float32")
    >>> span = Span(*(ops.array([number], "int32") for number in (0, 0, 3)), past=0)
    >>> seen = sights(config, span, 3, [16])
    >>> x, fresh = forward_cached(config, layers, ops.ones((1, 3, 4)), seen, span.slots, cache, pick=span.last)
    >>> tuple(x.shape), tuple(fresh[0][0].shape)
    ((1, 1, 4), (1, 1, 3, 256))
    """
    by_window = dict(zip(dict.fromkeys(config.windows), sights, strict=True))
    last, fresh = config.num_layers - 1, []
    for index, (named, window, rings) in enumerate(zip(layers, config.windows, cache, strict=True)):
        taken = pick if index == last else every
        x, pair = cached_layer_pass(config, named, x, by_window[window], rings, slots, pick=taken)
        fresh.append(pair)
    return x, fresh
