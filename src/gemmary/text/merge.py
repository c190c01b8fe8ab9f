# SPDX-License-Identifier: Apache-2.0
"""Byte-pair merging as SentencePiece does it: join the two neighbours whose piece scores best, the leftmost of equals.

▁ h e l l o  ->  ▁ he l l o  ->  ▁ he ll o  ->  ▁ hell o  ->  ▁hell o  ->  ▁hello
"""

from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import repeat
from operator import add

_LONG = 96  # symbols; from here on the heap is faster than looking at every pair again
_NEVER = float("inf")


def merge(symbols: Iterable[str], costs: Mapping[str, float]) -> list[str]:
    """Merge neighbouring symbols until no two of them join to a piece; `costs` holds each piece's negative score.

    >>> merge("hello", {"he": 0.0, "ll": 1.0, "hell": 2.0})
    ['hell', 'o']
    """
    parts = list(symbols)
    if len(parts) > _LONG:
        return _merge_long(parts, costs)
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


def _merge_long(parts: list[str], costs: Mapping[str, float]) -> list[str]:
    """The same in O(n log n): a heap of (cost, position, joined text) over a linked list of the symbols that stand."""
    end = len(parts)
    following, previous = list(range(1, end + 1)), list(range(-1, end - 1))
    heap = [(costs[pair], at, pair) for at, pair in enumerate(map(add, parts, parts[1:])) if pair in costs]
    heapify(heap)
    while heap:
        _, at, pair = heappop(heap)
        right = following[at]
        if right == end or not parts[at] or parts[at] + parts[right] != pair:
            continue  # one of the two has been merged since
        parts[at], parts[right] = pair, ""
        after = following[at] = following[right]
        if after < end:
            previous[after] = at
        for left, other in ((previous[at], at), (at, after)):
            if left >= 0 and other < end and (joined := parts[left] + parts[other]) in costs:
                heappush(heap, (costs[joined], left, joined))
    return [part for part in parts if part]
