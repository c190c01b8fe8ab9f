# SPDX-License-Identifier: Apache-2.0
"""The embedded default, a real Gemma 3 270M, in float32 beside transformers on the same dequantised weights."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemmary.formats.checkpoint import open_checkpoint
from gemmary.generate.batched import BatchedGenerator
from gemmary.generate.generator import Chunk
from gemmary.generate.keras_engine import KerasEngine
from gemmary.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):\n",
    "Water boils at a temperature of",
    "Die Hauptstadt von Österreich ist",
    "1, 1, 2, 3, 5, 8,",
    "In 1969, three astronauts",
    "Dear Sir or Madam,\n\n",
    "日本の首都は",
    "The three most important things about a good cup of tea are",
)
REPLY, LENGTH = 64, 512
Forward = Callable[[list[int]], Any]


@pytest.fixture(scope="module")
def generator(default_checkpoint: Path) -> BatchedGenerator:
    checkpoint = open_checkpoint(default_checkpoint)
    assert checkpoint.vocabulary is not None
    engine = KerasEngine(checkpoint, num_slots=len(PROMPTS), max_length=LENGTH, chunk_length=LENGTH)
    return BatchedGenerator(engine, Tokenizer(checkpoint.vocabulary))


@pytest.fixture(scope="module")
def by_transformers(default_checkpoint: Path, reference: Callable[..., Any]) -> Forward:
    """The logits after every token of a sequence, a tensor; the model shares the memory of the arrays that we read."""
    import torch

    checkpoint = open_checkpoint(default_checkpoint)
    model = reference(checkpoint.config, {path: read() for path, read in checkpoint.tensors.items()})

    def logits(ids: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0]

    return logits


def test_logits_and_64_greedy_tokens_are_those_of_transformers(
    generator: BatchedGenerator, by_transformers: Forward
) -> None:
    engine = generator._engine
    texts = [generator.tokenizer.prompt(prompt) for prompt in PROMPTS]
    assert all(ids.count(2) == 1 and ids[0] == 2 for ids in texts)
    starts, steps = [len(ids) for ids in texts], []
    chunks = [Chunk(slot=slot, start=0, ids=tuple(ids)) for slot, ids in enumerate(texts)]
    for _ in range(REPLY):
        steps.append(engine.logits(chunks))
        for ids, row in zip(texts, steps[-1], strict=True):
            ids.append(int(row.argmax()))
        chunks = [Chunk(slot=slot, start=len(ids) - 1, ids=(ids[-1],)) for slot, ids in enumerate(texts)]
    for slot, (ids, start) in enumerate(zip(texts, starts, strict=True)):
        expected = by_transformers(ids[:-1])[
            start - 1 :
        ].numpy()  # one pass over prompt and reply: each step given ours before
        difference = max(float(np.abs(step[slot] - row).max()) for step, row in zip(steps, expected, strict=True))
        assert difference <= 2e-3, PROMPTS[slot]
        assert expected.argmax(axis=1).tolist() == ids[start:], PROMPTS[slot]


def test_perplexity_of_wikitext_is_that_of_transformers(
    generator: BatchedGenerator, by_transformers: Forward, shared_data: Path, request: pytest.FixtureRequest
) -> None:
    text = (shared_data / "corpora" / "wikitext2_valid_test" / "valid.txt").read_text("utf-8")
    ids = generator.tokenizer.encode(text[:60_000])[:8192]
    assert len(ids) == 8192
    windows = [[2, *ids[first : first + LENGTH]] for first in range(0, 8192, LENGTH)]  # BOS and 512 tokens to judge
    ours = np.concatenate([score.log_probs for score in generator.score(windows)])
    kept, known = request.config.cache, f"gemmary/wikitext with transformers {version('transformers')}"
    if kept.get(known, None) is None:  # the next backend's process need not compute it again
        kept.set(known, np.concatenate([judged(by_transformers(each[:-1]), each[1:]) for each in windows]).tolist())
    theirs = np.array(kept.get(known, None))
    assert len(ours) == len(theirs) == 8192
    found, expected = (np.exp(-each.mean(dtype=np.float64)) for each in (ours, theirs))
    assert f"{found:.4g}" == f"{expected:.4g}"
    assert np.abs(ours - theirs).max() <= 2e-3


def judged(logits: Any, targets: list[int]) -> NDArray[np.float64]:
    """The targets' logarithms; PyTorch's own log_softmax adds in float32 and loses 1e-4 over so large a vocabulary."""
    import torch

    best = logits.max(dim=1, keepdim=True).values
    total = torch.exp(logits - best).sum(dim=1, dtype=torch.float64).log()
    found: NDArray[np.float64] = (logits[range(len(targets)), targets] - best[:, 0] - total).numpy()
    return found
