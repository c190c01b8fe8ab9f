# SPDX-License-Identifier: Apache-2.0
"""GGUF checkpoints against llama.cpp and transformers.

llama.cpp runs in a process of its own, so that a file which it cannot bear fails one test and not all.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFReader

from gemmary.base.config import PRESETS
from gemmary.base.errors import CheckpointError, FileError, InputError
from gemmary.formats.checkpoint import Checkpoint, Precision, open_checkpoint, write_checkpoint
from gemmary.formats.content import Entry
from gemmary.formats.gguf import write_gguf
from gemmary.formats.gguf_file import read_head, read_tensor, write_file
from gemmary.formats.quantize import BlockType
from gemmary.formats.sentencepiece import Kind
from gemmary.formats.storage import FileBytes

PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16", "q8_0", "q4_0")
CHILD = """
import json, sys, xllamacpp
files, prompts, count, threads, banned = json.loads(sys.argv[1])
for file in files:
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = file, 256, 1, False
    settings.fit_params, settings.verbosity = False, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    asked = {"n_predict": count, "temperature": 0, "logprobs": 5, "logit_bias": banned}
    answers = [server.handle_completions(asked | {"prompt": prompt})["choices"][0] for prompt in prompts]
    print("answer:" + json.dumps(answers), flush=True)
    del server
