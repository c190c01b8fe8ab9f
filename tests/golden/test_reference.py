# SPDX-License-Identifier: Apache-2.0
"""The golden as others compute it: transformers from the folder, llama.cpp from our GGUF of it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gemmary.cli.main import run
from gemmary.formats.adapter import Adapter
from gemmary.formats.checkpoint import open_checkpoint, write_checkpoint
from gemmary.formats.peft_folder import write_adapter

CHILD = """
import json, sys, xllamacpp
file, prompts, count = json.loads(sys.argv[1])
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = file, 256, 1, False
settings.fit_params, settings.verbosity = False, 0
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(settings)
asked = {"n_predict": count, "temperature": 0}
answers = [server.handle_completions(asked | {"prompt": prompt})["choices"][0]["text"] for prompt in prompts]
print("answer:" + json.dumps(answers), flush=True)
"""


@pytest.fixture(scope="module")
def expected(golden: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((golden / "expected.json").read_text("utf-8"))
    return found


def test_transformers_says_the_same_from_the_folder(golden: Path, expected: list[dict[str, Any]]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(golden / "model", dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(golden / "model")
    for each in expected:
        ids = tokenizer(each["prompt"], return_tensors="pt").input_ids
        assert ids[0].tolist().count(2) == 1
        with torch.no_grad():
            logits = model(ids).logits[0, -1].numpy()
            reply = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
        np.testing.assert_allclose(logits, each["logits"], rtol=0, atol=2e-4)
        assert reply.tolist() == each["ids"]
        assert tokenizer.decode(reply, skip_special_tokens=True) == each["text"]


def llama_cpp(file: Path, prompts: list[str], count: int) -> list[str]:
    """The texts with which llama.cpp goes on."""
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    argument = json.dumps([str(file), prompts, count])
    done = subprocess.run([sys.executable, "-c", CHILD, argument], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("answer:")]
    texts: list[str] = json.loads(line.removeprefix("answer:"))
    return texts


def test_llama_cpp_says_the_same_from_our_file(golden: Path, expected: list[dict[str, Any]], tmp_path: Path) -> None:
    write_checkpoint(open_checkpoint(golden / "model"), tmp_path / "m.gguf", format="gguf", dtype="float32")
    texts = llama_cpp(tmp_path / "m.gguf", [each["prompt"] for each in expected], 64)
    assert texts == [each["text"] for each in expected]


@pytest.mark.parametrize("is_dora", [False, True])
def test_both_say_the_same_from_a_model_merged_with_an_adapter(
    is_dora: bool,
    golden: Path,
    expected: list[dict[str, Any]],
    random_adapter: Callable[..., Adapter],
    tmp_path: Path,
) -> None:
    write_adapter(random_adapter(open_checkpoint(golden / "model"), is_dora=is_dora), tmp_path / "adapter")
    for target in ("folder", "m.gguf"):
        arguments = [str(golden / "model"), str(tmp_path / target), "--adapter", str(tmp_path / "adapter")]
        assert run(["convert", *arguments]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    prompts = [each["prompt"] for each in expected[:2]]
    for prompt, text, each in zip(prompts, llama_cpp(tmp_path / "m.gguf", prompts, 24), expected[:2], strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            reply = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        assert text == tokenizer.decode(reply, skip_special_tokens=True) != ""
        assert text[:5] != each["text"][:5]  # the adapter changes what is said
