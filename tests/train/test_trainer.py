# SPDX-License-Identifier: Apache-2.0
"""Steps: gradients against transformers' own, packed and not; every parameter moves; what is not finite is left out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import InputError
from gemmary.formats.adapter import TARGETS
from gemmary.formats.content import Checkpoint
from gemmary.formats.tensors import weights
from gemmary.model.weights import numpy_array
from gemmary.train.gradient import value_and_gradient
from gemmary.train.objective import Learner, next_token
from gemmary.train.optimizer import Adafactor, AdamW
from gemmary.train.parameters import Full, LoRA, Parameters
from gemmary.train.trainer import Trainer

Batch = dict[str, NDArray[Any]]
LENGTHS = (23, 9, 16)


def documents(vocab_size: int) -> list[NDArray[np.int32]]:
    draw = np.random.default_rng(4)
    return [draw.integers(0, vocab_size, length, np.int32) for length in LENGTHS]


def rows(documents: list[list[NDArray[np.int32]]], length: int) -> Batch:
    """Documents by the row they stand in, all tokens after the first learned: the arrays that training reads."""
    shape = (len(documents), length)
    batch: Batch = {name: np.zeros(shape, np.int32) for name in ("ids", "segments", "positions")}
    at, targets = [], []
    for row, members in enumerate(documents):
        first = 0
        for number, ids in enumerate(members):
            span = slice(first, first + len(ids))
            batch["ids"][row, span], batch["segments"][row, span] = ids, number + 1
            batch["positions"][row, span] = np.arange(len(ids))
            at += [row * length + place for place in range(first, first + len(ids) - 1)]
            targets += ids[1:].tolist()
            first += len(ids)
    return {**batch, "at": np.int32(at), "targets": np.int32(targets), "weights": np.ones(len(at), np.float32)}


def apart(vocab_size: int) -> Batch:
    return rows([[each] for each in documents(vocab_size)], 24)


def packed(vocab_size: int) -> Batch:
    first, second, third = documents(vocab_size)
    return rows([[first, third], [second]], 40)


def gradients(config: GemmaConfig, table: Mapping[str, Any], batch: Batch, *, remat: bool) -> tuple[float, Any]:
    arrays = {name: ops.convert_to_tensor(each) for name, each in batch.items()}

    def loss(learned: dict[str, Any]) -> tuple[Any, Any]:
        learner = Learner(config=config, weights=learned, dtype="float32", learns_table=True, remat=remat)
        total, count = next_token(learner, arrays)
        return total / count, count

    (value, _), slopes = value_and_gradient(loss, {path: ops.convert_to_tensor(each) for path, each in table.items()})
    return float(value), {path: numpy_array(each) for path, each in slopes.items()}


def by_transformers(model: Any, config: GemmaConfig) -> tuple[float, dict[str, NDArray[np.float32]]]:
    import torch

    total, count = 0.0, sum(length - 1 for length in LENGTHS)
    for each in documents(config.vocab_size):
        ids = torch.from_numpy(each.astype(np.int64))[None]
        loss = model(ids, labels=ids).loss * (len(each) - 1) / count
        loss.backward()
        total += loss.item()
    named = dict(model.named_parameters())
    return total, {
        path: row.hf.unfold(named["model." + row.hf.at(layer)].grad.numpy(), config)
        for path, row, layer in weights(config)
    }


@pytest.mark.parametrize(("make", "remat"), [(apart, False), (packed, True)])
def test_gradients_are_those_of_transformers(
    features: GemmaConfig,
    random_checkpoint: Callable[..., Checkpoint],
    reference: Callable[..., Any],
    make: Callable[[int], Batch],
    remat: bool,
) -> None:
    arrays = {path: tensor() for path, tensor in random_checkpoint(features).tensors.items()}
    value, slopes = gradients(features, arrays, make(features.vocab_size), remat=remat)
    expected, by_path = by_transformers(
        reference(features, {path: each.copy() for path, each in arrays.items()}), features
    )
    assert value == pytest.approx(expected, abs=1e-4)
    for path, slope in slopes.items():
        scale = max(1.0, float(np.abs(by_path[path]).max()))
        np.testing.assert_allclose(slope / scale, by_path[path] / scale, rtol=0, atol=1e-4, err_msg=path)


@pytest.mark.parametrize(
    ("parameters", "remat"),
    [
        (Full(), True),
        (LoRA(rank=2), False),
        (LoRA(rank=2, is_dora=True), True),
        (LoRA(rank=2, bits=8), True),
        (LoRA(rank=2, bits=4), False),
    ],
)
def test_everything_that_is_learned_moves_and_nothing_else(
    tiny: Mapping[str, GemmaConfig], random_checkpoint: Callable[..., Checkpoint], parameters: Parameters, remat: bool
) -> None:
    config = tiny["gemma3"].with_(num_layers=2, model_dim=64, mlp_dim=96)
    trainer = Trainer(random_checkpoint(config), parameters=parameters, dtype="float32", remat=remat)
    before = trainer.learned()
    losses = [trainer.step(packed(config.vocab_size), rate=1e-3).loss for _ in range(3)]
    assert losses[2] < losses[0]
    still = [path for path, each in trainer.learned().items() if np.array_equal(each, before[path])]
    assert still == []


@pytest.mark.parametrize("optimizer", [AdamW(weight_decay=0.1), Adafactor()])
def test_micro_batches_are_one_batch(
    tiny: Mapping[str, GemmaConfig], random_checkpoint: Callable[..., Checkpoint], optimizer: AdamW | Adafactor
) -> None:
    config = tiny["gemma1"]
    whole = apart(config.vocab_size)
    halves = [dict(whole) for _ in range(2)]  # the same rows; each learns from every other token
    for number, half in enumerate(halves):
        half["weights"] = np.float32(np.arange(len(whole["at"])) % 2 == number)
    stacked = {name: np.stack([half[name] for half in halves]) for name in whole}
    found = []
    for batch in (whole, stacked):
        trainer = Trainer(random_checkpoint(config), parameters=Full(), optimizer=optimizer, dtype="float32")
        loss = trainer.step(batch, rate=1e-3).loss
        found.append((loss, {path: each for path, each in trainer.state.items() if path.startswith("moments/")}))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for path, each in found[0][1].items():  # the gradients, but for a factor, or their squares
        np.testing.assert_allclose(each, found[1][1][path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_a_step_that_is_not_finite_is_left_out_and_its_layer_named(
    tiny: Mapping[str, GemmaConfig], random_checkpoint: Callable[..., Checkpoint]
) -> None:
    config = tiny["gemma3"]
    trainer = Trainer(random_checkpoint(config), parameters=LoRA(rank=2), dtype="float32")
    batch = packed(config.vocab_size)
    trainer.step(batch, rate=1e-3)
    state = trainer.state
    broken = {**state, "learned/layers.3.mlp.up.down": np.full_like(state["learned/layers.3.mlp.up.down"], np.inf)}
    trainer.state = broken
    metrics = trainer.step(batch, rate=1e-3)
    assert not metrics.is_finite and trainer.steps == 2
    assert trainer.first_fault(batch) == "layer 3"
    after = trainer.state
    for path in broken:
        assert path == "step" or np.array_equal(after[path], broken[path], equal_nan=True)


def test_a_state_goes_on_where_it_was(
    tiny: Mapping[str, GemmaConfig], random_checkpoint: Callable[..., Checkpoint]
) -> None:
    config, batch = tiny["gemma2"], packed(tiny["gemma2"].vocab_size)
    whole = Trainer(random_checkpoint(config), dtype="bfloat16")
    for _ in range(3):
        whole.step(batch, rate=1e-3)
    first = Trainer(random_checkpoint(config), dtype="bfloat16")
    first.step(batch, rate=1e-3)
    second = Trainer(random_checkpoint(config), dtype="bfloat16", seed=99)
    second.state = first.state
    for _ in range(2):
        second.step(batch, rate=1e-3)
    for path, each in whole.state.items():
        assert np.array_equal(each, second.state[path]), path


def test_a_state_of_another_recipe_is_refused(
    tiny: Mapping[str, GemmaConfig], random_checkpoint: Callable[..., Checkpoint]
) -> None:
    checkpoint = random_checkpoint(tiny["gemma1"])
    trainer = Trainer(checkpoint, parameters=LoRA(rank=2))
    with pytest.raises(InputError, match="expected a state of the same recipe"):
        trainer.state = Trainer(checkpoint, parameters=LoRA(rank=3)).state
    assert trainer.steps == 0


def test_values_that_make_no_recipe_are_refused(
    tiny: Mapping[str, GemmaConfig], random_checkpoint: Callable[..., Checkpoint]
) -> None:
    for values in ({"rank": 0}, {"alpha": -1.0}, {"targets": ()}, {"targets": ("mlp.upp",)}, {"bits": 3}):
        with pytest.raises(InputError, match="expected"):
            LoRA(**values)
    assert "attention.output" in TARGETS
    with pytest.raises(InputError, match="float16 overflows"):
        Trainer(random_checkpoint(tiny["gemma1"]), dtype="float16")


RUN = """
import json, sys
import numpy as np
from gemmary.formats.checkpoint import open_checkpoint
from gemmary.train.trainer import Trainer
from gemmary.train.parameters import LoRA, Full
from pathlib import Path
batches = [dict(each) for each in np.load(sys.argv[2], allow_pickle=True)["batches"]]
found = {}
for name, parameters in (("full", Full()), ("lora", LoRA(rank=4))):
    trainer = Trainer(open_checkpoint(Path(sys.argv[1])), parameters=parameters, dtype="float32")
    found[name] = [trainer.step(batch, rate=1e-3).loss for batch in batches]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="starts all three backends itself")
def test_twenty_steps_are_the_same_on_three_backends(golden: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(8)
    batches = [rows([[draw.integers(3, 300, 30, np.int32)] for _ in range(2)], 32) for _ in range(20)]
    np.savez(tmp_path / "batches.npz", batches=np.array(batches, object))
    losses = {}
    for backend in ("jax", "torch", "tensorflow"):
        command = [sys.executable, "-c", RUN, str(golden / "model"), str(tmp_path / "batches.npz")]
        environment = {**os.environ, "KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        losses[backend] = json.loads(done.stdout.splitlines()[-1])
    for name in ("full", "lora"):
        assert losses["jax"][name][-1] < losses["jax"][name][0]
        for backend in ("torch", "tensorflow"):
            np.testing.assert_allclose(losses[backend][name], losses["jax"][name], rtol=0, atol=1e-4)
