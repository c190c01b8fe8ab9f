# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint's arrays to the backend's: every bit, the right precision, one tensor at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from gemmary.base.config import GemmaConfig
from gemmary.formats.content import Checkpoint
from gemmary.formats.tensors import weights
from gemmary.model.weights import backend_array, load_weights, numpy_array


def test_every_bfloat16_keeps_its_bits() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = bits[(bits & 0x7F80) != 0x7F80].view(ml_dtypes.bfloat16)
    placed = backend_array(finite, "bfloat16")
    assert keras.backend.standardize_dtype(placed.dtype) == "bfloat16"
    wide = numpy_array(ops.cast(placed, "float32"))  # exact, but for what a processor flushes to zero
    normal = np.abs(finite.astype(np.float32)) >= 2.0**-126
    np.testing.assert_array_equal(wide[normal], finite.astype(np.float32)[normal])


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_weights_are_rounded_to_the_model_s_precision_and_norms_are_not(
    stored: str, tiny: Mapping[str, GemmaConfig], random_checkpoint: Callable[..., Checkpoint]
) -> None:
    config = tiny["gemma3"].with_(num_layers=1)
    arrays = {path: read().astype(stored) for path, read in random_checkpoint(config).tensors.items()}
    tensors = {path: (lambda array=array: array) for path, array in arrays.items()}
    loaded = load_weights(Checkpoint(config=config, tensors=tensors, vocabulary=None), "bfloat16")
    for path, row, _ in weights(config):
        kind = "float32" if row.is_norm else "bfloat16"
        assert keras.backend.standardize_dtype(loaded[path].dtype) == kind
        assert tuple(loaded[path].shape) == row.shape(config)
        expected = arrays[path].astype(kind).astype(np.float32)
        np.testing.assert_array_equal(numpy_array(ops.cast(loaded[path], "float32")), expected)


def test_each_tensor_is_let_go_before_the_next_is_read(
    tiny: Mapping[str, GemmaConfig], random_checkpoint: Callable[..., Checkpoint]
) -> None:
    """A file's array in another precision is a copy; only one of them may exist."""
    import weakref

    config = tiny["gemma2"]
    alive: set[str] = set()

    def reading(path: str, read: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            assert not alive
            array = read().astype(np.float16)
            alive.add(path)
            weakref.finalize(array, alive.discard, path)
            return array

        return run

    source = random_checkpoint(config)
    tensors = {path: reading(path, read) for path, read in source.tensors.items()}
    assert len(load_weights(Checkpoint(config=config, tensors=tensors, vocabulary=None), "float32")) == len(tensors)
    assert not alive
