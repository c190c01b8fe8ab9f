# SPDX-License-Identifier: Apache-2.0
"""KerasEngine against the forward pass over whole sequences: batches, chunks, rings, prefixes taken up again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import InputError
from gemmary.formats.checkpoint import open_checkpoint
from gemmary.formats.content import Checkpoint
from gemmary.generate.batched import BatchedGenerator
from gemmary.generate.generator import Chunk
from gemmary.generate.keras_engine import KerasEngine
from gemmary.generate.request import Completion, Request
from gemmary.model import gemma
from gemmary.model.compiled import compile_pure
from gemmary.model.gemma import forward, head
from gemmary.model.weights import load_weights, numpy_array
from gemmary.text.tokenizer import Tokenizer

BOUND = 1e-4  # of a logit in float32
LENGTH = 64
WINDOWS = GemmaConfig(  # every feature: rings, soft caps, norms everywhere, two bases, grouped heads
    vocab_size=96,
    num_layers=3,
    model_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    max_length=LENGTH,
    query_scale=8**-0.5,
    window_pattern=(12, None),
    rope_base=1_000_000.0,
    rope_scale=8.0,
    attn_softcap=20.0,
    final_softcap=10.0,
    post_norm=True,
    qk_norm=True,
)
PLAIN = GemmaConfig(
    vocab_size=96,
    num_layers=2,
    model_dim=32,
    num_heads=4,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=48,
    max_length=LENGTH,
    query_scale=8**-0.5,
)


@pytest.fixture(scope="module", params=["windows", "plain"])
def checkpoint(request: pytest.FixtureRequest, random_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return random_checkpoint({"windows": WINDOWS, "plain": PLAIN}[request.param])


@pytest.fixture(scope="module")
def windowed(random_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return random_checkpoint(WINDOWS)


@pytest.fixture(scope="module")
def whole(checkpoint: Checkpoint) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    return without_cache(checkpoint)


def without_cache(checkpoint: Checkpoint) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    """Makes the logits after every token of a sequence: no cache, no chunks, no batch."""

    def compute(_: int, table: Any, ids: Any) -> Any:
        return head(checkpoint.config, table, forward(checkpoint.config, table, ids, dtype="float32"))

    run, table = compile_pure(compute), load_weights(checkpoint, "float32")

    def logits(ids: Sequence[int]) -> NDArray[np.float32]:
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(ids)] = ids
        return numpy_array(run(0, table, ops.convert_to_tensor(padded)))[0, : len(ids)]

    return logits


def drawn(length: int, seed: int) -> list[int]:
    return [2, *np.random.default_rng(seed).integers(6, 96, length - 1).tolist()]


def feed(engine: KerasEngine, slot: int, ids: Sequence[int], start: int = 0) -> NDArray[np.float32]:
    """Run a slot's tokens from `start` on, in chunks, and return the logits after the last."""
    for first in range(start, len(ids), engine.chunk_length):
        part = tuple(ids[first : min(len(ids), first + engine.chunk_length)])
        logits = engine.logits([Chunk(slot=slot, start=first, ids=part)])
    return logits[0]


def assert_near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)


def test_a_batch_of_unequal_lengths_equals_single_prompts(
    checkpoint: Checkpoint, whole: Callable[[Sequence[int]], NDArray[np.float32]]
) -> None:
    engine = KerasEngine(checkpoint, num_slots=5, chunk_length=32)
    prompts = [drawn(length, seed) for seed, length in enumerate((1, 3, 16, 17, 31))]
    order = (3, 0, 4, 1, 2)  # slots in no order
    logits = engine.logits([Chunk(slot=order[at], start=0, ids=tuple(ids)) for at, ids in enumerate(prompts)])
    for _ in range(6):
        assert_near(logits, [whole(ids)[-1] for ids in prompts])
        for ids, row in zip(prompts, logits, strict=True):
            ids.append(int(row.argmax()))
        chunks = [Chunk(slot=order[at], start=len(ids) - 1, ids=(ids[-1],)) for at, ids in enumerate(prompts)]
        logits = engine.logits(chunks)


