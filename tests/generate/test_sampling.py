# SPDX-License-Identifier: Apache-2.0
"""Sampling against transformers' logits warpers, against the distribution it claims, and at its edges."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gemmary.base.errors import InputError
from gemmary.generate.request import Sampling
from gemmary.generate.sampling import distribution, sample, uniform

VOCABULARY = 262_144


def random_logits(size: int, seed: int, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert sample(np.array([1, 5, 5, 0], np.float32), Sampling(), 0, ()) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=2)):
        with pytest.raises(InputError, match=r"expected finite logits at position 9, got (nan|inf): .*float16"):
            sample(np.array([0.0, bad, 1.0], np.float32), sampling, 9, ())


def test_masked_tokens_are_never_picked() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.5], np.float32)
    picked = {sample(logits, Sampling(temperature=100.0), position, ()) for position in range(200)}
    assert picked == {1, 3}


def test_a_tiny_temperature_is_greedy_and_warns_of_nothing() -> None:
    logits = random_logits(1000, seed=1)
    assert sample(logits, Sampling(temperature=5e-324), 3, ()) == logits.argmax()


def test_the_random_number_depends_on_seed_and_position_and_nothing_else() -> None:
    numbers = {uniform(seed, position) for seed, position in product(range(30), range(30))}
    assert len(numbers) == 900
    assert uniform(2**64 - 1, 131_071) == uniform(2**64 - 1, 131_071)
    logits, sampling = random_logits(50, seed=2), Sampling(temperature=1.0, seed=5)
    first = [sample(logits, sampling, position, ()) for position in range(20)]
    backwards = [sample(logits, sampling, position, ()) for position in reversed(range(20))]
    assert backwards[::-1] == first
    assert [sample(logits, replace(sampling, seed=6), position, ()) for position in range(20)] != first


def test_the_random_number_is_the_generators_own() -> None:
    numpy_says = np.random.Generator(np.random.Philox(key=np.array([11, 400], np.uint64))).random()
    assert uniform(11, 400) == numpy_says


@pytest.mark.parametrize("keyed_by", ["seed", "position"])
def test_tokens_are_drawn_as_often_as_their_probability_says(keyed_by: str) -> None:
    """Chi-square over 20,000 draws; 15 of 16 tokens kept gives 14 degrees of freedom, where 36.1 is p = 0.001."""
    draws, logits = 20_000, np.linspace(0, 3, 16).astype(np.float32)
    sampling = Sampling(temperature=1.5, top_k=15)
    counts: Counter[int] = Counter()
    for number in range(draws):
        seed, position = (number, 7) if keyed_by == "seed" else (7, number)
        counts[sample(logits, replace(sampling, seed=seed), position, ())] += 1
    exact = np.exp(np.linspace(0, 3, 16)[1:] / 1.5)
    expected = draws * exact / exact.sum()
    seen = np.array([counts[token] for token in range(1, 16)])
    assert seen.sum() == draws
    assert ((seen - expected) ** 2 / expected).sum() < 36.1


SETTINGS = [
    Sampling(temperature=0.7),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.3, top_k=40),
    Sampling(temperature=0.9, top_p=0.9),
    Sampling(temperature=1.0, top_p=1e-9),
    Sampling(temperature=2.0, min_p=0.05),
    Sampling(temperature=0.8, top_k=50, top_p=0.95, min_p=0.02),
    Sampling(temperature=1.0, repetition_penalty=1.2),
    Sampling(temperature=0.6, top_k=64, top_p=0.8, repetition_penalty=0.8),
    Sampling(temperature=1.0, top_k=10**6),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_what_is_kept_and_how_probable_it_is_equals_transformers(sampling: Sampling) -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    chain = [
        process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        process.TemperatureLogitsWarper(sampling.temperature),
        *([process.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []),
        process.TopPLogitsWarper(sampling.top_p),
        process.MinPLogitsWarper(sampling.min_p),
    ]
    for seed in range(3):
        logits, history = random_logits(5000, seed), [3, 3, 17, *range(4000, 4100)]
        scores = torch.tensor(logits)[None].double()
        for step in chain:
            scores = step(torch.tensor([history]), scores)
        theirs = torch.softmax(scores[0], dim=-1).numpy()
        ids, probabilities = distribution(logits, sampling, history)
        assert ids.tolist() == np.flatnonzero(theirs).tolist()
        np.testing.assert_allclose(probabilities, theirs[ids], rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    logits=arrays(np.float32, st.integers(1, 40), elements=st.floats(-50, 50, width=32)),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    temperature=st.floats(0.01, 10),
    position=st.integers(0, 10_000),
)
def test_what_is_picked_is_always_one_of_the_kept(
    logits: np.ndarray, top_k: int, top_p: float, min_p: float, temperature: float, position: int
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, probabilities = distribution(logits, sampling)
    assert sample(logits, sampling, position, ()) in ids
    assert logits.argmax() in ids
    assert abs(probabilities.sum() - 1) < 1e-12


def test_equal_tokens_at_a_limit_stay_together() -> None:
    logits = np.array([1, 3, 2, 2, 2], np.float32)
    assert distribution(logits, Sampling(temperature=1.0, top_k=2))[0].tolist() == [1, 2, 3, 4]
    assert distribution(logits, Sampling(temperature=1.0, top_p=0.6))[0].tolist() == [1, 2, 3, 4]


def test_the_penalty_is_for_prompt_and_reply_and_once_for_a_token_seen_twice() -> None:
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    assert sample(logits, Sampling(repetition_penalty=1.1), 4, (0, 0, 0, 0)) == 1
    assert sample(logits, Sampling(repetition_penalty=1.1), 4, (0, 1)) == 0
    assert logits[0] == 2.0, "the caller's logits are left alone"


def test_a_penalty_for_an_id_past_the_logits_changes_nothing() -> None:
    assert sample(np.zeros(3, np.float32), Sampling(repetition_penalty=2.0), 1, (262_143,)) == 0


def test_greedy_distribution_is_the_best_alone() -> None:
    ids, probabilities = distribution(random_logits(VOCABULARY, seed=3), Sampling())
    assert len(ids) == 1 and probabilities.tolist() == [1.0]
