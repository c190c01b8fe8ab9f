# SPDX-License-Identifier: Apache-2.0
"""Runs: what a recipe may say, checkpoints that are kept, and a training that is killed and goes on bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from gemmary.base.errors import FileError, InputError
from gemmary.formats.peft_folder import read_adapter
from gemmary.train.curves import Board
from gemmary.train.recipes import read_recipe, recipe_of
from gemmary.train.run import Progress
from gemmary.train.state import restore, save, saved
from gemmary.train.trainer import Metrics

LEAST = {"data": "a.jsonl", "output": "out"}
once = pytest.mark.skipif(keras.backend.backend() != "jax", reason="does not depend on the backend: run on JAX alone")


@once
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rnak": 8}, "expected a key of a recipe, got 'rnak': did you mean rank?"),
        ({"rank": "eight"}, "expected rank to be a whole number, got 'eight'"),
        ({"rank": 1.5}, "expected rank to be a whole number, got 1.5"),
        ({"rank": 0}, "expected rank >= 1, got 0"),
        ({"rate": -1}, "expected rate > 0, got -1.0"),
        ({"learn": "everything"}, "expected learn to be one of lora, dora, full, got 'everything'"),
        ({"packed": "maybe"}, "expected packed to be a truth value (true or false), got 'maybe'"),
        ({"bits": 4, "learn": "full"}, "expected no bits when everything is learned, got 4"),
    ],
)
def test_a_recipe_says_what_is_wrong_with_it(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        recipe_of({**LEAST, **values})
    assert str(error.value).startswith(message)


@once
def test_words_take_the_place_of_a_file_s_values(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('data = ["a", "b"]\noutput = "out"\nrank = 4\nbits = 8\n', "utf-8")
    recipe = read_recipe(tmp_path / "r.toml", ["rank=8", "bits=none", "rate=1e-3", "remat=false"])
    assert (recipe.data, recipe.rank, recipe.bits, recipe.rate, recipe.remat) == (("a", "b"), 8, None, 1e-3, False)
    with pytest.raises(InputError, match="expected data in the recipe, got none"):
        recipe_of({"output": "out"})
    (tmp_path / "r.toml").write_text("rank = = 4", "utf-8")
    with pytest.raises(FileError, match="expected a recipe in TOML"):
        read_recipe(tmp_path / "r.toml")


@once
def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, loss in enumerate((3.0, 1.0, 2.0, 2.5, 2.6)):
        save(tmp_path, {"step": np.array(step, np.int32)}, recipe={"rank": 4}, loss=loss, keep=2)
    (tmp_path / ".step-000009.left").mkdir()  # by a kill
    assert [each.step for each in saved(tmp_path)] == [1, 3, 4]
    with pytest.raises(
        FileError, match=r"expected a checkpoint of the same recipe in .*, got rank = 4 where it is 8 now"
    ):
        restore(saved(tmp_path)[-1], recipe={"rank": 8})
    save(tmp_path, {"step": np.array(5, np.int32)}, recipe={}, loss=None, keep=2)
    assert not list(tmp_path.glob(".step-*"))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow reads the events: run there alone")
def test_tensorflow_reads_the_events_and_where_steps_come_again(tmp_path: Path) -> None:
    from tensorflow.compat.v1.train import summary_iterator

    reported = []
    for steps in ((0, 1, 2, 3), (2, 3, 4)):  # killed after 3, saved after 2
        with Board(tmp_path) as board:
            report = board.before(lambda progress: reported.append(progress.step))
            for step in steps:
                metrics = Metrics(loss=3.0 * step + len(steps), norm=0.5, learned=9, is_finite=True)
                known = None if step == steps[0] else metrics
                report(Progress(step=step, steps=4, metrics=known, seconds=2.0, tokens=64, held_back=None))
        time.sleep(1.1)  # a file's name has seconds
    first, second = ([*summary_iterator(str(path))] for path in sorted(tmp_path.iterdir()))
    assert losses(first) == [(1, 7), (2, 10), (3, 13)] and losses(second) == [(3, 12), (4, 15)]
    assert [each.step for each in second if each.session_log.status] == [3]  # TensorBoard drops the first's from there
    assert {each.tag for event in first for each in event.summary.value} == {"loss", "norm", "tokens_per_second"}
    assert reported == [0, 1, 2, 3, 2, 3, 4]


def losses(events: list[Any]) -> list[tuple[int, float]]:
    return [(event.step, each.simple_value) for event in events for each in event.summary.value if each.tag == "loss"]


STEPS = 120


def begun(golden: Path, folder: Path) -> subprocess.Popen[str]:
    """`gemmary tune` of the golden on twelve texts, saving after every step; PyTorch starts soonest."""
    rows = [json.dumps({"text": f"Rain falls on the {each}."}) + "\n" for each in "abcdefghijkl"]
    (folder / "chat.jsonl").write_text("".join(rows), "utf-8")
    recipe = f'model = "{golden / "model"}"\ndata = ["chat.jsonl"]\noutput = "out"\n'
    (folder / "recipe.toml").write_text(recipe, "utf-8")
    words = ["rank=2", "length=64", "batch_size=2", "packed=false", "epochs=20", "save_every=1", "keep=1", "seed=5"]
    command = [sys.executable, "-m", "gemmary", "tune", "recipe.toml", *words, "--backend", "torch"]
    environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}  # more wait for each other
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def steps_done(folder: Path) -> int:
    log = folder / "out" / "metrics.jsonl"
    return log.read_text("utf-8").count("\n") if log.exists() else 0


@once
@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(golden: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    begun(golden, whole).communicate()
    expected, draw = read_adapter(whole / "out" / "adapter"), np.random.default_rng(1)
    for _ in range(10):  # each time after at least one more step, wherever it is then
        process, known = begun(golden, killed), steps_done(killed)
        while process.poll() is None and steps_done(killed) <= known:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()
    assert not (killed / "out" / "adapter").exists()
    begun(golden, killed).communicate()
    found = read_adapter(killed / "out" / "adapter")
    assert found.base == expected.base and found.tensors.keys() == expected.tensors.keys()
    for path, each in expected.tensors.items():
        assert np.array_equal(each, found.tensors[path]), path
    assert steps_done(killed) == steps_done(whole) == STEPS
    lines = (killed / "out" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))


@once
@pytest.mark.slow
def test_ctrl_c_saves_and_says_so(golden: Path, tmp_path: Path) -> None:
    process = begun(golden, tmp_path)
    while process.poll() is None and not steps_done(tmp_path):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and errors.splitlines()[-1] == "saved; the same command goes on from here"
    assert 0 < saved(tmp_path / "out" / "checkpoints")[-1].step == steps_done(tmp_path) < STEPS
