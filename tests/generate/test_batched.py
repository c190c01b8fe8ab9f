# SPDX-License-Identifier: Apache-2.0
"""BatchedGenerator over the toy engine: replies equal to a plain loop, whatever else runs beside them."""

import random
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise

import numpy as np
import pytest

from gemmary.base.errors import ContextError, InputError
from gemmary.generate.batched import BatchedGenerator
from gemmary.generate.generator import Chunk
from gemmary.generate.request import Completion, Request, Sampling
from gemmary.generate.sampling import sample
from gemmary.text.tokenizer import Tokenizer

WARM = Sampling(temperature=1.0, top_k=20, seed=3)


@pytest.fixture
def make(toy_engine: type, byte_tokenizer: Tokenizer) -> Callable[..., BatchedGenerator]:
    def build(**sizes: int) -> BatchedGenerator:
        return BatchedGenerator(toy_engine(**sizes), byte_tokenizer)

    return build


def engine_of(generator: BatchedGenerator):  # noqa: ANN201  # the toy's own type lives in conftest
    return generator._engine


def by_plain_loop(toy_engine: type, tokenizer: Tokenizer, request: Request) -> list[int]:
    """The reply's ids from whole prefixes through one slot: no batch, no chunks, no cache, no scheduler."""
    engine = toy_engine(num_slots=1, chunk_length=10_000)
    ids = tokenizer.prompt(request.prompt) if isinstance(request.prompt, str) else list(request.prompt)
    start = len(ids)
    while len(ids) - start < request.max_tokens and len(ids) < engine.max_length:
        logits = engine.logits([Chunk(slot=0, start=0, ids=tuple(ids))])[0, : tokenizer.vocab_size]
        ids.append(sample(logits, request.sampling, len(ids), ids))
        if ids[-1] in tokenizer.stop_ids and not request.ignore_stop_ids:
            break
    return ids[start:]


def random_requests(count: int, seed: int) -> list[Request]:
    draw = random.Random(seed)
    requests = []
    for number in range(count):
        text = draw.choice(["", "shared beginning "]) + "".join(draw.choices("abc é", k=draw.randint(1, 25)))
        sampling = draw.choice([Sampling(), Sampling(temperature=1.2, seed=number), WARM])
        requests.append(Request(text, max_tokens=draw.randint(1, 20), sampling=sampling))
    return requests


def same(one: Completion, other: Completion) -> bool:
    return (one.ids, one.text, one.finish_reason) == (other.ids, other.text, other.finish_reason)


@pytest.mark.parametrize(
    "sizes", [{}, {"num_slots": 1}, {"chunk_length": 1}, {"rollback": 3}, {"num_slots": 8}], ids=str
)
def test_replies_equal_a_plain_loop_over_whole_prefixes(
    make: Callable[..., BatchedGenerator], toy_engine: type, byte_tokenizer: Tokenizer, sizes: dict[str, int]
) -> None:
    requests = random_requests(12, seed=1)
    done = make(**sizes).complete(requests)
    assert [list(one.ids) for one in done] == [by_plain_loop(toy_engine, byte_tokenizer, one) for one in requests]
    assert {one.finish_reason for one in done} <= {"stop", "length"}
    assert all(one.text == byte_tokenizer.decode(one.ids) for one in done)


def test_a_reply_does_not_depend_on_what_else_is_in_the_batch(make: Callable[..., BatchedGenerator]) -> None:
    requests = random_requests(10, seed=2)
    together = make().complete(requests)
    shuffled = make(num_slots=4, chunk_length=7).complete(requests[::-1])[::-1]
    alone = [make().complete([request])[0] for request in requests]
    used = make()
    again = [used.complete([request])[0] for request in requests]
    for others in (shuffled, alone, again):
        assert all(map(same, together, others))


def test_streams_of_many_threads_give_the_same_replies(make: Callable[..., BatchedGenerator]) -> None:
    requests, generator = random_requests(24, seed=3), make()
    expected = make().complete(requests)
    with ThreadPoolExecutor(8) as pool:
        streamed = list(pool.map(lambda request: list(generator.stream(request)), requests))
    for tokens, whole in zip(streamed, expected, strict=True):
        assert tuple(token.id for token in tokens) == whole.ids
        assert "".join(token.text for token in tokens) == whole.text
        assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + [whole.finish_reason]


