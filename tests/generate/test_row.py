# SPDX-License-Identifier: Apache-2.0
"""A row's pace: drafts become more while they are right, fewer and rare while they are not."""

import pytest

from gemmary.generate.row import Pace


@pytest.mark.parametrize(
    ("accepted", "most"), [(8, 16), (7, 8), (4, 8), (3, 4), (0, 1)], ids=["all", "nearly all", "half", "fewer", "none"]
)
def test_the_next_draft_follows_from_the_last(accepted: int, most: int) -> None:
    pace = Pace(width=8)
    pace.judge(100, drafted=8, accepted=accepted)
    assert pace.most(100) == most


def test_pauses_double_up_to_32_tokens_and_one_right_draft_ends_them() -> None:
    pace, position, pauses = Pace(width=1), 100, []
    for _ in range(8):
        pace.judge(position, drafted=1, accepted=0)
        pauses.append(next(wait for wait in range(99) if pace.most(position + wait)))
        position += pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, 32, 32]
    pace.judge(position, drafted=1, accepted=1)
    assert (pace.most(position), pace.pause) == (2, 1)
