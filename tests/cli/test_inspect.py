# SPDX-License-Identifier: Apache-2.0
"""gemmary inspect adds up: parameters are those of the shapes, bytes those of the file, memory that of the formulas."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest

from gemmary.base.config import GemmaConfig
from gemmary.formats.adapter import Adapter
from gemmary.formats.checkpoint import open_checkpoint, write_checkpoint
from gemmary.formats.peft_folder import write_adapter

Command = Callable[..., tuple[int, str, str]]


def test_the_sums_are_right(command: Command, tiny_model: Path) -> None:
    found = json.loads(command("inspect", str(tiny_model), "--json", "--context", "100")[1])
    total = sum(prod(row["shape"]) * row["count"] for row in found["shapes"])
    config = GemmaConfig(**found["config"] | {"window_pattern": tuple(found["config"]["window_pattern"])})
    assert total == found["parameters"]["total"] == config.num_params
    assert found["parameters"]["embedding"] + found["parameters"]["non_embedding"] == total
    assert found["disk"]["format"] == "gguf" and found["disk"]["bytes"] == tiny_model.stat().st_size
    assert found["disk"]["by_precision"] == {"F32": 4 * total}
    assert found["memory"]["float32"]["weights"] == 4 * total
    assert found["memory"]["bfloat16"]["cache"] == config.cache_bytes(100, chunk=100, itemsize=2)
    assert found["vocabulary"] == 288


@pytest.mark.parametrize(("format", "name"), [("safetensors", "folder"), ("keras", "preset"), ("torch", "model.ckpt")])
def test_every_format_is_named_and_weighed(
    format: str, name: str, command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_model)
    write_checkpoint(checkpoint, tmp_path / name, format=format, dtype="bfloat16")
    disk = json.loads(command("inspect", str(tmp_path / name), "--json")[1])["disk"]
    assert disk["format"] == format
    assert 2 <= disk["bytes"] / checkpoint.config.num_params < 5
    assert f"format        {format}, " in command("inspect", str(tmp_path / name))[1]


def test_the_page_for_people_has_the_same_numbers(command: Command, tiny_model: Path) -> None:
    status, out, err = command("inspect", str(tiny_model))
    config = open_checkpoint(tiny_model).config
    assert (status, err) == (0, "")
    assert f"parameters    {config.num_params:,}" in out
    assert "model_dim         32" in out and "layers.{i}.attention.query" in out


def test_an_adapter_says_what_it_is_and_which_model_it_is_for(
    command: Command, tiny_model: Path, random_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    adapter = random_adapter(open_checkpoint(tiny_model), targets=("attention.query", "mlp.up"))
    write_adapter(adapter, tmp_path / "adapter", dtype="bfloat16")
    found = json.loads(command("inspect", str(tmp_path / "adapter"), "--json")[1])
    model = json.loads(command("inspect", str(tiny_model), "--json")[1])
    assert found["base"] == model["fingerprint"] == adapter.base
    assert (found["kind"], found["rank"], found["alpha"], found["matrices"]) == ("LoRA", 4, 8.0, 4)
    assert found["parameters"] == 2 * 4 * (32 + 32 + 32 + 64)
    assert 2 * found["parameters"] < found["bytes"] < 2 * found["parameters"] + 2000
    out = command("inspect", str(tmp_path / "adapter"))[1]
    assert "targets       attention.query, mlp.up: 4 matrices" in out and f"base          {adapter.base}" in out


def test_a_context_past_the_models_is_refused(command: Command, tiny_model: Path) -> None:
    assert command("inspect", str(tiny_model), "--context", "8193") == (
        2,
        "",
        "gemmary: expected --context in 1..8192, the model's context, got 8193: choose one\n",
    )
