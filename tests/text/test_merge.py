# SPDX-License-Identifier: Apache-2.0
"""Merging takes the best pair first, the leftmost of equals."""

from gemmary.text.merge import merge


def test_the_best_pair_goes_first_and_the_leftmost_of_equals() -> None:
    assert merge("abc", {"ab": 2.0, "bc": 1.0}) == ["a", "bc"]
    assert merge("aaa", {"aa": 0.0}) == ["aa", "a"]
    assert merge("abcb", {"bc": 1.0, "ab": 1.0, "cb": 1.0}) == ["ab", "cb"]
    assert merge("xyz", {}) == ["x", "y", "z"]
    assert merge("", {"ab": 1.0}) == []
