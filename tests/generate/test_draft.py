# SPDX-License-Identifier: Apache-2.0
"""Drafting never changes a reply: whatever is guessed, by whom, for how many rows, the ids are those without."""

import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from gemmary.base.errors import InputError
from gemmary.formats.checkpoint import open_checkpoint
from gemmary.formats.sentencepiece import Vocabulary
from gemmary.generate.batched import BatchedGenerator
from gemmary.generate.draft import Drafter, DraftModel, Lookup
from gemmary.generate.generator import Chunk
from gemmary.generate.native_engine import NativeEngine
from gemmary.generate.request import Completion, Request, Sampling
from gemmary.generate.row import Row
from gemmary.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


class Told:
    """Drafts from replies that are known, each token wrong with a probability; `length` gives the drafts' lengths."""

    def __init__(self, known: list[Completion], prompts: list[list[int]], *, wrong: float, seed: int = 0) -> None:
        self.texts = [[*prompt, *reply.ids] for prompt, reply in zip(prompts, known, strict=True)]
        self.wrong, self.draw = wrong, random.Random(seed)

    def propose(self, most: Mapping[Row, int]) -> dict[Row, list[int]]:
        return {row: [self.spoilt(token) for token in self.next(row, count)] for row, count in most.items()}

    def next(self, row: Row, count: int) -> list[int]:
        size = len(row.tokens)
        text = next(text for text in self.texts if text[:size] == row.tokens)
        return text[size : size + count]

    def spoilt(self, token: int) -> int:
        return (token + 1) % 200 if self.draw.random() < self.wrong else token


def random_requests(count: int, seed: int) -> list[Request]:
    draw = random.Random(seed)
    requests = []
    for number in range(count):
        text = "".join(draw.choices("abc é", k=draw.randint(1, 25)))
        sampling = draw.choice(
            [Sampling(), Sampling(temperature=1.2, seed=number), Sampling(temperature=0.3, repetition_penalty=1.3)]
        )
        stop = draw.choice([(), ("a",), ("\ufffd\ufffd",)])
        requests.append(Request(text, max_tokens=draw.randint(1, 25), sampling=sampling, stop=stop))
    return requests


def same(one: Completion, other: Completion) -> bool:
    return (one.ids, one.text, one.finish_reason) == (other.ids, other.text, other.finish_reason)


@pytest.mark.parametrize("wrong", [0, 0.2, 0.7, 1])
@pytest.mark.parametrize(
    "sizes",
    [
        {"num_drafts": 3},
        {"num_slots": 1, "num_drafts": 15, "chunk_length": 16},
        {"num_slots": 8, "num_drafts": 40, "chunk_length": 5},
        {"num_slots": 2, "num_drafts": 7, "chunk_length": 1},
        {"num_drafts": 9, "chunk_length": 12, "rollback": 9},
    ],
    ids=str,
)
def test_replies_are_those_without_drafts(
    toy_engine: type, byte_tokenizer: Tokenizer, sizes: dict[str, int], wrong: float
) -> None:
    requests = random_requests(9, seed=5)
    prompts = [byte_tokenizer.prompt(str(request.prompt)) for request in requests]
    plain = BatchedGenerator(toy_engine(), byte_tokenizer).complete(requests)
    assert {reply.finish_reason for reply in plain} == {"stop", "length"}
    unending = [Request(one.prompt, 64, one.sampling, ignore_stop_ids=True) for one in requests]
    known = BatchedGenerator(toy_engine(), byte_tokenizer).complete(unending)
    generator = BatchedGenerator(toy_engine(**sizes), byte_tokenizer, Told(known, prompts, wrong=wrong))
    for _ in range(2):  # the second time over what the first has left in the slots
        assert all(map(same, generator.complete(requests), plain))
    streamed = [list(generator.stream(request)) for request in requests]
    assert [tuple(token.id for token in tokens) for tokens in streamed] == [reply.ids for reply in plain]
    assert ["".join(token.text for token in tokens) for tokens in streamed] == [reply.text for reply in plain]


def test_drafts_that_are_right_save_steps_and_are_counted(toy_engine: type, byte_tokenizer: Tokenizer) -> None:
    request = Request("ab", max_tokens=46, ignore_stop_ids=True)
    known = BatchedGenerator(toy_engine(), byte_tokenizer).complete([request])
    engine = toy_engine(num_drafts=15, chunk_length=16)
    told = Told(known, [byte_tokenizer.prompt("ab")], wrong=0)
    [reply] = BatchedGenerator(engine, byte_tokenizer, told).complete([request])
    widths = [len(call[0].ids) for call in engine.calls]
    assert widths == [3, 3, 5, 9, 16, 12], "the prompt; then 2, 4, 8 and 15 drafts, and as many as are still wanted"
    assert (reply.usage.drafted_tokens, reply.usage.accepted_tokens) == (40, 40)


