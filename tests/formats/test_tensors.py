# SPDX-License-Identifier: Apache-2.0
"""The weight table: folds against transposes written by hand, and counts against the published ones."""

import numpy as np
import pytest

from gemmary.base.config import PRESETS, GemmaConfig
from gemmary.formats.tensors import TABLE, Stored, Weight, rows, weights

SMALL = GemmaConfig(vocab_size=11, num_layers=2, model_dim=7, num_heads=6, num_kv_heads=3, head_dim=4, mlp_dim=5)


def row(path: str) -> Weight:
    return next(each for each in TABLE if each.path.endswith(path))


def numbered(weight: Weight) -> np.ndarray:
    shape = weight.shape(SMALL)
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_table_s_weights_add_up_to_the_published_count(name: str) -> None:
    config = PRESETS[name]
    sizes = [np.prod(row.shape(config), dtype=np.int64) for _, row, _ in weights(config)]
    assert sum(sizes) == config.num_params


@pytest.mark.parametrize("name", ["gemma-2b", "gemma-2-2b", "gemma-3-1b-pt"])
@pytest.mark.parametrize("column", ["hf", "gguf", "keras"])
def test_no_two_weights_have_one_name(name: str, column: str) -> None:
    names = [getattr(row, column).at(layer) for _, row, layer in weights(PRESETS[name])]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("column", ["hf", "gguf", "keras", "torch"])
def test_unfold_is_the_inverse_of_fold(column: str) -> None:
    for weight in TABLE:
        stored: Stored = getattr(weight, column)
        array = numbered(weight)
        folded = stored.fold(array, SMALL)
        assert folded.shape == stored.shape(SMALL)
        np.testing.assert_array_equal(stored.unfold(folded, SMALL), array, err_msg=weight.path)


def test_folds_are_the_transposes_of_the_formats() -> None:
    query, output = numbered(row("attention.query")), numbered(row("attention.output"))
    gate, down = numbered(row("mlp.gate")), numbered(row("mlp.down"))
    # Hugging Face: rows are outputs, and y = x Wᵀ
    np.testing.assert_array_equal(row("attention.query").hf.fold(query, SMALL)[4 * 2 + 3], query[2, 3])
    np.testing.assert_array_equal(row("attention.output").hf.fold(output, SMALL)[:, 4 * 2 + 3], output[:, 2, 3])
    # KerasHub: einsums "btd,ndh->btnh", "btnh,nhd->btd" and "btd,df->btf"
    np.testing.assert_array_equal(row("attention.query").keras.fold(query, SMALL), query.transpose(0, 2, 1))
    np.testing.assert_array_equal(row("attention.output").keras.fold(output, SMALL), output.transpose(1, 2, 0))
    np.testing.assert_array_equal(row("mlp.gate").keras.fold(gate, SMALL), gate.T)
    np.testing.assert_array_equal(row("mlp.down").keras.fold(down, SMALL), down.T)


def test_only_gguf_holds_norms_as_one_plus_w() -> None:
    norm, array = row("final_norm"), np.float32([0.5, -1, 0, 2, 3, 4, 5])
    np.testing.assert_array_equal(norm.gguf.fold(array, SMALL), array + 1)
    for stored in (norm.hf, norm.keras, norm.torch):
        np.testing.assert_array_equal(stored.fold(array, SMALL), array)
    plain = SMALL.with_(norm_plus_one=False)  # a model that multiplies by w has nothing to add
    np.testing.assert_array_equal(norm.gguf.fold(array, plain), array)


@pytest.mark.parametrize(("name", "count"), [("gemma-2b", 11), ("gemma-2-2b", 13), ("gemma-3-1b-pt", 15)])
def test_features_decide_which_weights_exist(name: str, count: int) -> None:
    config = PRESETS[name]
    assert len(rows(config)) == count
    paths = {row.path for row in rows(config)}
    assert ("layers.{i}.attention.query_norm" in paths) == config.qk_norm
    assert ("layers.{i}.mlp_post_norm" in paths) == config.post_norm
    assert len(paths) == count  # each path once


def test_the_first_layer_of_kerashub_has_no_number() -> None:
    keras = row("mlp.up").keras
    assert [keras.at(layer) for layer in (0, 1)] == ["decoder_block/gating_ffw_2", "decoder_block_1/gating_ffw_2"]


def test_norms_are_never_quantised_and_the_head_only_to_eight_bits() -> None:
    assert {weight.lowest for weight in TABLE if weight.is_norm} == {"F32"}
    assert row("embedding").lowest == "Q8_0"
    assert {weight.lowest for weight in TABLE if not weight.is_norm and weight.per_layer} == {"Q4_0"}
