# SPDX-License-Identifier: Apache-2.0
"""Values out of range are refused when they are made, in words that help."""

import math

import pytest

from gemmary.base.errors import InputError
from gemmary.generate.request import Request, Sampling


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -1.0, "expected temperature >= 0, got -1.0: use 0 for greedy"),
        ("temperature", math.nan, "expected temperature >= 0, got nan"),
        ("temperature", math.inf, "expected temperature >= 0, got inf"),
        ("top_k", -1, "expected top_k >= 0, got -1: use 0 to keep all tokens"),
        ("top_p", 0.0, r"expected top_p in \(0, 1\], got 0.0: use 1"),
        ("top_p", 1.1, r"expected top_p in \(0, 1\], got 1.1"),
        ("min_p", -0.1, r"expected min_p in \[0, 1\], got -0.1"),
        ("repetition_penalty", 0.0, r"expected repetition_penalty in \(0, 100\), got 0.0: use 1 for none"),
        ("seed", -1, r"expected seed in \[0, 2\*\*64\), got -1"),
        ("seed", 2**64, "expected seed"),
    ],
)
def test_sampling_out_of_range_is_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**{field: value})


@pytest.mark.parametrize("prompt", ["", [], ()])
def test_an_empty_prompt_is_refused(prompt: str | list[int]) -> None:
    with pytest.raises(InputError, match="expected a prompt, got an empty one: write some text, or pass the BOS id"):
        Request(prompt)


def test_no_room_and_empty_stop_strings_are_refused() -> None:
    with pytest.raises(InputError, match="expected max_tokens >= 1, got 0"):
        Request("a", max_tokens=0)
    with pytest.raises(InputError, match="expected stop strings of at least one character"):
        Request("a", stop=("b", ""))
