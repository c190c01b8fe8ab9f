# SPDX-License-Identifier: Apache-2.0
"""NativeEngine: the Engine of the C library, for CPUs. It needs NumPy and nothing else."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import InputError
from gemmary.formats.content import Blocks, Checkpoint
from gemmary.formats.tensors import weights
from gemmary.generate.generator import Chunk
from gemmary.generate.request import Score
from gemmary.generate.rings import Rings
from gemmary.native.runtime import Model, NativeChunk, blocks_of

DEFAULT_CHUNK = 256
_MOST_DRAFTS = 15  # with AVX2 16 tokens of the 270M take as long in one pass as 6 or 7 one by one, 8 as long as 4


class NativeEngine:
    """The Engine of a checkpoint in the native library.

    Matrices keep the block format of a GGUF file; from float files they become int8 in groups of 32. Keys and values
    are bfloat16, activations int8 in groups of 32, norms and softmax float32, whatever `dtype` says. A reply does not
    depend on the number of threads, on how a prompt is cut into chunks or on what else runs, to the last bit. Without
    `two_stages` the whole head is read even where the most probable token alone is wanted.

    >>> from gemmary.base.config import GemmaConfig
    >>> from gemmary.native.runtime import kernel_sets
    >>> config = GemmaConfig(vocab_size=32, num_layers=1, model_dim=8, num_heads=2, num_kv_heads=1, mlp_dim=16)
    >>> ones = {path: lambda row=row: np.ones(row.shape(config), np.float32) for path, row, _ in weights(config)}
    >>> engine = NativeEngine(Checkpoint(config=config, tensors=ones, vocabulary=None), max_length=8)
    >>> engine.logits([Chunk(slot=0, start=0, ids=(2, 5))]).shape
    (1, 32)
    >>> engine.kernels in kernel_sets(), engine.cache_bytes, engine.weight_bytes > 0
    (True, 16384, True)

    Raises InputError for sizes, threads or kernels that cannot be had, CheckpointError for weights that do not fit.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        num_slots: int = 1,
        max_length: int | None = None,
        chunk_length: int = DEFAULT_CHUNK,
        num_threads: int | None = None,
        kernels: str | None = None,
        dtype: str = "float32",
        two_stages: bool = True,
    ) -> None:
        config = checkpoint.config
        length = config.max_length if max_length is None else max_length
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"expected float32 or bfloat16, got {dtype}: it is the Keras engine's, and no matter here")
        self._model = Model(
            config,
            num_slots=num_slots,
            max_length=length,
            chunk_length=min(chunk_length, max(1, length)),
            num_threads=default_threads() if num_threads is None else num_threads,
            kernels=kernels,
        )
        self._two_stages = two_stages
        self._model.load(_blocks(checkpoint))
        self._rings = Rings(config, num_slots=num_slots, max_length=length, chunk_length=self._model.chunk_length)

    @property
    def config(self) -> GemmaConfig:
        """The model's sizes and features."""
        return self._model.config

    @property
    def num_slots(self) -> int:
        """How many sequences can be in flight at once."""
        return self._model.num_slots

    @property
    def max_length(self) -> int:
        """The most positions a slot can hold."""
        return self._model.max_length

    @property
    def chunk_length(self) -> int:
        """The most tokens of one slot in one call."""
        return self._model.chunk_length

    @property
    def num_drafts(self) -> int:
        """How many drafted tokens a call may judge, in all slots together; a slot can be taken back by as many."""
        return min(_MOST_DRAFTS, self.chunk_length - 1)

    @property
    def kernels(self) -> str:
        """The name of the kernels in use: of `gemmary.native.runtime.kernel_sets()`."""
        return self._model.kernels

    @property
    def cache_bytes(self) -> int:
        """Bytes of the key-value cache of all slots."""
        return self._model.cache_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that are read for a token that is picked greedily."""
        return self._model.weight_bytes - (self._model.screened_bytes if self._two_stages else 0)

    def logits(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run the chunks and return the (sum of num_logits, V) float32 logits that they want, in their order."""
        self._note(chunks)
        return self._model.forward(_native(chunks))

    def candidates(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Those logits, but tokens that are not the most probable may have -inf; what is not -inf is exact.

        The head is read in two stages. That the most probable token is missed has a probability below 1e-9.
        """
        if not self._two_stages:
            return self.logits(chunks)
        self._note(chunks)
        return self._model.candidates(_native(chunks))

    def score(self, chunks: Sequence[Chunk], targets: Sequence[Sequence[int]]) -> list[Score]:
        """Run the chunks and judge, for each of their tokens, the target that is said to follow it."""
        self._note(chunks)
        native = [NativeChunk(chunk.slot, chunk.start, chunk.ids) for chunk in chunks]
        log_probs, is_greedy = self._model.score(native, targets)
        ends = np.cumsum([len(chunk.ids) for chunk in chunks])[:-1]
        return [
            Score(log_probs=part.astype(np.float64), is_greedy=flags)
            for part, flags in zip(np.split(log_probs, ends), np.split(is_greedy, ends), strict=True)
        ]

    def embed(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run the chunks; of each the sum over its tokens of the final norm's output, (number of chunks, D)."""
        self._note(chunks)
        return self._model.embed(_native(chunks))

    def keep(self, slot: int, length: int) -> int:
        """Of a slot's first `length` positions, how many a new sequence may go on from: `length`, or 0."""
        return self._rings.keep(slot, length)

    def _note(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            if not 0 <= chunk.slot < self.num_slots:
                raise InputError(f"expected a slot in 0..{self.num_slots - 1}, got {chunk.slot}")
            self._rings.ran(chunk)


def _native(chunks: Sequence[Chunk]) -> list[NativeChunk]:
    return [NativeChunk(chunk.slot, chunk.start, chunk.ids, chunk.num_logits) for chunk in chunks]


def default_threads() -> int:
    """One thread for each core this process may use, at most 16: beyond that memory is the limit.

    >>> 1 <= default_threads() <= 16
    True
    """
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _blocks(checkpoint: Checkpoint) -> Iterator[tuple[str, Blocks]]:
    """Every weight as its file holds it, or as the array it means."""
    for path, row, _ in weights(checkpoint.config):
        if path in checkpoint.blocks:
            yield path, checkpoint.blocks[path]
        else:
            array = checkpoint.tensors[path]().reshape(row.gguf.shape(checkpoint.config))
            yield path, blocks_of(array.astype(np.float32) if row.is_norm else array)
