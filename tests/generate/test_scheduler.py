# SPDX-License-Identifier: Apache-2.0
"""The scheduler's rules, one by one, and its invariants under random traffic."""

import random
from collections.abc import Callable

import pytest

from gemmary.base.errors import ContextError
from gemmary.generate.generator import Chunk
from gemmary.generate.row import Row
from gemmary.generate.scheduler import Scheduler

Keep = Callable[[int, int], int]


def keep_all(slot: int, length: int) -> int:
    return length


def make(
    *, num_slots: int = 2, max_length: int = 100, chunk_length: int = 4, keep: Keep = keep_all, num_drafts: int = 0
) -> Scheduler:
    return Scheduler(
        num_slots=num_slots, max_length=max_length, chunk_length=chunk_length, keep=keep, num_drafts=num_drafts
    )


def row(length: int, max_tokens: int = 3, first: int = 10) -> Row:
    return Row(tokens=list(range(first, first + length)), max_tokens=max_tokens, stop_ids=frozenset({1}))


def step(scheduler: Scheduler, token: int = 7) -> list[tuple[int, int, int]]:
    """Run one step in which every reply gets `token`; gives (slot, start, tokens run) of each part."""
    parts = scheduler.plan()
    for part in parts:
        scheduler.advance(part, token if part.chunk.num_logits else None)
    return [(part.chunk.slot, part.chunk.start, len(part.chunk.ids)) for part in parts]


def run_to_end(scheduler: Scheduler) -> None:
    while step(scheduler):
        pass


def test_a_prompt_runs_in_chunks_and_then_a_token_a_step() -> None:
    scheduler, one = make(), row(10)
    scheduler.submit(one)
    assert [step(scheduler) for _ in range(6)] == [
        [(0, 0, 4)],
        [(0, 4, 4)],
        [(0, 8, 2)],
        [(0, 10, 1)],
        [(0, 11, 1)],
        [],
    ]
    assert one.tokens[10:] == [7, 7, 7]
    assert one.finish_reason == "length"


def test_prompts_run_together_while_nobody_is_replying() -> None:
    scheduler = make()
    scheduler.submit(row(8))
    scheduler.submit(row(8))
    assert step(scheduler) == [(0, 0, 4), (1, 0, 4)]


def test_a_reply_gets_its_token_in_every_step_of_a_long_prompt() -> None:
    scheduler, short, long = make(num_slots=3), row(2, max_tokens=20), row(40)
    scheduler.submit(short)
    step(scheduler)
    scheduler.submit(long)
    scheduler.submit(row(3))
    assert step(scheduler) == [(0, 2, 1), (1, 0, 4)], "the third has no room in this chunk's length"
    for _ in range(9):
        before = len(short.tokens)
        step(scheduler)
        assert len(short.tokens) == before + 1


def test_short_prompts_share_a_chunk_beside_a_reply() -> None:
    scheduler = make(num_slots=4)
    scheduler.submit(row(2, max_tokens=20))
    step(scheduler)
    for _ in range(3):
        scheduler.submit(row(2))
    assert step(scheduler) == [(0, 2, 1), (1, 0, 2), (2, 0, 2)]


def test_rows_start_in_the_order_they_came() -> None:
    scheduler, rows = make(num_slots=1), [row(2, first=10 * n) for n in range(5)]
    for one in rows:
        scheduler.submit(one)
    ended: list[Row] = []
    while step(scheduler):
        ended += [one for one in rows if one.finish_reason and one not in ended]
    assert ended == rows


def test_a_stop_id_ends_a_row_and_its_slot_is_free_in_the_next_step() -> None:
    scheduler, one, two = make(num_slots=1), row(2), row(2)
    scheduler.submit(one)
    scheduler.submit(two)
    step(scheduler, token=1)
    assert (one.finish_reason, two.slot) == ("stop", None)
    step(scheduler)
    assert two.slot == 0


def test_cancelling_frees_a_slot_at_once_and_leaves_the_queue() -> None:
    scheduler, running, waiting, third = make(num_slots=1), row(2), row(2), row(2)
    for one in (running, waiting, third):
        scheduler.submit(one)
    step(scheduler)
    scheduler.finish(waiting, "cancelled")
    scheduler.finish(running, "cancelled")
    scheduler.finish(running, "stop")
    assert running.finish_reason == "cancelled", "what has ended stays as it is"
    step(scheduler)
    assert (waiting.slot, third.slot) == (None, 0)


def test_a_part_of_a_row_cancelled_while_it_ran_is_dropped() -> None:
    scheduler, one = make(), row(2)
    scheduler.submit(one)
    [part] = scheduler.plan()
    scheduler.finish(one, "cancelled")
    scheduler.advance(part, 7)
    assert (one.tokens, one.num_run) == ([10, 11], 0)


def test_the_context_ends_a_reply() -> None:
    scheduler, one = make(max_length=5), row(3, max_tokens=50)
    scheduler.submit(one)
    run_to_end(scheduler)
    assert (len(one.tokens), one.finish_reason) == (5, "length")


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    scheduler = make(max_length=5)
    scheduler.submit(row(4))
    with pytest.raises(ContextError, match="expected at most 4 tokens, got 5: the context holds 5; shorten the prompt"):
        scheduler.submit(row(5))


def test_a_row_to_be_judged_may_fill_the_context_and_gets_no_token() -> None:
    scheduler, one = make(max_length=5), row(5, max_tokens=0)
    scheduler.submit(one)
    assert step(scheduler) + step(scheduler) == [(0, 0, 4), (0, 4, 1)]
    assert (one.finish_reason, len(one.tokens)) == ("length", 5)
    with pytest.raises(ContextError, match="expected at most 5 tokens, got 6"):
        scheduler.submit(row(6, max_tokens=0))