"""
# the end, and bytes that alone are no letter: llama.cpp does not report such steps
BANNED = (1, *range(135, 263))


def llama_cpp(files: list[Path], prompts: list[Any], count: int = 12, threads: int = 1) -> list[list[dict[str, Any]]]:
    """What llama.cpp answers to each prompt with each file: the text, and the five most likely tokens at each step."""
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    banned = [[piece, False] for piece in BANNED]
    argument = json.dumps([[str(file) for file in files], prompts, count, threads, banned])
    done = subprocess.run([sys.executable, "-c", CHILD, argument], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.removeprefix("answer:") for line in done.stdout.splitlines() if line.startswith("answer:")]
    answers: list[list[dict[str, Any]]] = [json.loads(line) for line in lines]
    return answers


def in_transformers(path: Path, folder: Path) -> Any:
    """The model that our reader finds in a GGUF file, as transformers computes it."""
    write_checkpoint(open_checkpoint(path), folder, format="safetensors")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


# How far llama.cpp's logarithms may be off: its cache is float16, and it rounds what meets the weights to their
# precision, to eight bits where they are blocks.
TOLERANCE = {"float32": 2e-3, "float16": 5e-3, "bfloat16": 0.05, "q8_0": 0.1, "q4_0": 0.15}


@pytest.mark.parametrize("generation", ["gemma1", "gemma2", "gemma3"])
def test_llama_cpp_computes_from_our_files_what_transformers_computes(
    generation: str, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    tiny = make_tiny(generation)
    files = [tmp_path / f"{precision}.gguf" for precision in PRECISIONS]
    for precision, file in zip(PRECISIONS, files, strict=True):
        write_checkpoint(tiny, file, format="gguf", dtype=precision)
    prompts = [[2, *range(300, 330)], [2, 290, 401, 333]]  # the first is longer than the window of 16
    for file, answers in zip(files, llama_cpp(files, prompts), strict=True):
        model, tolerance, compared = in_transformers(file, tmp_path / file.stem), TOLERANCE[file.stem], 0
        for prompt, answer in zip(prompts, answers, strict=True):
            steps = answer["logprobs"]["content"]
            ids = torch.tensor([[*prompt, *(step["id"] for step in steps[:-1])]])
            with torch.no_grad():
                rows = torch.log_softmax(model(ids).logits[0, len(prompt) - 1 :].double(), -1)
            for at, (step, expected) in enumerate(zip(steps, rows, strict=True)):
                for candidate in step["top_logprobs"]:
                    assert candidate["logprob"] == pytest.approx(float(expected[candidate["id"]]), abs=tolerance)
                expected[list(BANNED)] = -torch.inf
                best, second = expected.topk(2).indices.tolist()
                if expected[best] - expected[second] > 2 * tolerance:  # else the precision does not decide
                    assert step["id"] == best, (file.stem, at)
                    compared += 1
        assert compared >= (20 if tolerance < 0.01 else 3), (file.stem, compared)


@pytest.mark.slow
def test_llama_cpp_gives_the_default_s_text_from_our_files(default_checkpoint: Path, tmp_path: Path) -> None:
    source = open_checkpoint(default_checkpoint)
    files = [tmp_path / f"{precision}.gguf" for precision in PRECISIONS[1:]]
    for precision, file in zip(PRECISIONS[1:], files, strict=True):
        write_checkpoint(source, file, format="gguf", dtype=precision)
    prompts = ["Once upon a time", "The capital of France is"]
    answers = llama_cpp([default_checkpoint, *files], prompts, threads=2)
    texts = [[answer["text"] for answer in each] for each in answers]
    original, float16, bfloat16, q8_0, q4_0 = texts
    assert float16 == bfloat16
    assert q8_0[0] == original[0]  # with blocks activations are rounded as well, and float types stray sooner
    assert q8_0[1][:30] == original[1][:30] == float16[1][:30]
    assert all(text.isascii() and " " in text.strip() for text in q4_0)


def test_the_gguf_package_finds_the_keys_of_llama_cpp(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    tiny = make_tiny("gemma3", dtype="bfloat16")
    write_checkpoint(tiny, tmp_path / "m.gguf", format="gguf", dtype="q4_0")
    reader = GGUFReader(tmp_path / "m.gguf")
    contents = {key: field.contents() for key, field in reader.fields.items()}
    assert contents["general.architecture"] == "gemma3"
    assert (contents["gemma3.block_count"], contents["gemma3.attention.head_count"]) == (7, 4)
    assert contents["gemma3.attention.sliding_window"] == 16 and contents["gemma3.rope.scaling.factor"] == 8
    assert contents["tokenizer.ggml.tokens"][:3] == ["<pad>", "<eos>", "<bos>"]
    assert contents["tokenizer.ggml.add_bos_token"] is True and contents["tokenizer.ggml.bos_token_id"] == 2
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == "Q8_0"  # the output head too, which bears no less
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}


def test_the_default_is_read_as_its_preset(default_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(default_checkpoint)
    assert checkpoint.config == PRESETS["gemma-3-270m"]
    assert checkpoint.vocabulary is not None and checkpoint.vocabulary.size == 262_144
    norm = checkpoint.tensors["final_norm"]()
    assert norm.shape == (640,) and abs(float(norm.mean())) > 0.1


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_s_configuration_survives(name: str, tmp_path: Path) -> None:
    from gemmary.formats.gguf import _config, _metadata  # a file of it would have billions of weights
    from gemmary.formats.gguf_file import GgufFile, GgufTensor

    config = PRESETS[name]
    write_file(tmp_path / "m.gguf", _metadata(config, BlockType.F32), {})
    embedding = GgufTensor(kind=BlockType.F32, shape=(config.vocab_size, config.model_dim), start=0)
    read = read_head(tmp_path / "m.gguf").metadata
    assert _config(GgufFile(path=tmp_path, metadata=read, tensors={"token_embd.weight": embedding})) == config


def test_rows_without_a_piece_are_padded_and_cut_again(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    tiny = make_tiny("gemma1")
    wide = make_tiny("gemma1", vocab_size=544)  # more than the vocabulary below
    checkpoint = Checkpoint(config=wide.config, tensors=wide.tensors, vocabulary=tiny.vocabulary)
    write_checkpoint(checkpoint, tmp_path / "m.gguf", format="gguf")
    metadata = read_head(tmp_path / "m.gguf").metadata
    pieces, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(pieces, tuple) and isinstance(kinds, np.ndarray)
    assert len(pieces) == 544 and pieces[-1] == "[PAD543]" and kinds[-1] == Kind.UNUSED
    back = open_checkpoint(tmp_path / "m.gguf").vocabulary
    assert back is not None and tiny.vocabulary is not None and back.pieces == tiny.vocabulary.pieces


def test_exact_norms_do_not_outlive_a_change_of_the_file(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_checkpoint(make_tiny("gemma1"), path, format="gguf")
    tensor = read_head(path).tensors["output_norm.weight"]
    with path.open("r+b") as file:
        file.seek(tensor.start)
        file.write(np.float32([3]).tobytes())
    assert open_checkpoint(path).tensors["final_norm"]()[0] == 2


@pytest.mark.parametrize(
    ("generation", "changes", "error"),
    [
        ("gemma1", {"query_scale": 0.5}, "got query_scale=0.5"),
        ("gemma1", {"window_pattern": (16, None)}, "got window_pattern="),
        ("gemma1", {"final_softcap": 30.0}, "got final_softcap=30.0"),
        ("gemma1", {"rope_scale": 2.0}, "got rope_scale=2.0"),
        ("gemma1", {"norm_plus_one": False}, "got norm_plus_one=False"),
        ("gemma1", {"qk_norm": True}, "expected post_norm wherever there is qk_norm"),
        ("gemma2", {"attn_softcap": None}, "got attn_softcap=None"),
        ("gemma3", {"window_pattern": (None,)}, "got window_pattern="),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_not_written(
    generation: str, changes: dict[str, Any], error: str, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=error):
        write_checkpoint(make_tiny(generation, **changes), tmp_path / "m.gguf", format="gguf")
    assert not list(tmp_path.iterdir())


def test_block_types_that_are_only_read_are_not_written(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a type that can be written"):
        write_gguf(make_tiny("gemma1"), tmp_path / "m.gguf", BlockType.Q6_K)


def test_damaged_files_are_refused_in_one_line(
    make_tiny: Callable[..., Checkpoint], refused: Callable[..., int], tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    write_checkpoint(make_tiny("gemma2", num_layers=2), path, format="gguf", dtype="q4_0")
    first = min(tensor.start for tensor in read_head(path).tensors.values())
    assert refused(path, head=1000) + refused(path, head=first, flips=400, cuts=0) > 300


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.key_length", "attention.head_count_kv"])
@pytest.mark.parametrize("value", [0, 3, 5, 2**31, "4", True, 1.5, np.int32([4])])
def test_a_key_that_makes_no_sense_is_refused(
    key: str, value: Any, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    write_checkpoint(make_tiny("gemma2"), path, format="gguf")
    rewritten(path, {f"gemma2.{key}": value})
    with pytest.raises(FileError):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["llama", ("gemma", "gemma2"), 7, np.int32([1, 2])])
def test_another_architecture_is_refused(name: Any, make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_checkpoint(make_tiny("gemma1"), path, format="gguf")
    rewritten(path, {"general.architecture": name})
    with pytest.raises(FileError, match="expected the architecture gemma, gemma2 or gemma3, got"):
        open_checkpoint(path)


def test_missing_and_unknown_tensors_are_named(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_checkpoint(make_tiny("gemma1"), path, format="gguf")
    rewritten(path, {}, rename={"blk.1.ffn_up.weight": "blk.1.ffn_out.weight"})
    with pytest.raises(CheckpointError, match=r"expected the tensor blk\.1\.ffn_up\.weight"):
        open_checkpoint(path)
    rewritten(path, {"gemma.block_count": 2}, rename={"blk.1.ffn_out.weight": "blk.1.ffn_up.weight"})
    with pytest.raises(CheckpointError, match=r"expected no other tensors than a Gemma's, got blk\.2"):
        open_checkpoint(path)


def rewritten(path: Path, changes: dict[str, Any], rename: dict[str, str] | None = None) -> None:
    """Write a file again with some keys and names changed."""
    head, source = read_head(path), FileBytes(path)
    tensors = {
        (rename or {}).get(name, name): (
            tensor.kind,
            Entry(shape=tensor.shape, read=partial(read_tensor, source, tensor)),
        )
        for name, tensor in head.tensors.items()
    }
    write_file(path, {**head.metadata, **changes}, tensors)