def test_drafts_that_are_wrong_soon_become_rare(toy_engine: type, byte_tokenizer: Tokenizer) -> None:
    request = Request("ab", max_tokens=60, ignore_stop_ids=True)
    known = BatchedGenerator(toy_engine(), byte_tokenizer).complete([request])
    engine = toy_engine(num_drafts=15, chunk_length=16)
    told = Told(known, [byte_tokenizer.prompt("ab")], wrong=1)
    [reply] = BatchedGenerator(engine, byte_tokenizer, told).complete([request])
    assert [len(call[0].ids) - 1 for call in engine.calls[1:]][:7] == [2, 1, 0, 1, 0, 0, 1], (
        "then after 4, 8, 16 and 32 tokens"
    )
    assert reply.usage.accepted_tokens == 0
    assert reply.usage.drafted_tokens == 8


def test_rows_share_the_places_of_a_step(toy_engine: type, byte_tokenizer: Tokenizer) -> None:
    requests = [Request(text, max_tokens=30, ignore_stop_ids=True) for text in ("ab", "cd", "ef")]
    known = BatchedGenerator(toy_engine(), byte_tokenizer).complete(requests)
    prompts = [byte_tokenizer.prompt(str(request.prompt)) for request in requests]
    engine = toy_engine(num_drafts=8, chunk_length=16)
    BatchedGenerator(engine, byte_tokenizer, Told(known, prompts, wrong=0)).complete(requests)
    widest = [max(len(chunk.ids) for chunk in call) for call in engine.calls if len(call) == 3]
    assert max(widest) == 3, "two drafts for each of three rows"
    assert len(widest) == 11


def test_unfit_logits_after_a_draft_fail_where_they_would_without(toy_engine: type, byte_tokenizer: Tokenizer) -> None:
    class Breaking(toy_engine):  # type: ignore[misc]
        """Gives NaN after the 20th position."""

        def logits(self, chunks: list[Chunk]) -> np.ndarray:
            logits = super().logits(chunks)
            positions = [at for chunk in chunks for at in range(chunk.end - chunk.num_logits, chunk.end)]
            logits[np.array(positions) >= 20] = np.nan
            return logits

    request = Request("ab", max_tokens=40, ignore_stop_ids=True)
    known = BatchedGenerator(toy_engine(), byte_tokenizer).complete([request])
    told = Told(known, [byte_tokenizer.prompt("ab")], wrong=0)
    seen: list[list[int]] = []
    for drafter in (None, told):
        stream = BatchedGenerator(Breaking(num_drafts=15, chunk_length=16), byte_tokenizer, drafter).stream(request)
        seen.append([])
        with pytest.raises(InputError, match="expected finite logits at position 21"):
            seen[-1].extend(token.id for token in stream)
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("tokens", "most", "drafts"),
    [
        ([2, 5, 6, 7, 8, 9, 5, 6, 7], 2, [8, 9]),
        ([2, 5, 6, 7, 8, 9, 5, 6, 7], 8, [8, 9, 5, 6, 7, 8, 9, 5]),
        ([5, 6, 7, 1, 5, 6, 7, 2, 5, 6, 7], 1, [2]),
        ([3, 4, 5, 6, 7, 1, 9, 9, 5, 6, 7, 2, 3, 4, 5, 6, 7], 1, [1]),
        ([2, 5, 6, 7, 8, 9, 4, 6, 7], 2, []),
        ([7, 7, 7, 7], 3, [7, 7, 7]),
        ([7], 3, []),
    ],
    ids=["what followed", "round the end", "the latest", "the longest", "two tokens are too few", "one token", "alone"],
)
def test_lookup_guesses_what_followed_before(tokens: list[int], most: int, drafts: list[int]) -> None:
    row = Row(tokens=tokens, max_tokens=9)
    assert Lookup().propose({row: most}) == {row: drafts}
    grown, lookup = Row(tokens=[], max_tokens=9), Lookup()
    for token in tokens:
        grown.tokens.append(token)
        found = lookup.propose({grown: most})
    assert found == {grown: drafts}


def test_lookup_forgets_rows_that_are_gone() -> None:
    lookup = Lookup()
    lookup.propose({Row(tokens=[2, 5], max_tokens=9): 1})
    assert len(lookup._indices) == 0


@pytest.mark.parametrize("chunk_length", [16, 5, 1])
def test_a_draft_model_that_is_the_model_is_always_right(
    toy_engine: type, byte_tokenizer: Tokenizer, chunk_length: int
) -> None:
    requests = [Request("abcd" * length, max_tokens=20, ignore_stop_ids=True) for length in (1, 7, 3, 2)]
    plain = BatchedGenerator(toy_engine(), byte_tokenizer).complete(requests)
    small = toy_engine(num_slots=2, chunk_length=chunk_length)
    drafter = DraftModel(small, byte_tokenizer, target=byte_tokenizer)
    generator = BatchedGenerator(toy_engine(num_slots=2, num_drafts=15, chunk_length=16), byte_tokenizer, drafter)
    for _ in range(2):
        replies = generator.complete(requests)
        assert all(map(same, replies, plain))
        assert all(reply.usage.drafted_tokens == reply.usage.accepted_tokens > 8 for reply in replies)