def test_two_streams_share_the_steps(make: Callable[..., BatchedGenerator]) -> None:
    generator = make()
    one, two = (generator.stream(Request(text, max_tokens=10, ignore_stop_ids=True)) for text in ("ab", "cd"))
    first = [next(one), next(two), *one]
    rest = list(two)
    assert (len(first), len(rest)) == (11, 9)
    assert len(engine_of(generator).calls) == 11, "the second stream only began one step later"


def test_closing_a_stream_frees_its_slot_at_once(make: Callable[..., BatchedGenerator]) -> None:
    generator = make(num_slots=1)
    stream = generator.stream(Request("ab", max_tokens=40, ignore_stop_ids=True))
    next(stream)
    stream.close()
    steps = len(engine_of(generator).calls)
    assert len(list(generator.stream(Request("x", max_tokens=1)))) == 1
    assert len(engine_of(generator).calls) == steps + 1


def test_a_stream_nobody_reads_holds_no_slot(make: Callable[..., BatchedGenerator]) -> None:
    generator = make(num_slots=1)
    unread = generator.stream(Request("ab"))
    assert generator.complete([Request("x", max_tokens=1)])[0].usage.completion_tokens == 1
    assert next(unread).finish_reason is None


def test_stop_strings_end_a_reply_and_are_not_part_of_it(make: Callable[..., BatchedGenerator]) -> None:
    free = make().complete([Request("ab", max_tokens=30, sampling=WARM, ignore_stop_ids=True)])[0]
    stop = free.text[8:10]
    cut = make().complete([Request("ab", max_tokens=30, sampling=WARM, ignore_stop_ids=True, stop=(stop,))])[0]
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert free.ids[: len(cut.ids)] == cut.ids
    assert len(cut.ids) < len(free.ids)


def test_a_stop_id_ends_a_reply_and_shows_no_text(make: Callable[..., BatchedGenerator], toy_engine: type) -> None:
    generator = make()
    engine_of(generator).output[1] = engine_of(generator).output.sum(axis=0)  # the end is now probable
    ended = [one for one in generator.complete(random_requests(20, seed=4)) if one.finish_reason == "stop"]
    assert ended
    assert all(one.ids[-1] in (1, 5) and 1 not in one.ids[:-1] for one in ended)


def test_padding_rows_of_the_embedding_are_never_picked(make: Callable[..., BatchedGenerator]) -> None:
    generator = make()
    engine_of(generator).output[-3:] *= 100
    done = generator.complete([Request("ab", max_tokens=30, sampling=WARM, ignore_stop_ids=True)])[0]
    assert max(done.ids) < generator.tokenizer.vocab_size


def test_the_next_turn_reuses_the_cache_and_says_so(make: Callable[..., BatchedGenerator]) -> None:
    generator = make()
    first = generator.complete([Request([2, 70, 71, 72], max_tokens=5, ignore_stop_ids=True)])[0]
    turn = Request([2, 70, 71, 72, *first.ids, 80], max_tokens=5)
    second, fresh = generator.complete([turn])[0], make().complete([turn])[0]
    assert same(second, fresh)
    assert (second.usage.cached_tokens, fresh.usage.cached_tokens) == (8, 0)
    assert second.usage.prompt_tokens == 10


def test_usage_counts_and_times(make: Callable[..., BatchedGenerator]) -> None:
    usage = make().complete([Request("abcdef", max_tokens=6, ignore_stop_ids=True)])[0].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total) == (7, 6, 13)
    assert usage.prefill_seconds > 0 and usage.decode_seconds > 0


def test_a_prompt_past_the_context_is_refused_before_anything_runs(make: Callable[..., BatchedGenerator]) -> None:
    generator = make()
    with pytest.raises(ContextError, match="expected at most 63 tokens, got 71"):
        generator.stream(Request("x" * 70))
    with pytest.raises(ContextError):
        generator.complete([Request("fine"), Request("x" * 70)])
    assert engine_of(generator).calls == []


