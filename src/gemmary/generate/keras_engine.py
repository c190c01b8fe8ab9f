# SPDX-License-Identifier: Apache-2.0
"""KerasEngine: logits for slots from the one Keras model, on JAX, PyTorch and TensorFlow.

    chunks of any length ─► batches of few shapes (padded) ─► one compiled pass each ─► logits, scores or sums
                                                              └► its keys and values into the cache

A pass is compiled for each (rows, tokens, past) it meets; all three are rounded up to a few values.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import InputError, MissingExtraError
from gemmary.formats.content import Checkpoint
from gemmary.formats.locate import cache_folder
from gemmary.generate.generator import Chunk
from gemmary.generate.request import Score
from gemmary.generate.rings import Rings

try:
    from keras import backend, ops

    from gemmary.model.cache import Span, allocate, write
    from gemmary.model.compiled import FOR_ROWS, compile_part, compile_pure, keep_compiled
    from gemmary.model.gemma import embed, every, forward_cached, head, layer_weights, sights
    from gemmary.model.layers import rms_norm
    from gemmary.model.weights import as_matrices, load_weights, numpy_array, use_huge_pages
except ImportError as error:
    raise MissingExtraError.of("the Keras engine", "Keras 3 and a backend", "jax") from error

_LEAST_PAST, _LEAST_TOKENS = 256, 16  # fewer positions, tokens but one, are not worth a compilation of their own
_LEAST_KEPT = 16  # positions: to look back at fewer takes longer than to run them again
# tokens whose logits, (tokens, V) float32, exist at the same time; TensorFlow's product slows down fivefold from 128
_SCORED_AT_ONCE = 64 if backend.backend() == "tensorflow" else 128


class KerasEngine:
    """An Engine over a checkpoint's weights; `dtype` is float32 or bfloat16, for weights, activations and cache.

    A slot holds `max_length` positions (the model's context if not given), fed at most `chunk_length` at a time. Raises
    InputError for sizes below 1 and for a precision that Gemma does not bear.

    >>> import numpy as np
    >>> from gemmary.formats.tensors import weights
    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> tensors = {path: (lambda row=row: np.ones(row.shape(config))) for path, row, _ in weights(config)}
    >>> checkpoint = Checkpoint(config=config, tensors=tensors, vocabulary=None)
    >>> engine = KerasEngine(checkpoint, num_slots=2, max_length=16)
    >>> engine.logits([Chunk(slot=1, start=0, ids=(2, 5, 6))]).shape
    (1, 8)
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        num_slots: int = 1,
        max_length: int | None = None,
        chunk_length: int = 512,
        dtype: str = "float32",
    ) -> None:
        length = checkpoint.config.max_length if max_length is None else max_length
        _check(num_slots=num_slots, max_length=length, chunk_length=chunk_length)
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"expected float32 or bfloat16, got {dtype}: float16 overflows in Gemma")
        keep_compiled(cache_folder() / "jax")
        self._config, self._num_slots, self._max_length = checkpoint.config, num_slots, length
        self._chunk_length, self._dtype = min(chunk_length, length), dtype
        arrays = as_matrices(self._config, load_weights(checkpoint, dtype))
        use_huge_pages(arrays)
        self._ends = {name: arrays[name] for name in ("embedding", "final_norm")}
        self._layers = [layer_weights(self._config, arrays, index) for index in range(self._config.num_layers)]
        self._cache = allocate(self._config, slots=num_slots, length=length, chunk=self._chunk_length, dtype=dtype)
        self._rings = Rings(self._config, num_slots=num_slots, max_length=length, chunk_length=self._chunk_length)
        folder = cache_folder() / "torch"
        self._few = compile_part(forward_cached), compile_part(head)
        self._one = compile_part(forward_cached, folder, FOR_ROWS), compile_part(head, folder, FOR_ROWS)
        count, period = self._config.num_layers, len(self._config.window_pattern)
        self._whole, self._alone, self._periods = (_stretches(self._config, size) for size in (count, 1, period))
        self._start = compile_pure(compile_part(self._start_pass))
        self._start_one = compile_pure(compile_part(self._start_pass, folder))
        self._logits, self._score = compile_pure(self._logits_pass), compile_pure(self._score_pass)
        self._sum = compile_pure(self._sum_pass)
        self._write = compile_pure(_write_pass, donate=True)

    @property
    def config(self) -> GemmaConfig:
        """The model's sizes and features."""
        return self._config

    @property
    def num_slots(self) -> int:
        """How many sequences can be in flight at once."""
        return self._num_slots

    @property
    def max_length(self) -> int:
        """The most positions a slot can hold."""
        return self._max_length

    @property
    def chunk_length(self) -> int:
        """The most tokens of one slot in one call."""
        return self._chunk_length

    @property
    def num_drafts(self) -> int:
        """None: a pass gives the last logits alone, and every further token would cost a step of its own."""
        return 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that are read for a token: all of them, the embedding as the output head."""
        return self._config.num_params * (4 if self._dtype == "float32" else 2)

    def logits(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run the chunks and return the (sum of num_logits, V) float32 logits that they want, one or none each."""
        if any(chunk.num_logits not in (0, 1) for chunk in chunks):
            raise InputError("expected chunks that want logits after their last token or none, got one that wants more")
        places = {at: place for place, at in enumerate(at for at, chunk in enumerate(chunks) if chunk.num_logits)}
        logits = np.empty((len(places), self._config.vocab_size), np.float32)
        for batch in self._batches(chunks):
            found = numpy_array(self._run(self._logits, batch))
            for row, at in batch.rows():
                if at in places:
                    logits[places[at]] = found[row]
        return logits

    def candidates(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """The same: all logits."""
        return self.logits(chunks)

    def score(self, chunks: Sequence[Chunk], targets: Sequence[Sequence[int]]) -> list[Score]:
        """Run the chunks and judge, for each of their tokens, the target that is said to follow it."""
        scores: dict[int, Score] = {}
        for batch in self._batches(chunks):
            wanted = np.zeros_like(batch.ids)
            for row, at in batch.rows():
                wanted[row, : len(targets[at])] = targets[at]
            log_probs, is_greedy = map(numpy_array, self._run(self._score, batch, wanted))
            for row, at in batch.rows():
                length = len(targets[at])
                scores[at] = Score(log_probs=log_probs[row, :length], is_greedy=is_greedy[row, :length])
        return [scores[at] for at in range(len(chunks))]

    def embed(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run the chunks; of each the sum over its tokens of the final norm's output, (number of chunks, D)."""
        sums = np.empty((len(chunks), self._config.model_dim), np.float32)
        for batch in self._batches(chunks):
            found = numpy_array(self._run(self._sum, batch))
            for row, at in batch.rows():
                sums[at] = found[row]
        return sums

    def keep(self, slot: int, length: int) -> int:
        """Of a slot's first `length` positions, how many a new sequence may go on from: `length`, or 0.

        0 where they are few, such as the BOS that all texts begin with.
        """
        return self._rings.keep(slot, length) if length >= _LEAST_KEPT else 0

    def _batches(self, chunks: Sequence[Chunk]) -> Iterator["_Batch"]:
        """Chunks of like length together, as many rows as fit into one chunk's length."""
        groups: dict[int, list[int]] = {}
        for at, chunk in enumerate(chunks):
            self._rings.ran(chunk)
            groups.setdefault(min(self._chunk_length, _rounded(len(chunk.ids), _LEAST_TOKENS)), []).append(at)
        for length, members in groups.items():
            most = self._num_slots if length == 1 else max(1, self._chunk_length // length)
            for first in range(0, len(members), most):
                yield self._batch(chunks, members[first : first + most], length)

    def _batch(self, chunks: Sequence[Chunk], members: list[int], length: int) -> "_Batch":
        """Some of the chunks as one batch, slots in order; a row that fills it up has a slot of its own, no token."""
        by_slot = {chunks[at].slot: at for at in members}
        size = min(self._num_slots, _rounded(len(members), 1))
        unused = (slot for slot in range(self._num_slots) if slot not in by_slot)
        slots = sorted([*by_slot, *islice(unused, size - len(members))])
        order = [by_slot.get(slot) for slot in slots]
        ids, places = np.zeros((size, length), np.int32), np.zeros((3, size), np.int32)
        places[0] = slots
        for row, at in enumerate(order):
            if at is not None:
                places[1:, row] = chunks[at].start, len(chunks[at].ids)
                ids[row, : len(chunks[at].ids)] = chunks[at].ids
        return _Batch(order, self._past(int(places[1].max())), ids, places)

    def _past(self, before: int) -> int:
        """How many positions before a batch are looked at: none, or one of few numbers not below `before`."""
        past = _LEAST_PAST if before else 0
        while past < before:
            past *= 4
        return min(past, self._max_length)

    def _run(self, layers: Callable[..., Any], batch: "_Batch", *more: Any) -> Any:
        """What one of the passes below finds for a batch, whose keys and values are in the cache then."""
        ids, places, *others = map(ops.convert_to_tensor, (batch.ids, batch.places, *more))
        start = self._start_one if batch.ids.size == 1 else self._start
        x, seen = start(batch.past, self._ends["embedding"], ids, places)
        found, fresh = layers(None, (self._layers, self._ends), x, seen, places, self._cache, *others)
        self._cache = self._write(None, self._cache, fresh, batch.places)
        return found

    def _start_pass(self, past: int, table: Any, ids: Any, places: Any) -> Any:
        rings = [keys.shape[2] for keys, _ in self._cache]
        seen = sights(self._config, _span(places, past), ids.shape[1], rings)
        return embed(self._config, table, ids, self._dtype), seen

    def _logits_pass(self, _: None, weights: Any, x: Any, seen: Any, places: Any, cache: Any) -> Any:
        x, fresh = self._forward(weights, x, seen, places, cache, _span(places).last)
        return self._parts(x)[2](self._config, weights[1], x)[:, 0], fresh

    def _score_pass(self, _: None, weights: Any, x: Any, seen: Any, places: Any, cache: Any, targets: Any) -> Any:
        x, fresh = self._forward(weights, x, seen, places, cache, every)
        step = max(1, _SCORED_AT_ONCE // x.shape[0])
        parts = [slice(first, first + step) for first in range(0, x.shape[1], step)]
        judged = [_judged(head(self._config, weights[1], x[:, part]), targets[:, part]) for part in parts]
        log_probs, is_greedy = zip(*judged, strict=True)
        return (ops.concatenate(log_probs, axis=1), ops.concatenate(is_greedy, axis=1)), fresh

    def _sum_pass(self, _: None, weights: Any, x: Any, seen: Any, places: Any, cache: Any) -> Any:
        x, fresh = self._forward(weights, x, seen, places, cache, every)
        x = rms_norm(x, weights[1]["final_norm"], eps=self._config.norm_eps, plus_one=self._config.norm_plus_one)
        is_token = ops.arange(x.shape[1], dtype="int32") < ops.expand_dims(places[2], 1)
        return ops.sum(ops.where(ops.expand_dims(is_token, 2), ops.cast(x, "float32"), 0.0), axis=1), fresh

    def _forward(
        self, weights: Any, x: Any, seen: Any, places: Any, cache: Any, pick: Callable[[Any], Any]
    ) -> tuple[Any, Any]:
        fresh: list[Any] = []
        stretches, run, _ = self._parts(x)
        for each in stretches:
            has_more = each is stretches[-1] and x.shape[1] > 1
            forward = partial(forward_cached, pick=pick) if has_more else run
            sights_of = [seen[kind] for kind in each.kinds]
            x, pairs = forward(each.config, weights[0][each.layers], x, sights_of, places[0], cache[each.layers])
            fresh += pairs
        return x, fresh

    def _parts(self, x: Any) -> tuple[list["_Stretch"], Callable[..., Any], Callable[..., Any]]:
        """In what stretches to run the layers, and what computes one and the head.

        Those are libraries for the sizes that a long text and its continuation have. Of one token a library is a
        period of layers: more of them would save little, and take the compiler longer than each kind alone.
        """
        rows, length, _ = x.shape
        if length > 1 and (rows, length) != (1, self._chunk_length):
            return self._whole, forward_cached, head
        if rows > 1:
            return self._alone, *self._few
        return (self._periods if length == 1 else self._alone), *self._one


@dataclass(frozen=True)
class _Stretch:
    """Layers that follow each other: which, the config that a model of them alone has, and which of the sights."""

    layers: slice
    config: GemmaConfig
    kinds: list[int]


def _stretches(config: GemmaConfig, size: int) -> list[_Stretch]:
    """All layers, `size` at a time."""
    kinds, found = list(dict.fromkeys(config.windows)), []
    for layers in (slice(first, first + size) for first in range(0, config.num_layers, size)):
        windows = config.windows[layers]
        alone = replace(config, num_layers=len(windows), window_pattern=windows)
        found.append(_Stretch(layers, alone, [kinds.index(window) for window in dict.fromkeys(windows)]))
    return found


@dataclass(frozen=True)
class _Batch:
    """Chunks as arrays: ids (B, T), and of each row its slot, its first position and how many ids are not padding."""

    order: list[int | None]  # which chunk a row is; None is padding
    past: int
    ids: NDArray[np.int32]
    places: NDArray[np.int32]  # (3, B): slots, starts, counts

    def rows(self) -> list[tuple[int, int]]:
        """The rows that are chunks, and which."""
        return [(row, at) for row, at in enumerate(self.order) if at is not None]


def _span(places: Any, past: int = 0) -> Span:
    return Span(places[0], places[1], places[2], past)


def _write_pass(_: None, cache: Any, fresh: Any, places: Any) -> Any:
    return write(cache, fresh, _span(places))


def _judged(logits: Any, targets: Any) -> tuple[Any, Any]:
    """Natural logarithms of the targets' probabilities, and whether each is the most probable token, (B, T) both."""
    best = ops.max(logits, axis=-1, keepdims=True)
    total = ops.log(ops.sum(ops.exp(logits - best), axis=-1))
    wanted = ops.take_along_axis(logits, ops.expand_dims(targets, -1), axis=-1)
    return (wanted - best)[..., 0] - total, ops.cast(ops.argmax(logits, axis=-1), targets.dtype) == targets


def _rounded(count: int, least: int) -> int:
    """1, or the next power of two from `least` on."""
    return 1 if count <= 1 else max(least, 1 << (count - 1).bit_length())


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"expected {name} >= 1, got {size}: ask for at least one")
