# SPDX-License-Identifier: Apache-2.0
"""Perplexity: how many tokens a model wavers between, on average, where a text has one.

ids ─► windows of 512, each after BOS and nothing else ─► Generator.score ─► exp(- mean log-probability)
"""

import math
from collections.abc import Callable, Sequence

from gemmary.base.errors import InputError
from gemmary.generate.generator import Generator

WINDOW = 512  # tokens that are judged together; the context of a window is as long


def perplexity(
    generator: Generator,
    ids: Sequence[int],
    *,
    window: int = WINDOW,
    tick: Callable[[int], None] = lambda count: None,
) -> float:
    """The perplexity of a text's token ids, without BOS; `tick` is told how many more have been judged.

    Raises InputError for no ids, a window below 1, and what the generator's `score` refuses.

    >>> from gemmary.generate.scripted import ScriptedGenerator
    >>> generator = ScriptedGenerator({"Rain": " today"})
    >>> perplexity(generator, generator.tokenizer.encode("Rain tomorrow"), window=4) > 1
    True
    """
    if not ids or window < 1:
        raise InputError(f"expected ids to judge in windows >= 1, got {len(ids)} in windows of {window}: give a text")
    total = 0.0
    for part in windows(ids, generator.tokenizer.bos_id, size=window):
        [score] = generator.score([part])
        total -= float(score.log_probs.sum())
        tick(len(part) - 1)
    return math.exp(total / len(ids))


def windows(ids: Sequence[int], bos_id: int, *, size: int = WINDOW) -> list[list[int]]:
    """A text's ids in parts of `size`, each after BOS.

    >>> windows([5, 6, 7], 2, size=2)
    [[2, 5, 6], [2, 7]]
    """
    return [[bos_id, *ids[first : first + size]] for first in range(0, len(ids), size)]
