# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint's tensors to the backend's arrays, one at a time."""

from typing import Any

import keras
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.formats.content import Checkpoint
from gemmary.formats.tensors import Weight, weights

Array = Any


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

    >>> import numpy as np
    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=2, num_kv_heads=1, mlp_dim=4)
    >>> seen = as_matrices(config, {path: np.zeros(row.shape(config)) for path, row, _ in weights(config)})
    >>> tuple(seen["layers.0.attention.output"].shape)
    (4, 512)
    """
    return {path: keras.ops.reshape(arrays.pop(path), row.gguf.shape(config)) for path, row, _ in weights(config)}


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
