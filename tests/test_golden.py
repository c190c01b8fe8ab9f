# SPDX-License-Identifier: Apache-2.0
"""The golden on this backend: the words, ids and logits of golden/expected.json, whatever the format and the batch.

golden/test_reference.py holds transformers and llama.cpp to the same words.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.formats.checkpoint import Checkpoint, Format, Precision, open_checkpoint, write_checkpoint
from gemmary.generate.batched import BatchedGenerator
from gemmary.generate.generator import Chunk
from gemmary.generate.keras_engine import KerasEngine
from gemmary.generate.request import Completion, Request
from gemmary.text.tokenizer import Tokenizer

BOUND = 2e-4  # of a logit in float32
FORMATS: list[tuple[Format, Precision, str]] = [
    ("safetensors", "float32", "m"),
    ("safetensors", "bfloat16", "m"),
    ("keras", "float32", "m"),
    ("torch", "bfloat16", "m.ckpt"),
    ("gguf", "float32", "m.gguf"),
    ("gguf", "float16", "m.gguf"),
    ("gguf", "bfloat16", "m.gguf"),
    ("gguf", "q8_0", "m.gguf"),
    ("gguf", "q4_0", "m.gguf"),
]


@pytest.fixture(scope="module")
def checkpoint(golden: Path) -> Checkpoint:
    return open_checkpoint(golden / "model")


@pytest.fixture(scope="module")
def made(checkpoint: Checkpoint) -> BatchedGenerator:
    return generator(checkpoint)


@pytest.fixture(scope="module")
def expected(golden: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((golden / "expected.json").read_text("utf-8"))
    assert len(found) == 3 and all(each["least_margin"] > 6 for each in found)  # no rounding changes a word
    return found


def generator(checkpoint: Checkpoint, **settings: Any) -> BatchedGenerator:
    assert checkpoint.vocabulary is not None
    engine = KerasEngine(checkpoint, **{"num_slots": 3, "max_length": 256, "chunk_length": 64} | settings)
    return BatchedGenerator(engine, Tokenizer(checkpoint.vocabulary))


def replies(made: BatchedGenerator, expected: list[dict[str, Any]]) -> list[Completion]:
    return made.complete([Request(each["prompt"], max_tokens=64) for each in expected])


def assert_by_heart(found: list[Completion], expected: list[dict[str, Any]]) -> None:
    assert [each.text for each in found] == [each["text"] for each in expected]
    assert [list(each.ids) for each in found] == [each["ids"] for each in expected]


def test_the_golden_says_its_words_in_slots_and_one_by_one(
    made: BatchedGenerator, expected: list[dict[str, Any]]
) -> None:
    assert_by_heart(replies(made, expected), expected)
    assert_by_heart([replies(made, [each])[0] for each in expected], expected)


def test_logits_after_each_prompt_are_the_golden_s(made: BatchedGenerator, expected: list[dict[str, Any]]) -> None:
    prompts = [made.tokenizer.prompt(each["prompt"]) for each in expected]
    chunks = [Chunk(slot=slot, start=0, ids=tuple(ids)) for slot, ids in enumerate(prompts)]
    logits = made._engine.logits(chunks)
    np.testing.assert_allclose(logits, [each["logits"] for each in expected], rtol=0, atol=BOUND)
    alone = [made._engine.logits([chunk])[0] for chunk in chunks]
    np.testing.assert_allclose(alone, [each["logits"] for each in expected], rtol=0, atol=BOUND)


def test_chunks_of_8_through_rings_of_24_say_the_same(checkpoint: Checkpoint, expected: list[dict[str, Any]]) -> None:
    made = generator(checkpoint, chunk_length=8)
    prompts = [[*made.tokenizer.prompt(each["prompt"]), *each["ids"][:40]] for each in expected]
    found = made.complete([Request(ids, max_tokens=24) for ids in prompts])
    assert [list(reply.ids) for reply in found] == [each["ids"][40:] for each in expected]
    assert min(map(len, prompts)) > 2 * 24  # the rings have wrapped twice when the reply begins


def test_bfloat16_says_the_same(checkpoint: Checkpoint, expected: list[dict[str, Any]]) -> None:
    assert_by_heart(replies(generator(checkpoint, dtype="bfloat16"), expected), expected)


@pytest.mark.parametrize(("format", "dtype", "name"), FORMATS, ids=lambda value: str(value))
def test_every_format_says_the_same(
    format: Format,
    dtype: Precision,
    name: str,
    checkpoint: Checkpoint,
    expected: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    write_checkpoint(checkpoint, tmp_path / name, format=format, dtype=dtype)
    read = open_checkpoint(tmp_path / name)
    kept = checkpoint if read.vocabulary is None else read  # gemma_pytorch's file has none
    made = generator(Checkpoint(config=read.config, tensors=read.tensors, vocabulary=kept.vocabulary))
    assert_by_heart(replies(made, expected), expected)


def test_scores_are_the_logarithms_of_the_logits(checkpoint: Checkpoint, expected: list[dict[str, Any]]) -> None:
    made = generator(checkpoint, chunk_length=16)
    sequences = [[*made.tokenizer.prompt(each["prompt"]), *each["ids"]] for each in expected]
    scores = made.score(sequences)
    for each, sequence, score in zip(expected, sequences, scores, strict=True):
        start = len(sequence) - len(each["ids"]) - 1  # the entry about the reply's first token
        logits = np.float64(each["logits"])
        normal = logits - np.log(np.exp(logits).sum())
        assert score.log_probs[start] == pytest.approx(normal[each["ids"][0]], abs=BOUND)
        assert score.is_greedy[start:].all() and (score.log_probs[start:] > -0.1).all()
        assert len(score.log_probs) == len(sequence) - 1
