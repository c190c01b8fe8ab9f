# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint's arrays to the backend's: every bit, the right precision, one tensor at a time."""

import mmap
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from gemmary.base.config import GemmaConfig
from gemmary.formats.content import Checkpoint
from gemmary.formats.tensors import weights
from gemmary.model.gemma import TOGETHER, forward
from gemmary.model.weights import as_matrices, backend_array, load_weights, numpy_array, use_huge_pages


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


def test_matrices_held_as_one_multiply_as_they_did(
    features: GemmaConfig, random_checkpoint: Callable[..., Checkpoint]
) -> None:
    loaded = load_weights(random_checkpoint(features), "float32")
    ids = ops.array([[2, 7, 5, 9, 4]], "int32")
    expected = numpy_array(forward(features, loaded, ids))
    matrices = as_matrices(features, loaded)
    assert loaded == {}
    for names in TOGETHER:
        assert f"layers.0.{' '.join(names)}" in matrices
        assert not {f"layers.0.{name}" for name in names} & matrices.keys()
    np.testing.assert_allclose(numpy_array(forward(features, matrices, ids)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_move_to_huge_pages_and_stay_the_same(dtype: str) -> None:
    with mmap.mmap(-1, 1 << 23, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as probe:
        probe.write(b"1" * len(probe))
        try:
            probe.madvise(25)  # MADV_COLLAPSE
        except OSError:
            pytest.skip("this kernel moves nothing: Linux does since 6.1")
    values = np.random.default_rng(0).random((4096, 2048), np.float32)
    arrays = {str(index): backend_array(values + index, dtype) for index in range(8)}
    use_huge_pages(arrays)
    [known] = [line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHugePages" in line]
    size = 8 * values.size * (4 if dtype == "float32" else 2)
    assert int(known.split()[1]) * 1024 > 0.9 * size
    for index, array in enumerate(arrays.values()):
        expected = numpy_array(ops.cast(backend_array(values + index, dtype), "float32"))
        np.testing.assert_array_equal(numpy_array(ops.cast(array, "float32")), expected)
