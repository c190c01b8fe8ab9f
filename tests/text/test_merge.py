# SPDX-License-Identifier: Apache-2.0
"""Merging takes the best pair first, the leftmost of equals, and the heap for long words does the same."""

import random

import pytest

from gemmary.text.merge import _LONG, _merge_long, merge


def test_the_best_pair_goes_first_and_the_leftmost_of_equals() -> None:
    assert merge("abc", {"ab": 2.0, "bc": 1.0}) == ["a", "bc"]
    assert merge("aaa", {"aa": 0.0}) == ["aa", "a"]
    assert merge("abcb", {"bc": 1.0, "ab": 1.0, "cb": 1.0}) == ["ab", "cb"]
    assert merge("xyz", {}) == ["x", "y", "z"]
    assert merge("", {"ab": 1.0}) == []


@pytest.mark.parametrize("seed", range(30))
def test_long_words_merge_as_short_ones_do(seed: int) -> None:
    draw = random.Random(seed)
    costs = {"".join(draw.choices("abc", k=draw.randrange(2, 6))): float(draw.randrange(20)) for _ in range(80)}
    for _ in range(30):
        word = "".join(draw.choices("abcd", k=draw.randrange(_LONG)))
        assert _merge_long(list(word), costs) == merge(word, costs)
