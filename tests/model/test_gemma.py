# SPDX-License-Identifier: Apache-2.0
"""The forward pass against transformers' own classes, masks drawn as matrices, packing, training, every preset."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from numpy.typing import NDArray

from gemmary.base.config import PRESETS, GemmaConfig
from gemmary.formats.content import Checkpoint
from gemmary.formats.tensors import weights
from gemmary.model import gemma
from gemmary.model.compiled import compile_pure
from gemmary.model.gemma import attention_mask, forward, head
from gemmary.model.keras_model import Gemma
from gemmary.model.weights import backend_array, numpy_array

IS_JAX = keras.backend.backend() == "jax"
Reference = Callable[[GemmaConfig, Mapping[str, NDArray[Any]]], Any]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """PyTorch keeps what gradients need unless it is told not to; training asks for it itself."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.no_grad():
        yield


def logits_of(config: GemmaConfig, table: Mapping[str, Any], ids: NDArray[np.int32], **packing: Any) -> NDArray[Any]:
    def compute(_: int, table: Mapping[str, Any], ids: Any, packing: Mapping[str, Any]) -> Any:
        return head(config, table, forward(config, table, ids, **packing, dtype="float32"))

    arrays = {name: ops.convert_to_tensor(array) for name, array in packing.items()}
    return numpy_array(compile_pure(compute)(0, table, ops.convert_to_tensor(ids), arrays))


