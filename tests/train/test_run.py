# SPDX-License-Identifier: Apache-2.0
"""Runs: what a recipe may say, checkpoints that are kept, and a training that is killed and goes on bit for bit."""

import json
import os
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
from gemmary.train.recipes import read_recipe, recipe_of
from gemmary.train.state import restore, save, saved

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


def begun(golden: Path, folder: Path) -> subprocess.Popen[str]:
    (folder / "chat.jsonl").write_text(
        "".join(json.dumps({"text": f"Rain falls on the {each}."}) + "\n" for each in "abcdefghijkl"), "utf-8"
    )
    (folder / "recipe.toml").write_text(
        f'model = "{golden / "model"}"\ndata = ["chat.jsonl"]\noutput = "out"\n', "utf-8"
    )
    words = ["rank=2", "length=64", "batch_size=2", "packed=false", "epochs=4", "save_every=1", "keep=1", "seed=5"]
    command = [sys.executable, "-m", "gemmary", "tune", "recipe.toml", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


@once
@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(golden: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    _, errors = begun(golden, whole).communicate()
    expected = read_adapter(whole / "out" / "adapter")
    draw, kills = np.random.default_rng(1), 0
    while not (killed / "out" / "adapter").exists():
        process = begun(golden, killed)
        while process.poll() is None and not (killed / "out" / "checkpoints").exists():
            time.sleep(0.02)
        assert process.poll() is None or kills < 3, errors
        if kills < 3:
            time.sleep(draw.random() * 0.5)
            process.kill()
            kills += 1
        process.communicate()
    found = read_adapter(killed / "out" / "adapter")
    assert kills == 3 and found.base == expected.base
    for path, each in expected.tensors.items():
        assert np.array_equal(each, found.tensors[path]), path
    lines = (killed / "out" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 25))
