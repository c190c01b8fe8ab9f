# SPDX-License-Identifier: Apache-2.0
"""The forward pass in C: a model is made from arrays, run, and freed.

    Model(config, ...) ─► load(tensors) ─► forward(chunks) / score(chunks, targets) / embed(chunks)

Sizes, types and ranges are checked here with a message, and again in C with a status. Calls release the GIL.
"""

import ctypes
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import CheckpointError, InputError
from gemmary.formats.content import Blocks
from gemmary.formats.quantize import LAYOUTS, BlockType
from gemmary.native.library import ABI, address, library

_WEIGHTS = (  # gemmary.h's order, by the paths of the weight table
    "embedding",
    "final_norm",
    "attention_norm",
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "attention.query_norm",
    "attention.key_norm",
    "attention_post_norm",
    "mlp_norm",
    "mlp.gate",
    "mlp.up",
    "mlp.down",
    "mlp_post_norm",
)
_MOST_THREADS = 256
_BLOCK = 16  # rows that are packed together
_PIECE = 4 << 20  # bytes of a tensor read and packed at a time


class NativeChunk(NamedTuple):
    """Tokens of one slot, at positions start, start + 1, ...; logits are wanted after the last `num_logits` of them.

    >>> NativeChunk(slot=0, start=0, ids=(2, 651)).ids
    (2, 651)
    """

    slot: int
    start: int
    ids: Sequence[int]
    num_logits: int = 1


def blocks_of(array: NDArray[Any]) -> Blocks:
    """A weight that is in memory: a matrix by its rows, a norm as one row.

    >>> blocks_of(np.ones(4, np.float32)).shape
    (1, 4)
    """
    kinds = {"float32": BlockType.F32, "float16": BlockType.F16, "bfloat16": BlockType.BF16}
    kind = kinds.get(array.dtype.name, BlockType.F32)
    rows = np.ascontiguousarray(np.atleast_2d(array), LAYOUTS[kind])
    return Blocks(
        kind=kind,
        shape=(rows.shape[0], rows.shape[1]),
        read=lambda first, count: rows[first : first + count].reshape(-1).view(np.uint8),
    )


_SIZES = ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
_FLAGS = ("post_norm", "qk_norm", "norm_plus_one")
_REALS = ("norm_eps", "query_scale", "rope_base", "rope_base_local", "rope_scale")
_OWN_SIZES = ("num_slots", "max_length", "chunk_length", "num_threads")
_SAME_NAMES = (*_SIZES, *_FLAGS, *_REALS)


class _Config(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("abi", *_SIZES, *_FLAGS)),
        *((name, ctypes.c_float) for name in (*_REALS, "attn_softcap", "final_softcap")),
        *((name, ctypes.c_int32) for name in _OWN_SIZES),
        ("windows", ctypes.POINTER(ctypes.c_int32)),
        ("kernels", ctypes.c_char_p),
    )


class _Chunk(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int32) for name in ("slot", "start", "length", "num_logits"))


