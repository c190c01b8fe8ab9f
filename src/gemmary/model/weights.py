# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint's tensors to the backend's arrays, one at a time."""

import ctypes
import mmap
import sys
from collections.abc import Mapping
from itertools import product
from typing import Any

import keras
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.formats.content import Checkpoint
from gemmary.formats.tensors import Weight, weights
from gemmary.model.gemma import TOGETHER

Array = Any

_HUGE = 1 << 21  # bytes of a huge page
_COLLAPSE = 25  # MADV_COLLAPSE, of Linux since 6.1, which Python's mmap does not know
_ON_CPU = 1  # DLPack's kDLCPU


def load_weights(checkpoint: Checkpoint, dtype: str) -> dict[str, Array]:
    """The weights as arrays of the backend by their paths in the table; norm scales stay float32.

    Read one by one: the memory needed is the model's and one tensor more.

    >>> import numpy as np
    >>> from gemmary.base.config import GemmaConfig
    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> tensors = {path: (lambda row=row: np.zeros(row.shape(config))) for path, row, _ in weights(config)}
    >>> loaded = load_weights(Checkpoint(config=config, tensors=tensors, vocabulary=None), "bfloat16")
    >>> tuple(loaded["embedding"].shape)
    (8, 4)
    """
    return {
        path: backend_array(checkpoint.tensors[path](), precision(row, dtype))
        for path, row, _ in weights(checkpoint.config)
    }


def as_matrices(config: GemmaConfig, arrays: dict[str, Array]) -> dict[str, Array]:
    """The arrays, taken out one by one, as the matrices that `layers.project` sees: XLA is slow over three axes.

    Those that multiply the same input are one, under their names joined: fewer and longer reads take less time.

    >>> import numpy as np
    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=2, num_kv_heads=1, mlp_dim=4)
    >>> seen = as_matrices(config, {path: np.zeros(row.shape(config)) for path, row, _ in weights(config)})
    >>> tuple(seen["layers.0.attention.output"].shape), tuple(seen["layers.0.mlp.gate mlp.up"].shape)
    ((4, 512), (8, 4))
    """
    shapes = {path: row.gguf.shape(config) for path, row, _ in weights(config)}
    for layer, names in product(range(config.num_layers), TOGETHER):
        parts = [f"layers.{layer}.{name}" for name in names]
        matrices = [keras.ops.reshape(arrays.pop(path), shapes.pop(path)) for path in parts]
        arrays[joined := f"layers.{layer}.{' '.join(names)}"] = keras.ops.concatenate(matrices)
        shapes[joined] = arrays[joined].shape
    return {path: keras.ops.reshape(arrays.pop(path), shape) for path, shape in shapes.items()}


def use_huge_pages(arrays: Mapping[str, Array]) -> None:
    """Have Linux put what the arrays hold of a CPU's memory on pages of 2 MiB; elsewhere, or if it refuses, nothing.

    A token reads all weights. On pages of 4 KiB up to a fifth of its time goes into finding out where these are.

    >>> use_huge_pages({"embedding": backend_array(np.ones((8, 4)), "float32")})
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for array in arrays.values():
        if array.__dlpack_device__()[0] == _ON_CPU:
            start, end = _memory(array)
            first, last = start // _HUGE, -(-end // _HUGE)
            for advice in (mmap.MADV_HUGEPAGE, _COLLAPSE):
                advise(first * _HUGE, (last - first) * _HUGE, advice)


def _memory(array: Array) -> tuple[int, int]:
    """The addresses between which a CPU's array lies."""
    if keras.backend.backend() == "torch":  # which gives NumPy no bfloat16
        return array.data_ptr(), array.data_ptr() + array.nbytes
    same = numpy_array(array)
    return same.ctypes.data, same.ctypes.data + same.nbytes


def precision(row: Weight, dtype: str) -> str:
    """The precision a weight is held in when the model's is `dtype`.

    >>> from gemmary.formats.tensors import TABLE
    >>> [precision(row, "bfloat16") for row in TABLE[:2]]
    ['bfloat16', 'float32']
    """
    return "float32" if row.is_norm else dtype


def backend_array(array: NDArray[Any], dtype: str) -> Array:
    """A NumPy array as an array of the backend; without a copy where precision and memory allow.

    >>> import numpy as np
    >>> len(backend_array(np.float32([1, 2]), "bfloat16"))
    2
    """
    array = array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype, copy=False)
    array = np.ascontiguousarray(array).reshape(array.shape)  # which makes one axis of none
    if keras.backend.backend() != "torch":
        return keras.ops.convert_to_tensor(array, dtype)
    import torch

    is_bfloat16 = array.dtype == ml_dtypes.bfloat16  # NumPy has none that PyTorch knows: pass its bits
    tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
    return keras.ops.convert_to_tensor(tensor.view(torch.bfloat16) if is_bfloat16 else tensor)


def numpy_array(array: Array) -> NDArray[Any]:
    """An array of the backend as one of NumPy; bfloat16 only where the backend knows NumPy's.

    >>> numpy_array(backend_array(np.float32([1, 2]), "float32"))
    array([1., 2.], dtype=float32)
    """
    return array.numpy(force=True) if keras.backend.backend() == "torch" else np.asarray(array)