@pytest.mark.parametrize("bad", [265, -1, "a", 1.0])
def test_ids_outside_the_vocabulary_are_refused(make: Callable[..., BatchedGenerator], bad: object) -> None:
    for use in (lambda ids: make().stream(Request(ids)), lambda ids: make().score([ids])):
        with pytest.raises(InputError, match=r"expected token ids in 0\.\.264, got"):
            use([2, bad])


def test_logits_that_are_not_finite_fail_their_own_request_only(make: Callable[..., BatchedGenerator]) -> None:
    generator = make()
    engine_of(generator).embedding[6 + ord("!")] = np.nan
    good = generator.stream(Request("ab", max_tokens=5, ignore_stop_ids=True))
    next(good)
    with pytest.raises(InputError, match="expected finite logits at position 3, got nan"):
        generator.complete([Request("a!"), Request("ok", max_tokens=3)])
    assert len(list(good)) == 4


def test_an_engine_that_fails_leaves_the_generator_usable(make: Callable[..., BatchedGenerator]) -> None:
    generator, other = make(num_slots=2), Request("cd", max_tokens=5)
    stream = generator.stream(other)
    tokens = [next(stream)]

    def fail() -> None:
        raise MemoryError("full")

    engine_of(generator).before_call = fail
    with pytest.raises(MemoryError):
        generator.complete([Request("ab")])
    engine_of(generator).before_call = lambda: None
    tokens += stream
    assert tuple(token.id for token in tokens) == make().complete([other])[0].ids
    assert len(generator.complete([Request("ab", max_tokens=2), Request("b", max_tokens=2)])) == 2


def test_ctrl_c_ends_complete_between_two_steps_and_leaves_it_usable(make: Callable[..., BatchedGenerator]) -> None:
    generator, request = make(), Request("ab", max_tokens=30, ignore_stop_ids=True)
    engine = engine_of(generator)
    began: list[int] = []

    def interrupt_in_fifth_call() -> None:
        began.append(len(engine.calls))
        if len(began) == 5:
            signal.raise_signal(signal.SIGINT)

    engine.before_call = interrupt_in_fifth_call
    with pytest.raises(KeyboardInterrupt):
        generator.complete([request])
    assert len(engine.calls) == 5, "the step that was running was brought to its end"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(generator.complete([request])[0], make().complete([request])[0])


def test_who_waits_for_anothers_step_runs_none(make: Callable[..., BatchedGenerator]) -> None:
    generator, entered, leave = make(), threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert leave.wait(10)

    engine_of(generator).before_call = hold
    request = Request("ab", max_tokens=3, ignore_stop_ids=True)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(generator.complete, [request])
        assert entered.wait(10)
        second = pool.submit(generator.complete, [request])
        assert len(engine_of(generator).calls) == 0
        leave.set()
        assert same(first.result(10)[0], second.result(10)[0])


def exact_scores(generator: BatchedGenerator, ids: list[int]) -> np.ndarray:
    engine, state, out = engine_of(generator), None, []
    for now, following in pairwise(ids):
        before = np.zeros(engine.rotation.shape[0]) if state is None else engine.rotation @ state
        state = np.tanh(before + engine.embedding[now])
        logits = engine.output @ state
        out.append(logits[following] - np.log(np.exp(logits).sum()))
    return np.array(out)


def test_scores_equal_the_formula_and_stand_in_the_order_asked(make: Callable[..., BatchedGenerator]) -> None:
    generator, draw = make(), random.Random(5)
    sequences = [[2, *draw.choices(range(6, 262), k=draw.randint(0, 60))] for _ in range(10)]
    for ids, score in zip(sequences, generator.score(sequences), strict=True):
        assert score.log_probs.dtype == np.float64
        np.testing.assert_allclose(score.log_probs, exact_scores(generator, ids), atol=1e-6)
    lengths = [[len(chunk.ids) for chunk in call] for call in engine_of(generator).calls]
    assert max(map(len, lengths)) == 3