def read(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    return {path: tensor() for path, tensor in checkpoint.tensors.items()}


def placed(arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Arrays of the backend; each of NumPy's is let go before the next is placed."""
    return {path: backend_array(arrays.pop(path), "float32") for path in list(arrays)}


def by_transformers(model: Any, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    import torch

    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.from_numpy(ids.astype(np.int64))).logits.float().numpy()
    return logits


def some_ids(config: GemmaConfig, rows: int, length: int) -> NDArray[np.int32]:
    return np.random.default_rng(3).integers(0, config.vocab_size, (rows, length), np.int32)


def test_logits_are_those_of_transformers(
    features: GemmaConfig, random_checkpoint: Callable[..., Checkpoint], reference: Reference
) -> None:
    arrays = read(random_checkpoint(features))
    ids = some_ids(features, 2, 50)  # three times the windows
    expected = by_transformers(reference(features, arrays), ids)
    logits = logits_of(features, placed(arrays), ids)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma-7b", "gemma-2-27b", "gemma-3-27b-pt"])
def test_two_layers_at_full_width_are_those_of_transformers(name: str, reference: Reference) -> None:
    config = PRESETS[name]
    pattern = (16, None) if config.post_norm else (None,)  # a local and a global layer, and more tokens than the window
    config = config.with_(num_layers=2, vocab_size=512, window_pattern=pattern)
    generator, arrays = np.random.default_rng(5), {}
    for path, row, _ in weights(config):
        array = generator.random(row.shape(config), np.float32)
        array -= np.float32(0.5)
        fan_in = config.num_heads * config.head_dim if row.dims == "D N H" else array.shape[-1]
        array *= np.float32(0.5 if row.is_norm else (12 / fan_in) ** 0.5)
        arrays[path] = array
    ids = some_ids(config, 1, 40)
    expected = by_transformers(reference(config, arrays), ids)
    logits = logits_of(config, placed(arrays), ids)
    scale = np.abs(expected).max()
    assert scale > 1
    np.testing.assert_allclose(logits / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX, whose default is less on a GPU or TPU")
def test_products_of_float32_are_float32_on_every_device() -> None:
    import jax

    programs: list[str] = []

    def square(_: int, x: Any) -> Any:
        programs.append(str(jax.make_jaxpr(ops.matmul)(x, x)))
        return ops.matmul(x, x)

    compile_pure(square)(0, ops.ones((2, 2)))
    assert "(Precision.HIGHEST, Precision.HIGHEST)" in programs[0]


def test_a_window_counts_the_token_itself() -> None:
    positions = np.arange(5, dtype=np.int32)[None]
    assert drawn(attention_mask(positions, positions, 3)[0]) == ["#....", "##...", "###..", ".###.", "..###"]
    assert drawn(attention_mask(positions, positions, 1)[0]) == ["#....", ".#...", "..#..", "...#.", "....#"]
    assert drawn(attention_mask(positions, positions, None)[0]) == ["#....", "##...", "###..", "####.", "#####"]


def test_positions_below_0_are_seen_by_nobody() -> None:
    queries, keys = np.int32([[4, 5, 6]]), np.int32([[-3, 4, -1, 2, 3]])
    assert drawn(attention_mask(queries, keys, None)[0]) == [".#.##", ".#.##", ".#.##"]
    assert drawn(attention_mask(queries, keys, 3)[0]) == [".#.##", ".#..#", ".#..."]


@pytest.mark.parametrize(
    ("generation", "pattern"),
    [("gemma1", "ggg"), ("gemma2", "lglg"), ("gemma3", "lllllgl")],
)
def test_each_layer_attends_by_its_place_in_the_pattern(
    generation: str,
    pattern: str,
    tiny: Mapping[str, GemmaConfig],
    random_checkpoint: Callable[..., Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[NDArray[np.bool_]] = []

    def attend(q: Any, parts: Any, cap: Any) -> Any:
        seen.append(numpy_array(parts[0][2])[0])
        return original(q, parts, cap)

    original = gemma.attend
    monkeypatch.setattr(gemma, "attend", attend)
    config = tiny[generation]
    table = placed(read(random_checkpoint(config)))
    forward(config, table, ops.convert_to_tensor(some_ids(config, 1, 20)))
    past = np.arange(20)[:, None] - np.arange(20)
    expected = {"g": past >= 0, "l": (past >= 0) & (past < 16)}
    assert [next(kind for kind in "gl" if np.array_equal(mask, expected[kind])) for mask in seen] == list(pattern)


@pytest.mark.parametrize("window", [1, 3, None])
def test_only_what_a_token_sees_changes_its_logits(window: int | None, tiny: Mapping[str, GemmaConfig]) -> None:
    config = tiny["gemma2"].with_(num_layers=1, window_pattern=(window,))
    generator = np.random.default_rng(1)
    table = placed({p: generator.normal(0, 0.3, r.shape(config)).astype("float32") for p, r, _ in weights(config)})
    length = 6
    rows = np.tile(np.arange(10, 10 + length, dtype=np.int32), (length + 1, 1))
    rows[np.arange(length), np.arange(length)] = 99  # row j has another token j; the last row is as it was
    logits = logits_of(config, table, rows)
    # what is seen moves some logit by whole units; a product's last rows round otherwise, by 1e-6 with AVX-512
    changed = (np.abs(logits[:-1] - logits[-1]).max(axis=2) > 1e-3).T
    past = np.arange(length)[:, None] - np.arange(length)
    assert drawn(changed) == drawn((past >= 0) & (past < (window or length)))


def drawn(matrix: Any) -> list[str]:
    return ["".join("#" if each else "." for each in row) for row in ops.convert_to_numpy(matrix)]


def test_packed_rows_equal_single_ones(features: GemmaConfig, random_checkpoint: Callable[..., Checkpoint]) -> None:
    table = placed(read(random_checkpoint(features)))
    lengths, ids = (7, 1, 30, 12), some_ids(features, 1, 50)
    segments = np.repeat(np.arange(4, dtype=np.int32), lengths)[None]
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])[None]
    packed = logits_of(features, table, ids, segments=segments, positions=positions)[0]
    starts = np.cumsum((0, *lengths[:-1]))
    alone = np.stack([np.roll(ids[0], -start) for start in starts])  # what follows a row's own tokens changes nothing
    single = logits_of(features, table, alone)
    for row, start, length in zip(single, starts, lengths, strict=True):
        np.testing.assert_allclose(packed[start : start + length], row[:length], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_fit_changes_every_variable_and_its_file_brings_them_back(features: GemmaConfig, tmp_path: Path) -> None:
    keras.utils.set_random_seed(7)
    with enabled_gradients():
        model = Gemma(features)
        before = {path: numpy_array(value.value).copy() for path, value in model.weight_table.items()}
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss)
        ids = some_ids(features, 3, 20)
        history = model.fit(ids[:, :-1], ids[:, 1:], epochs=3, batch_size=2, verbose=0).history["loss"]
    assert history[2] < history[0]
    after = {path: numpy_array(value.value) for path, value in model.weight_table.items()}
    assert set(after) == {path for path, _, _ in weights(features)}
    assert [path for path in after if np.array_equal(before[path], after[path])] == []
    model.save_weights(tmp_path / "m.weights.h5")
    other = Gemma(features)
    assert not np.allclose(numpy_array(other(ids)), numpy_array(model(ids)))
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(numpy_array(other(ids)), numpy_array(model(ids)))


def enabled_gradients() -> Any:
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.enable_grad()


def test_the_keras_model_in_bfloat16_keeps_norms_and_logits_in_float32(tiny: Mapping[str, GemmaConfig]) -> None:
    model = Gemma(tiny["gemma3"].with_(num_layers=1), dtype="bfloat16")
    kinds = {(path.endswith("_norm"), value.dtype) for path, value in model.weight_table.items()}
    assert kinds == {(True, "float32"), (False, "bfloat16")}
    logits = model(keras.KerasTensor((1, 4), "int32"))
    assert (logits.shape, logits.dtype) == ((1, 4, 320), "float32")


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_built_without_memory(name: str) -> None:
    config = PRESETS[name]
    with keras.StatelessScope(initialize_variables=False):
        model = Gemma(config)
    assert model.count_params() == config.num_params
    assert {path: tuple(value.shape) for path, value in model.weight_table.items()} == {
        path: row.shape(config) for path, row, _ in weights(config)
    }


@pytest.mark.skipif(not IS_JAX, reason="only JAX computes shapes alone")
@pytest.mark.parametrize("config", list(dict.fromkeys(PRESETS.values())), ids=lambda config: f"{config.num_params}")
def test_every_preset_s_shapes_fit(config: GemmaConfig) -> None:
    import jax

    table = {path: jax.ShapeDtypeStruct(row.shape(config), "bfloat16") for path, row, _ in weights(config)}
    ids = jax.ShapeDtypeStruct((2, 9), "int32")
    logits = jax.eval_shape(
        lambda table, ids: head(config, table, forward(config, table, ids, dtype="bfloat16")), table, ids
    )
    assert (logits.shape, logits.dtype) == ((2, 9, config.vocab_size), "float32")