def test_the_next_turn_of_a_chat_runs_only_what_is_new() -> None:
    scheduler, first = make(), row(6)
    scheduler.submit(first)
    run_to_end(scheduler)
    second = Row(tokens=[*first.tokens, 50, 51], max_tokens=1)
    scheduler.submit(second)
    assert step(scheduler) == [(0, 8, 3)], "the last token of a reply was picked and never run"
    assert second.num_cached == 8


def test_the_last_token_of_a_repeated_prompt_runs_again() -> None:
    scheduler, prompt = make(num_slots=1), row(6)
    scheduler.submit(prompt)
    run_to_end(scheduler)
    scheduler.submit(row(6))
    assert step(scheduler) == [(0, 5, 1)]


def test_a_prefix_the_engine_cannot_go_back_to_is_run_again() -> None:
    scheduler = make(num_slots=1, keep=lambda slot, length: 0)
    scheduler.submit(row(6))
    run_to_end(scheduler)
    scheduler.submit(row(6))
    assert step(scheduler) == [(0, 0, 4)]


def test_of_two_slots_the_one_with_the_longer_prefix_is_taken() -> None:
    scheduler, near = make(), Row(tokens=[10, 11, 12, 13, 14, 99], max_tokens=1)
    for one in (row(3), row(6)):
        scheduler.submit(one)
    run_to_end(scheduler)
    scheduler.submit(near)
    step(scheduler)
    assert (near.slot, near.num_cached) == (1, 5)


def test_a_stranger_takes_the_slot_unused_for_longest_and_not_a_chat_that_begins_like_it() -> None:
    scheduler = make(num_slots=3)
    chat = Row(tokens=[2, *range(100, 130)], max_tokens=1)
    scheduler.submit(chat)
    run_to_end(scheduler)
    stranger = Row(tokens=[2, 5, 6], max_tokens=1)  # both begin with BOS
    scheduler.submit(stranger)
    run_to_end(scheduler)
    assert (chat.slot, stranger.slot, stranger.num_cached) == (0, 1, 0)


def test_a_row_to_be_judged_runs_all_its_tokens() -> None:
    scheduler = make(num_slots=1)
    scheduler.submit(row(6))
    run_to_end(scheduler)
    scheduler.submit(row(6, max_tokens=0))
    assert step(scheduler) == [(0, 0, 4)]


def test_drafts_stand_after_the_last_token_and_the_wrong_ones_run_again() -> None:
    scheduler, one = make(chunk_length=8, num_drafts=7), row(3, max_tokens=20)
    scheduler.submit(one)
    assert scheduler.drafting() == {}, "a prompt is not guessed"
    step(scheduler)
    one.pace.width = 5
    assert scheduler.drafting() == {one: 5}
    [part] = scheduler.plan({one: [7, 8, 9, 9]})
    assert part.chunk == Chunk(slot=0, start=3, ids=(7, 7, 8, 9, 9), num_logits=5)
    for token in (7, 8, 5):
        scheduler.advance(part, token)
    scheduler.judge(part, 2)
    assert (one.tokens[3:], one.num_run) == ([7, 7, 8, 5], 6)
    assert (one.num_drafted, one.num_accepted) == (4, 2)
    assert step(scheduler) == [(0, 6, 1)]


def test_no_more_is_drafted_than_a_reply_a_chunk_and_a_step_have_room_for() -> None:
    scheduler, rows = make(num_slots=3, chunk_length=5, num_drafts=9), [row(2, max_tokens=most) for most in (40, 40, 3)]
    for one in rows:
        scheduler.submit(one)
        one.pace.width = 16
    step(scheduler)
    assert scheduler.drafting() == {rows[0]: 3, rows[1]: 3, rows[2]: 1}
    rows[0].pace.resumes = rows[2].pace.resumes = 99
    assert scheduler.drafting() == {rows[1]: 4}
    assert make().drafting() == {}


def test_a_reply_that_ends_among_its_drafts_leaves_what_it_ran() -> None:
    scheduler, one = make(chunk_length=8, num_drafts=7), row(3, max_tokens=20)
    scheduler.submit(one)
    step(scheduler)
    [part] = scheduler.plan({one: [8, 1, 9]})
    for token in (8, 1, 9):
        scheduler.advance(part, token)
    assert (one.tokens[3:], one.num_run, one.finish_reason) == ([7, 8, 1], 5, "stop")
    again = Row(tokens=[*one.tokens, 50], max_tokens=1)
    scheduler.submit(again)
    step(scheduler)
    assert again.num_cached == 5


@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_ends_and_never_shares_a_slot(seed: int) -> None:
    traffic = random.Random(seed)
    scheduler, rows = make(num_slots=3, max_length=30), []
    for _ in range(300):
        if traffic.random() < 0.3:
            rows.append(
                row(traffic.randint(1, 29), max_tokens=traffic.randint(0, 8), first=traffic.choice([10, 10, 40]))
            )
            scheduler.submit(rows[-1])
        if rows and traffic.random() < 0.1:
            scheduler.finish(traffic.choice(rows), "cancelled")
        parts = scheduler.plan()
        slots = [part.chunk.slot for part in parts]
        assert len(set(slots)) == len(slots)
        for part in parts:
            assert part.chunk.start == part.row.num_run
            assert list(part.chunk.ids) == part.row.tokens[part.chunk.start : part.chunk.end]
            scheduler.advance(part, traffic.choice([1, 7, 7, 7]) if part.chunk.num_logits else None)
    run_to_end(scheduler)
    assert all(one.finish_reason for one in rows)