def kernel_sets() -> tuple[str, ...]:
    """The names of the sets of kernels that were built, best first; not all of them need run here.

    >>> kernel_sets()[-1]
    'portable'
    """
    names: list[str] = []
    while (name := library().gemmary_kernels(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


class Model:
    """One model in the native engine. Not for two threads at once.

    >>> from gemmary.formats.tensors import weights
    >>> config = GemmaConfig(vocab_size=32, num_layers=1, model_dim=8, num_heads=2, num_kv_heads=1, mlp_dim=16)
    >>> model = Model(config, num_slots=1, max_length=16, chunk_length=4, num_threads=1)
    >>> model.load((path, blocks_of(np.ones(row.gguf.shape(config), np.float32))) for path, row, _ in weights(config))
    >>> model.forward([NativeChunk(slot=0, start=0, ids=[2, 5])]).shape
    (1, 32)
    >>> model.score([NativeChunk(slot=0, start=2, ids=[7])], [[1]])[0].shape
    (1,)
    >>> model.candidates([NativeChunk(slot=0, start=3, ids=[9])]).shape
    (1, 32)
    >>> model.embed([NativeChunk(slot=0, start=4, ids=[9, 3])]).shape
    (1, 8)
    >>> model.kernels in kernel_sets(), model.cache_bytes, model.weight_bytes > model.screened_bytes
    (True, 16384, True)

    Raises InputError for sizes, threads or kernels that cannot be had.
    """

    def __init__(
        self,
        config: GemmaConfig,
        *,
        num_slots: int,
        max_length: int,
        chunk_length: int,
        num_threads: int,
        kernels: str | None = None,
    ) -> None:
        self.config, self.num_slots, self.max_length, self.chunk_length = config, num_slots, max_length, chunk_length
        if not 1 <= num_threads <= _MOST_THREADS:
            raise InputError(f"expected 1 to {_MOST_THREADS} threads, got {num_threads}: one for each core is best")
        for name, value in (("num_slots", num_slots), ("max_length", max_length), ("chunk_length", chunk_length)):
            if not 1 <= value < 2**24:
                raise InputError(f"expected {name} >= 1, got {value}: see the guide to the native engine")
        windows = (ctypes.c_int32 * config.num_layers)(*(window or 0 for window in config.windows))
        c_config = _Config(
            abi=ABI,
            **{name: getattr(config, name) for name in _SAME_NAMES},
            attn_softcap=config.attn_softcap or 0.0,
            final_softcap=config.final_softcap or 0.0,
            num_slots=num_slots,
            max_length=max_length,
            chunk_length=chunk_length,
            num_threads=num_threads,
            windows=windows,
            kernels=kernels.encode() if kernels else None,
        )
        handle = ctypes.c_void_p()
        self._check(library().gemmary_open(ctypes.byref(c_config), ctypes.byref(handle)), kernels)
        self._handle = handle
        self._num_threads = num_threads
        weakref.finalize(self, library().gemmary_close, handle)

    @property
    def kernels(self) -> str:
        """The name of the kernels in use."""
        name: bytes = library().gemmary_kernels_used(self._handle)
        return name.decode()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed matrices."""
        return int(library().gemmary_weight_bytes(self._handle))

    @property
    def screened_bytes(self) -> int:
        """Bytes of the packed matrices that `candidates` hardly reads."""
        return int(library().gemmary_screened_bytes(self._handle))

    @property
    def cache_bytes(self) -> int:
        """Bytes of the key-value cache of all slots."""
        return int(library().gemmary_cache_bytes(self._handle))

    def load(self, tensors: Iterable[tuple[str, Blocks]]) -> None:
        """Pack every weight, given by its path in the weight table; reading and packing run on all threads.

        Raises CheckpointError for what is missing or does not fit.
        """
        pieces = []
        for path, tensor in tensors:
            weight, layer = _place(path)
            status = library().gemmary_declare(self._handle, weight, layer, int(tensor.kind), *tensor.shape)
            self._check(status, path)
            row_bytes = tensor.kind.num_bytes(tensor.shape[1:])
            step = max(_BLOCK, _PIECE // row_bytes // _BLOCK * _BLOCK)
            pieces += [(path, tensor, first, step) for first in range(0, tensor.shape[0], step)]
        with ThreadPoolExecutor(self._num_threads) as pool:
            for _ in pool.map(self._fill, pieces):
                pass

    def forward(self, chunks: Sequence[NativeChunk]) -> NDArray[np.float32]:
        """Run the chunks and return the (sum of num_logits, V) logits that they want, in their order."""
        return self._run(library().gemmary_forward, chunks, self._logits_for(chunks))

    def candidates(self, chunks: Sequence[NativeChunk]) -> NDArray[np.float32]:
        """The same, but tokens that are not the most probable may have -inf: an 8-bit embedding is read by half."""
        return self._run(library().gemmary_candidates, chunks, self._logits_for(chunks))

    def score(
        self, chunks: Sequence[NativeChunk], targets: Sequence[Sequence[int]]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Run the chunks; the log-probability of each of their tokens' targets, and whether it is the best token."""
        if [len(each) for each in targets] != [len(chunk.ids) for chunk in chunks]:
            raise InputError("expected one target for each token of a chunk: give as many")
        ids, wanted = self._ids([chunk.ids for chunk in chunks]), self._ids(targets)
        log_probs, is_greedy = np.empty(len(ids), np.float32), np.empty(len(ids), np.bool_)
        status = library().gemmary_score(
            self._handle, *_as_c(chunks), address(ids), address(wanted), address(log_probs), address(is_greedy)
        )
        self._check(status, chunks)
        return log_probs, is_greedy

    def embed(self, chunks: Sequence[NativeChunk]) -> NDArray[np.float32]:
        """Run the chunks; of each the sum over its tokens of the final norm's output, (number of chunks, D)."""
        return self._run(library().gemmary_embed, chunks, (len(chunks), self.config.model_dim))

    def _logits_for(self, chunks: Sequence[NativeChunk]) -> tuple[int, int]:
        return sum(max(0, chunk.num_logits) for chunk in chunks), self.config.vocab_size

    def _run(
        self, function: Callable[..., int], chunks: Sequence[NativeChunk], shape: tuple[int, int]
    ) -> NDArray[np.float32]:
        found, ids = np.empty(shape, np.float32), self._ids([chunk.ids for chunk in chunks])
        self._check(function(self._handle, *_as_c(chunks), address(ids), address(found)), chunks)
        return found

    def _fill(self, piece: tuple[str, Blocks, int, int]) -> None:
        path, tensor, first, step = piece
        count = min(step, tensor.shape[0] - first)
        raw = tensor.read(first, count)
        expected = count * tensor.kind.num_bytes(tensor.shape[1:])
        if raw.dtype != np.uint8 or raw.ndim != 1 or raw.size != expected or not raw.flags.c_contiguous:
            raise CheckpointError(f"expected {expected} bytes of {path}, got {raw.nbytes}: fetch the file again")
        weight, layer = _place(path)
        self._check(library().gemmary_fill(self._handle, weight, layer, first, count, address(raw), raw.size), path)

    def _ids(self, sequences: Iterable[Sequence[int]]) -> NDArray[np.int32]:
        flat = np.fromiter((token for ids in sequences for token in ids), np.int64)
        if flat.size and not (flat.min() >= 0 and flat.max() < self.config.vocab_size):
            raise InputError(f"expected token ids in 0..{self.config.vocab_size - 1}, got {flat.min()} to {flat.max()}")
        return flat.astype(np.int32)

    def _check(self, status: int, what: object) -> None:
        if status == 0:
            return
        if status == 1:
            raise InputError(f"expected a configuration that the native engine can hold, got {self.config}")
        if status == 2:
            raise CheckpointError(f"expected the weights of the configuration, once each, got {what} of another kind")
        if status == 3:
            raise InputError(
                f"expected chunks of distinct slots 0..{self.num_slots - 1}, of 1..{self.chunk_length} tokens that end "
                f"by {self.max_length} and want logits after 0 up to all of them, got {str(what)[:200]}"
            )
        if status == 4:
            raise CheckpointError("expected every weight of the model, got some only: load all that the table lists")
        if status == 5:
            raise InputError(
                f"expected memory and threads for {self.num_slots} slots of {self.max_length} tokens, the system has "
                "no more: use fewer slots, a smaller max_length or fewer threads"
            )
        if status == 7:
            raise CheckpointError(f"expected finite values in {what}, got NaN or infinity: fetch the file again")
        names = ", ".join(kernel_sets())
        raise InputError(f"expected kernels that were built and run on this processor ({names}), got {what!r}")


def _place(path: str) -> tuple[int, int]:
    """gemmary.h's number of a weight, and its layer or -1."""
    parts = path.split(".", 2)
    name, layer = (parts[2], int(parts[1])) if parts[0] == "layers" else (path, -1)
    if name not in _WEIGHTS:
        raise CheckpointError(f"expected a weight of the table, got {path!r}")
    return _WEIGHTS.index(name), layer


def _as_c(chunks: Sequence[NativeChunk]) -> tuple[ctypes.Array[_Chunk], int]:
    return (_Chunk * len(chunks))(*(_Chunk(slot, start, len(ids), n) for slot, start, ids, n in chunks)), len(chunks)
