# SPDX-License-Identifier: Apache-2.0
"""Byte-pair merging as SentencePiece does it: join the two neighbours whose piece scores best, the leftmost of equals.

▁ h e l l o  ->  ▁ he l l o  ->  ▁ he ll o  ->  ▁ hell o  ->  ▁hell o  ->  ▁hello

This is for making vocabularies, whose pieces change between two words; texts are merged by native/src/tokens.c.
"""

from collections.abc import Iterable, Mapping
from itertools import repeat
from operator import add

_NEVER = float("inf")


def merge(symbols: Iterable[str], costs: Mapping[str, float]) -> list[str]:
    """Merge neighbouring symbols until no two of them join to a piece; `costs` holds each piece's negative score.

    >>> merge("hello", {"he": 0.0, "ll": 1.0, "hell": 2.0})
    ['hell', 'o']
    """
    parts = list(symbols)
    cost_of = costs.get
    pairs = list(map(cost_of, map(add, parts, parts[1:]), repeat(_NEVER)))
    while pairs and (best := min(pairs)) != _NEVER:
        at = pairs.index(best)
        del pairs[at]
        parts[at] += parts.pop(at + 1)
        if at:
            pairs[at - 1] = cost_of(parts[at - 1] + parts[at], _NEVER)
        if at < len(pairs):
            pairs[at] = cost_of(parts[at] + parts[at + 1], _NEVER)
    return parts