@pytest.mark.parametrize("chunk_length", [1, 5, 8, 64])
def test_chunks_of_any_length_equal_the_whole(
    chunk_length: int, checkpoint: Checkpoint, whole: Callable[[Sequence[int]], NDArray[np.float32]]
) -> None:
    engine = KerasEngine(checkpoint, chunk_length=chunk_length)
    ids = drawn(LENGTH, 1)  # the context is full, rings have wrapped
    assert_near(feed(engine, 0, ids[:40]), whole(ids)[39])
    assert_near(feed(engine, 0, ids, start=40), whole(ids)[-1])


def test_some_slots_may_rest_while_others_run(
    checkpoint: Checkpoint, whole: Callable[[Sequence[int]], NDArray[np.float32]]
) -> None:
    draw, engine = np.random.default_rng(4), KerasEngine(checkpoint, num_slots=3, chunk_length=8)
    texts, ends = [drawn(LENGTH, seed) for seed in range(3)], [0, 0, 0]
    expected = [whole(ids) for ids in texts]
    while min(ends) < LENGTH:
        chunks = []
        for slot in draw.permutation(3)[: draw.integers(1, 4)].tolist():
            ids = texts[slot][ends[slot] : ends[slot] + draw.integers(1, 9)]
            if ids:
                chunks.append(Chunk(slot=slot, start=ends[slot], ids=tuple(ids)))
        for chunk, row in zip(chunks, engine.logits(chunks) if chunks else (), strict=True):
            ends[chunk.slot] = chunk.end
            assert_near(row, expected[chunk.slot][chunk.end - 1])


def test_going_on_from_a_kept_prefix_equals_a_fresh_run(
    checkpoint: Checkpoint, whole: Callable[[Sequence[int]], NDArray[np.float32]]
) -> None:
    draw, engine = np.random.default_rng(9), KerasEngine(checkpoint, chunk_length=8)
    held, granted = drawn(40, 0), 0
    feed(engine, 0, held)
    for seed in range(30):
        wanted = min(LENGTH - 1, max(1, len(held) - int(draw.integers(0, 12))))
        kept = engine.keep(0, wanted)
        assert kept in (0, wanted)
        granted += kept > 0
        length = min(LENGTH, wanted + int(draw.integers(1, 15)))
        held = [*held[:kept], *drawn(length, seed)[kept:]]
        assert_near(feed(engine, 0, held, start=kept), whole(held)[-1])
    assert granted >= 10


def test_logits_are_given_for_the_chunks_that_want_them(windowed: Checkpoint) -> None:
    engine = KerasEngine(windowed, num_slots=3, max_length=40, chunk_length=8)
    ids = ((2, 5, 6), (2, 7), (2, 8, 9, 4))
    both = engine.logits([Chunk(slot=slot, start=0, ids=each) for slot, each in enumerate(ids)])
    wanted = [Chunk(slot=slot, start=0, ids=each, num_logits=int(slot != 1)) for slot, each in enumerate(ids)]
    np.testing.assert_allclose(engine.logits(wanted), both[[0, 2]], rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="expected chunks that want logits after their last token or none"):
        engine.logits([Chunk(slot=0, start=0, ids=ids[0], num_logits=2)])


def test_keep_says_what_a_ring_has_forgotten(windowed: Checkpoint) -> None:
    engine = KerasEngine(windowed, num_slots=2, chunk_length=8)  # rings of 12 + 8
    feed(engine, 0, drawn(20, 0))
    assert [engine.keep(0, length) for length in (20, 16, 15, 1)] == [20, 16, 0, 0]  # few are not worth it
    feed(engine, 0, drawn(40, 0), start=20)
    assert [engine.keep(0, length) for length in (40, 33, 32, 31, 1)] == [40, 33, 32, 0, 0]
    assert engine.keep(1, 0) == 0
    feed(engine, 0, drawn(17, 1))
    assert engine.keep(0, 17) == 17  # a new sequence begins anew


def test_a_sequence_taken_back_twice_has_forgotten_by_its_furthest_end(windowed: Checkpoint) -> None:
    engine, whole = KerasEngine(windowed, chunk_length=8), without_cache(windowed)
    first = drawn(40, 0)
    feed(engine, 0, first)
    assert engine.keep(0, 34) == 34
    second = [*first[:34], 7]
    assert_near(feed(engine, 0, second, start=34), whole(second)[-1])
    kept = engine.keep(0, 28)  # only 7 before the end, but 12 before where the ring was written
    third = [*first[:28], 9]
    assert_near(feed(engine, 0, third, start=kept), whole(third)[-1])
    assert kept == 0