def test_a_draft_model_that_is_another_changes_nothing(toy_engine: type, byte_tokenizer: Tokenizer) -> None:
    requests = random_requests(20, seed=8)
    plain = BatchedGenerator(toy_engine(), byte_tokenizer).complete(requests)
    small = toy_engine(max_length=30, rollback=4)
    small.embedding[::3] *= 0.7
    drafter = DraftModel(small, byte_tokenizer, target=byte_tokenizer)
    generator = BatchedGenerator(toy_engine(num_drafts=15, chunk_length=16), byte_tokenizer, drafter)
    replies = generator.complete(requests)
    assert all(map(same, replies, plain))
    assert 0 < sum(reply.usage.accepted_tokens for reply in replies) < sum(r.usage.drafted_tokens for r in replies)


def test_a_draft_model_of_another_vocabulary_is_refused(toy_engine: type, byte_tokenizer: Tokenizer) -> None:
    pieces, kinds = list(byte_tokenizer.pieces), byte_tokenizer.vocabulary.kinds
    longer = Tokenizer(Vocabulary.from_rows([*pieces, "ab"], [0] * 263, [*kinds, 1]))
    assert DraftModel(toy_engine(), longer, target=byte_tokenizer).propose({}) == {}
    pieces[7], pieces[8] = pieces[8], pieces[7]
    other = Tokenizer(Vocabulary.from_rows(pieces, [0] * 262, kinds))
    with pytest.raises(InputError, match="same vocabulary, got one whose piece 7 is '<0x02>' and not '<0x01>': use"):
        DraftModel(toy_engine(), other, target=byte_tokenizer)


def native(path: Path, drafter: Drafter | None = None, **settings: int) -> BatchedGenerator:
    checkpoint = open_checkpoint(path)
    assert checkpoint.vocabulary is not None
    return BatchedGenerator(NativeEngine(checkpoint, **settings), Tokenizer(checkpoint.vocabulary), drafter)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings", [{"chunk_length": 16}, {"chunk_length": 3, "num_slots": 3}, {"num_slots": 4}], ids=str
)
@pytest.mark.parametrize("wrong", [0, 0.3, 1])
def test_the_golden_is_the_same_around_its_rings(settings: dict[str, int], wrong: float) -> None:
    """Windows of 16 and rings of 16 and a chunk: every draft that is taken back has overwritten an older position."""
    golden = native(GOLDEN / "model", num_threads=1)
    prompts = [each["prompt"] for each in json.loads((GOLDEN / "expected.json").read_text())][:2] * 2
    samplings = [Sampling(temperature=0.9 * (at % 2), seed=at) for at in range(len(prompts))]
    requests = [
        Request(prompt, max_tokens=36 + 5 * at, sampling=sampling, ignore_stop_ids=True)
        for at, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
    ]
    plain = golden.complete(requests)
    told = Told(plain, [golden.tokenizer.prompt(prompt) for prompt in prompts], wrong=wrong, seed=2)
    for drafter in (told, Lookup()):
        generator = native(GOLDEN / "model", drafter, num_threads=1, **settings)
        for _ in range(2):
            assert all(map(same, generator.complete(requests), plain))


def test_a_golden_draft_model_is_always_right() -> None:
    small = native(GOLDEN / "model", num_slots=2, chunk_length=8, num_threads=1)
    drafter = DraftModel(small._engine, small.tokenizer, target=small.tokenizer)
    generator = native(GOLDEN / "model", drafter, num_slots=2, num_threads=1)
    requests = [Request(text, max_tokens=40, ignore_stop_ids=True) for text in ("The lighthouse", "In the year 1912 a")]
    plain = native(GOLDEN / "model", num_threads=1).complete(requests)
    for reply, without in zip(generator.complete(requests), plain, strict=True):
        assert same(reply, without)
        assert reply.usage.drafted_tokens == reply.usage.accepted_tokens > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9, seed=5)], ids=["greedy", "drawn"]
)
def test_real_weights_say_the_same_with_and_without(default_checkpoint: Path, sampling: Sampling) -> None:
    code = "def area(width, height):\n    return width * height\n\n"
    prompts = ("The capital of France is", code * 3 + "def", "One, two, three, one, two, three, one,")
    requests = [Request(prompt, max_tokens=60, sampling=sampling, stop=("twelve",)) for prompt in prompts]
    plain = native(default_checkpoint, max_length=512, num_slots=3).complete(requests)
    found = native(default_checkpoint, Lookup(), max_length=512, num_slots=3).complete(requests)
    assert all(map(same, found, plain))
    assert sum(reply.usage.accepted_tokens for reply in found) > 20
    alone = native(default_checkpoint, Lookup(), max_length=512, chunk_length=32)
    assert all(same(alone.complete([request])[0], reply) for request, reply in zip(requests, plain, strict=True))