def test_greedy_replies_score_as_greedy(make: Callable[..., BatchedGenerator]) -> None:
    generator = make()
    reply = generator.complete([Request([2, 70, 71], max_tokens=10, ignore_stop_ids=True)])[0]
    [score] = generator.score([[2, 70, 71, *reply.ids]])
    assert score.is_greedy[2:].all()


def test_a_single_token_has_an_empty_score_and_none_is_refused(make: Callable[..., BatchedGenerator]) -> None:
    [score] = make().score([[2]])
    assert score.log_probs.shape == score.is_greedy.shape == (0,)
    with pytest.raises(InputError, match="expected sequences of at least one token, got an empty one"):
        make().score([[2], []])
    with pytest.raises(ContextError, match="expected at most 64 tokens, got 65"):
        make().score([[2] * 66])


def shared_sequences(draw: random.Random) -> tuple[list[list[int]], list[int]]:
    """Questions with answers, shuffled: three beginnings, each with three contexts, each with four continuations."""
    found = []
    for beginning in ([2, *draw.choices(range(6, 262), k=20)] for _ in range(3)):
        for question in (draw.choices(range(6, 262), k=draw.randint(0, 12)) for _ in range(3)):
            context = [*beginning, *question]
            found += [([*context, *draw.choices(range(6, 262), k=draw.randint(1, 8))], len(context)) for _ in range(4)]
    draw.shuffle(found)
    return [ids for ids, _ in found], [count for _, count in found]


@pytest.mark.parametrize("sizes", [{}, {"num_slots": 1}, {"chunk_length": 5}, {"rollback": 3}], ids=str)
def test_scores_after_a_context_equal_those_of_the_whole(
    make: Callable[..., BatchedGenerator], sizes: dict[str, int]
) -> None:
    generator, (sequences, contexts) = make(**sizes), shared_sequences(random.Random(11))
    for _ in range(2):  # the second time slots hold what the first left
        for ids, count, score in zip(sequences, contexts, generator.score(sequences, contexts), strict=True):
            np.testing.assert_allclose(score.log_probs, exact_scores(generator, ids)[count - 1 :], atol=1e-6)
            assert len(score.is_greedy) == len(ids) - count


def test_what_contexts_have_in_common_runs_once(make: Callable[..., BatchedGenerator]) -> None:
    generator, context = make(num_slots=2), [2, *range(10, 50)]
    generator.score([[*context, 70 + number] for number in range(8)], [len(context)] * 8)
    calls = engine_of(generator).calls
    assert sum(len(chunk.ids) for call in calls for chunk in call) == len(context) - 1 + 8
    fresh = make(num_slots=2)
    fresh.score([[*context, 70 + number] for number in range(8)])
    assert sum(len(chunk.ids) for call in engine_of(fresh).calls for chunk in call) == 8 * len(context)


def test_a_context_may_be_all_and_no_more(make: Callable[..., BatchedGenerator]) -> None:
    generator = make()
    assert [len(score.log_probs) for score in generator.score([[2, 70, 71], [2, 70]], [3, 1])] == [0, 1]
    assert engine_of(generator).calls == [[Chunk(slot=0, start=0, ids=(2,), num_logits=0)]]
    for wrong in (0, 4):
        with pytest.raises(
            InputError, match=f"expected a context of 1 to 3 tokens, all of the sequence's, got {wrong}"
        ):
            generator.score([[2, 70, 71]], [wrong])


def test_scoring_and_replies_run_beside_each_other(make: Callable[..., BatchedGenerator]) -> None:
    generator, sequences = make(), [[2, *range(10, 60)]] * 6
    request = Request("ab", max_tokens=40, ignore_stop_ids=True)
    with ThreadPoolExecutor(2) as pool:
        scores, reply = pool.submit(generator.score, sequences), pool.submit(generator.complete, [request])
        assert same(reply.result(20)[0], make().complete([request])[0])
        np.testing.assert_allclose(scores.result(20)[3].log_probs, exact_scores(generator, sequences[0]), atol=1e-6)


def test_an_infinite_reader_may_stop_early(make: Callable[..., BatchedGenerator]) -> None:
    request = Request("ab", max_tokens=30, ignore_stop_ids=True)
    assert len(list(islice(make().stream(request), 3))) == 3