def test_replies_with_a_shared_beginning_equal_fresh_ones(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(golden / "model")
    assert checkpoint.vocabulary is not None
    tokenizer = Tokenizer(checkpoint.vocabulary)
    engine = KerasEngine(checkpoint, num_slots=2, max_length=128, chunk_length=16)  # rings of 32
    start = "In the year 1912 a lighthouse keeper wrote down 365 sunsets"
    requests = [Request(start + end, max_tokens=12) for end in (", one", ", one a day", " a day", ", one a gem")]
    requests += [Request("A gem is cut in two", max_tokens=30), Request(start + ", one a day, with", max_tokens=20)]

    def one_by_one() -> list[Completion]:
        generator = BatchedGenerator(engine, tokenizer)
        return [generator.complete([request])[0] for request in requests]

    shared = one_by_one()
    assert sum(reply.usage.cached_tokens > 20 for reply in shared) >= 2
    assert shared[-1].text.startswith(" a number from 0 to 9")
    together = BatchedGenerator(engine, tokenizer).complete(requests)
    monkeypatch.setattr(engine, "keep", lambda slot, length: 0)
    fresh = one_by_one()
    assert not any(reply.usage.cached_tokens for reply in fresh)
    assert [reply.ids for reply in shared] == [reply.ids for reply in together] == [reply.ids for reply in fresh]


def test_scores_are_logarithms_of_the_probabilities(
    checkpoint: Checkpoint, whole: Callable[[Sequence[int]], NDArray[np.float32]]
) -> None:
    engine = KerasEngine(checkpoint, num_slots=3, chunk_length=16)
    texts = [drawn(length, seed) for seed, length in enumerate((12, 2, 17))]
    texts = [[*ids, int(whole(ids)[-1].argmax())] for ids in texts]  # the last target is the best token
    chunks = [Chunk(slot=slot, start=0, ids=tuple(ids[:-1][:16])) for slot, ids in enumerate(texts)]
    scores = engine.score(chunks, [ids[1:][:16] for ids in texts])
    [rest] = engine.score([Chunk(slot=2, start=16, ids=(texts[2][16],))], [[texts[2][17]]])
    assert [bool(score.is_greedy[-1]) for score in (scores[0], scores[1], rest)] == [True] * 3
    for ids, score in zip(texts, scores, strict=True):
        logits = whole(ids[:-1]).astype(np.float64)
        normal = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = normal[np.arange(len(ids) - 1), ids[1:]]
        assert_near(score.log_probs, expected[:16])
        assert score.is_greedy.tolist() == (logits.argmax(axis=1) == ids[1:]).tolist()[:16]
        if len(expected) > 16:
            assert_near(rest.log_probs, expected[16:])


def test_sums_of_hidden_states_are_those_of_the_reference_whatever_the_batch_and_the_chunks(golden: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = transformers.AutoModel.from_pretrained(golden / "model", dtype=torch.float32).eval()
    texts = [[2, *np.random.default_rng(seed).integers(6, 500, length).tolist()] for seed, length in ((0, 25), (1, 3))]
    with torch.no_grad():
        expected = np.stack([model(torch.tensor([ids])).last_hidden_state[0].sum(dim=0).numpy() for ids in texts])
    checkpoint = open_checkpoint(golden / "model")
    engine = KerasEngine(checkpoint, num_slots=2, max_length=64, chunk_length=16)
    found = engine.embed([Chunk(slot=1 - at, start=0, ids=tuple(ids[:16])) for at, ids in enumerate(texts)])
    found[0] += engine.embed([Chunk(slot=1, start=16, ids=tuple(texts[0][16:]))])[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert checkpoint.vocabulary is not None
    embeddings = BatchedGenerator(engine, Tokenizer(checkpoint.vocabulary)).embed(texts)
    directions = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, directions, rtol=0, atol=1e-5)


def test_bfloat16_stays_near_float32(windowed: Checkpoint) -> None:
    ids = drawn(50, 3)
    wide, narrow = (
        feed(KerasEngine(windowed, chunk_length=16, dtype=kind), 0, ids) for kind in ("float32", "bfloat16")
    )
    assert narrow.dtype == np.float32
    assert 0 < np.abs(narrow - wide).max() < 0.05 * np.abs(wide).max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_slots": 0}, "expected num_slots >= 1, got 0: ask for at least one"),
        ({"max_length": 0}, "expected max_length >= 1, got 0: ask for at least one"),
        ({"chunk_length": -1}, "expected chunk_length >= 1, got -1: ask for at least one"),
        ({"dtype": "float16"}, "expected float32 or bfloat16, got float16: float16 overflows in Gemma"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], message: str, windowed: Checkpoint) -> None:
    with pytest.raises(InputError) as caught:
        KerasEngine(windowed, **settings)
    assert str(caught.value) == message


def test_weights_that_are_not_finite_fail_the_request(golden: Path) -> None:
    checkpoint = open_checkpoint(golden / "model")
    tensors = {**checkpoint.tensors, "final_norm": lambda: np.full(64, np.nan, np.float32)}
    assert checkpoint.vocabulary is not None
    damaged = Checkpoint(config=checkpoint.config, tensors=tensors, vocabulary=checkpoint.vocabulary)
    generator = BatchedGenerator(KerasEngine(damaged, max_length=32), Tokenizer(checkpoint.vocabulary))
    for _ in range(2):  # and leave the generator usable
        with pytest.raises(InputError, match=r"expected finite logits at position 3, got nan: the weights are damaged"):
            generator.complete([Request([2, 300, 301])])


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows when Python walks through a layer: to compile or to trace it, or on PyTorch to run it."""
    walked: list[int] = []
    original = gemma.layer_pass
    monkeypatch.setattr(gemma, "layer_pass", lambda *given, **more: walked.append(0) or original(*given, **more))
    return walked


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch compiles nothing")
def test_shapes_met_before_are_not_compiled_again(windowed: Checkpoint, passes: list[int]) -> None:
    engine = KerasEngine(windowed, num_slots=2, chunk_length=16)

    def everything(seed: int) -> None:
        feed(engine, seed % 2, drawn(20 + seed, seed))
        feed(engine, seed % 2, drawn(24 + seed, seed), start=20 + seed)
        chunks = [Chunk(slot=slot, start=0, ids=tuple(drawn(5 + seed + slot, seed))) for slot in range(2)]
        engine.logits(chunks)
        engine.score(chunks, [chunk.ids for chunk in chunks])

    for seed in range(2):
        everything(seed)
    assert passes
    passes.clear()
    everything(3)  # other lengths of the same buckets
    assert passes == []


def test_a_token_at_a_time_does_not_walk_through_the_model(windowed: Checkpoint, passes: list[int]) -> None:
    engine = KerasEngine(windowed, num_slots=2, chunk_length=16)
    feed(engine, 0, drawn(5, 0))
    for place in range(5, 12):
        if place == 8:
            passes.clear()
        engine.logits([Chunk(slot=0, start=place, ids=(place,))])
    assert passes == []


COUNTING = """
import json, sys
from pathlib import Path
import jax
events = []
jax.monitoring.register_event_listener(lambda name, **more: events.append(name))
from gemmary.formats.checkpoint import open_checkpoint
from gemmary.generate.generator import Chunk
from gemmary.generate.keras_engine import KerasEngine
engine = KerasEngine(open_checkpoint(Path(sys.argv[1])), max_length=64)
engine.logits([Chunk(slot=0, start=0, ids=(2, 300, 301))])
engine.logits([Chunk(slot=0, start=3, ids=(302,))])
print(json.dumps([sum(name.endswith("/cache_" + kind) for name in events) for kind in ("misses", "hits")]))
"""


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX keeps what it compiles")
def test_a_second_process_compiles_nothing(golden: Path, tmp_path: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = {**inherited, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
    counts = []
    for _ in range(2):
        command = [sys.executable, "-c", COUNTING, str(golden / "model")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        counts.append(json.loads(done.stdout.splitlines()[-1]))
    (misses, _), (misses_again, hits) = counts
    assert misses >= 3 and misses_again == 0 and hits >= 3
