# SPDX-License-Identifier: Apache-2.0
"""The inputs of every matrix are those of the forward pass in float64."""

import importlib.util
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import InputError
from gemmary.formats.content import Checkpoint
from gemmary.formats.tensors import weights
from gemmary.generate.calibrate import alike, input_squares

SIZES = {"vocab_size": 50, "num_layers": 3, "model_dim": 32, "num_heads": 4, "head_dim": 8, "mlp_dim": 48}
CONFIGS = {
    "gemma1": GemmaConfig(**SIZES, num_kv_heads=1, query_scale=8**-0.5),
    "gemma2": GemmaConfig(
        **SIZES, num_kv_heads=2, query_scale=0.3, window_pattern=(5, None), attn_softcap=4.0, post_norm=True
    ),
    "gemma3": GemmaConfig(
        **SIZES,
        num_kv_heads=4,
        window_pattern=(7, 7, None),
        rope_base=1e6,
        rope_scale=8.0,
        post_norm=True,
        qk_norm=True,
        norm_plus_one=False,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_inputs_are_those_of_the_formula(
    name: str, random_checkpoint: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(__file__).parents[1] / "native" / "reference.py"
    spec = importlib.util.spec_from_file_location("forward_reference", path)
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    config = CONFIGS[name]
    checkpoint = random_checkpoint(config)
    arrays = {path: read().astype(np.float64) for path, read in checkpoint.tensors.items()}
    names = {id(array): path for path, array in arrays.items()}
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(()))
    times = reference._times

    def noted(x: np.ndarray, matrix: np.ndarray, rounds: reference.Rounds) -> np.ndarray:
        sums[names[id(matrix)]] = sums[names[id(matrix)]] + np.square(x).sum(axis=0)
        return times(x, matrix, rounds)

    monkeypatch.setattr(reference, "_times", noted)
    ids = np.random.default_rng(5).integers(0, 50, 33).tolist()
    windows = [ids[:16], ids[16:32], ids[32:]]
    for window in windows:
        reference.logits(config, arrays, window, reference.Rounds.NOTHING)
    found = input_squares(checkpoint, windows)
    assert found.keys() == sums.keys() - {"embedding"} == alike(config).keys()
    for path, squares in found.items():
        np.testing.assert_allclose(squares, sums[path] / len(ids), rtol=2e-4)
        assert squares.shape == alike(config)[path].shape


def test_every_layer_is_told_and_no_ids_are_refused(random_checkpoint: Callable[..., Checkpoint]) -> None:
    ticks: list[None] = []
    checkpoint = random_checkpoint(CONFIGS["gemma1"])
    input_squares(checkpoint, [[2, 3]], tick=lambda: ticks.append(None))
    assert len(ticks) == 3
    with pytest.raises(InputError, match="expected ids to calibrate with, got none"):
        input_squares(checkpoint, [])


def test_matrices_of_a_layer_are_all_there() -> None:
    config = CONFIGS["gemma3"]
    shapes = {path: row.gguf.shape(config) for path, row, layer in weights(config) if layer is not None}
    assert {path: (len(ones),) for path, ones in alike(config).items()} == {
        path: shape[1:] for path, shape in shapes.items() if len(shape) == 2
    }
