# SPDX-License-Identifier: Apache-2.0
"""What a request may ask of each token: alternatives, a bias, a grammar; and an end that comes from elsewhere."""

import re
import threading
from collections.abc import Callable

import numpy as np
import pytest

from gemmary.base.errors import InputError
from gemmary.generate.batched import BatchedGenerator
from gemmary.generate.draft import Lookup
from gemmary.generate.reply import report
from gemmary.generate.request import Grammar, Request, Sampling
from gemmary.text.tokenizer import Tokenizer

WARM = Sampling(temperature=1.0, seed=5)


@pytest.fixture
def make(toy_engine: type, byte_tokenizer: Tokenizer) -> Callable[..., BatchedGenerator]:
    def build(drafter: Lookup | None = None, **sizes: int) -> BatchedGenerator:
        return BatchedGenerator(toy_engine(**sizes), byte_tokenizer, drafter)

    return build


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=str)
def test_reported_probabilities_are_those_that_a_score_gives(
    make: Callable[..., BatchedGenerator], sampling: Sampling
) -> None:
    generator = make()
    # without the rows of padding, which a score does count: their share is what the two may differ by
    request = Request("ab", max_tokens=12, sampling=sampling, alternatives=3, ignore_stop_ids=True)
    tokens = list(generator.stream(request))
    prompt = generator.tokenizer.prompt("ab")
    score = generator.score([[*prompt, *(token.id for token in tokens)]], [len(prompt)])[0]
    reported = np.array([token.log_prob for token in tokens])
    assert (reported >= score.log_probs - 1e-6).all()
    assert reported == pytest.approx(score.log_probs, abs=0.2)
    for token, best in zip(tokens, score.is_greedy, strict=True):
        values = [value for _, value in token.alternatives]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert not best or token.alternatives[0] == (token.id, token.log_prob)


def test_probabilities_of_all_alternatives_sum_to_one(make: Callable[..., BatchedGenerator]) -> None:
    logits = np.random.default_rng(0).standard_normal(20).astype(np.float32) * 5
    _, alternatives = report(logits, 3, 20)
    assert np.exp([value for _, value in alternatives]).sum() == pytest.approx(1, abs=1e-6)
    assert not next(make().stream(Request("ab", max_tokens=1))).alternatives, "nobody asked"


def test_reports_change_no_reply_and_drafts_change_no_report(make: Callable[..., BatchedGenerator]) -> None:
    asked = Request("abcabcabcabc", max_tokens=30, alternatives=2, ignore_stop_ids=True)
    plain = Request("abcabcabcabc", max_tokens=30, ignore_stop_ids=True)
    drafting = make(Lookup(), num_drafts=7, chunk_length=8)
    tokens = [list(generator.stream(asked)) for generator in (make(), drafting)]
    assert [token.id for token in tokens[0]] == list(make().complete([plain])[0].ids)
    # where several tokens run at once NumPy's products differ in the last bit
    for one, other in zip(*tokens, strict=True):
        assert one.id == other.id and one.log_prob == pytest.approx(other.log_prob, abs=1e-5)


def test_a_bias_forbids_and_forces(make: Callable[..., BatchedGenerator]) -> None:
    generator = make()
    usual = generator.complete([Request("ab", max_tokens=8, ignore_stop_ids=True)])[0].ids
    without = Request("ab", max_tokens=8, ignore_stop_ids=True, bias={usual[0]: -100})
    assert usual[0] not in generator.complete([without])[0].ids
    only = Request("ab", max_tokens=5, bias={77: 100})
    assert generator.complete([only])[0].ids == (77,) * 5
    with pytest.raises(InputError, match="expected token ids in"):
        generator.stream(Request("ab", bias={10**6: 1.0}))
    with pytest.raises(InputError, match="finite numbers"):
        Request("ab", bias={1: float("nan")})


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=str)
@pytest.mark.parametrize("drafter", [None, Lookup()], ids=["plain", "drafts"])
def test_a_grammar_holds_from_the_first_character_to_the_end(
    make: Callable[..., BatchedGenerator], sampling: Sampling, drafter: Lookup | None
) -> None:
    generator = make(drafter, num_drafts=7 if drafter else 0, chunk_length=8)
    grammar = Grammar(kind="regex", text="(ab|cd){3,6}[0-9]{4}")
    requests = [Request(f"ab cd {number}", max_tokens=40, sampling=sampling, grammar=grammar) for number in range(6)]
    beside = Request("ab", max_tokens=20, sampling=WARM)
    *held, free = generator.complete([*requests, beside])
    for one in held:
        assert one.finish_reason == "stop" and re.fullmatch(grammar.text, one.text)
    assert free.ids == make().complete([beside])[0].ids, "a neighbour's grammar is not its own"


def test_a_wrong_grammar_is_refused_before_anything_runs(make: Callable[..., BatchedGenerator]) -> None:
    with pytest.raises(InputError, match="regex"):
        make().stream(Request("ab", grammar=Grammar(kind="regex", text="(")))


def test_the_last_token_says_what_the_reply_cost(make: Callable[..., BatchedGenerator]) -> None:
    *others, last = make().stream(Request("ab", max_tokens=4, ignore_stop_ids=True))
    assert [token.usage for token in others] == [None] * 3
    assert last.usage is not None and (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 4)


def test_closed_from_another_thread_a_stream_ends_within_the_step(make: Callable[..., BatchedGenerator]) -> None:
    generator = make(num_slots=1)
    stream = generator.stream(Request("a" * 60, max_tokens=3, ignore_stop_ids=True))
    runs, goes_on = threading.Event(), threading.Event()

    def before_call() -> None:
        runs.set()
        goes_on.wait()

    generator.engine.before_call = before_call
    seen: list[object] = []
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    runs.wait()
    stream.close()
    goes_on.set()
    reader.join()
    assert seen == [] and len(generator.engine.calls) == 1, "of 16 pieces of the prompt"
    assert generator.complete([Request("ab", max_tokens=2)])[0].ids, "the slot is free"


def test_a_stream_closed_before_it_began_never_runs(make: Callable[..., BatchedGenerator]) -> None:
    generator = make()
    stream = generator.stream(Request("ab", max_tokens=4))
    stream.close()
    assert list(stream) == [] and generator.engine.calls == []
