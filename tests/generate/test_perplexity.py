# SPDX-License-Identifier: Apache-2.0
"""Perplexity is what the log-probabilities say, window by window; and that of real weights on a real text."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gemmary.base.errors import InputError
from gemmary.formats.checkpoint import open_checkpoint
from gemmary.generate.batched import BatchedGenerator
from gemmary.generate.native_engine import NativeEngine
from gemmary.generate.perplexity import WINDOW, perplexity
from gemmary.generate.request import Score
from gemmary.text.tokenizer import Tokenizer

REFERENCE = 14.8238  # transformers in float32 on the dequantised weights: tests/model/test_real.py, the same windows


class Halving:
    """A generator that gives every token half, and notes what it was asked."""

    tokenizer = SimpleNamespace(bos_id=2)

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def score(self, sequences: list[list[int]]) -> list[Score]:
        self.asked += sequences
        sizes = [len(ids) - 1 for ids in sequences]
        return [Score(log_probs=np.log(np.full(size, 0.5)), is_greedy=np.zeros(size, np.bool_)) for size in sizes]


def test_every_token_counts_once_and_each_window_begins_with_bos() -> None:
    generator, counts = Halving(), []
    assert perplexity(generator, list(range(10, 17)), window=3, tick=counts.append) == pytest.approx(2.0)  # type: ignore[arg-type]
    assert generator.asked == [[2, 10, 11, 12], [2, 13, 14, 15], [2, 16]]
    assert counts == [3, 3, 1]


def test_nothing_to_judge_is_refused() -> None:
    for ids, window in (([], 512), ([5], 0)):
        with pytest.raises(InputError, match=r"^expected ids to judge in windows >= 1, got"):
            perplexity(Halving(), ids, window=window)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_native_engine_is_within_half_a_percent_of_the_float32_reference(
    default_checkpoint: Path, shared_data: Path
) -> None:
    checkpoint = open_checkpoint(default_checkpoint)
    assert checkpoint.vocabulary is not None
    tokenizer = Tokenizer(checkpoint.vocabulary)
    generator = BatchedGenerator(NativeEngine(checkpoint, max_length=WINDOW, chunk_length=WINDOW), tokenizer)
    text = (shared_data / "corpora" / "wikitext2_valid_test" / "valid.txt").read_text("utf-8")
    found = perplexity(generator, tokenizer.encode(text[:60_000])[:8192])
    assert abs(found / REFERENCE - 1) < 0.005, found
