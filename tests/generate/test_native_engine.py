# SPDX-License-Identifier: Apache-2.0
"""The native engine behind the Engine protocol: the golden's words, rings and prefix reuse, real weights."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemmary.base.errors import ContextError, InputError
from gemmary.formats.checkpoint import open_checkpoint, write_checkpoint
from gemmary.formats.locate import embedded_default
from gemmary.generate.batched import BatchedGenerator
from gemmary.generate.generator import Chunk
from gemmary.generate.native_engine import NativeEngine
from gemmary.generate.request import Request, Sampling
from gemmary.native.runtime import kernel_sets
from gemmary.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


def generator(path: Path, **settings: int | str) -> BatchedGenerator:
    checkpoint = open_checkpoint(path)
    assert checkpoint.vocabulary is not None
    return BatchedGenerator(NativeEngine(checkpoint, **settings), Tokenizer(checkpoint.vocabulary))  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk_length", [256, 3])
@pytest.mark.parametrize("num_slots", [1, 4])
def test_the_golden_says_its_words(chunk_length: int, num_slots: int) -> None:
    golden = generator(GOLDEN / "model", num_slots=num_slots, chunk_length=chunk_length)
    expected = json.loads((GOLDEN / "expected.json").read_text())
    requests = [Request(each["prompt"], max_tokens=len(each["ids"])) for each in expected]
    for reply, each in zip(golden.complete(requests * 2), expected * 2, strict=True):
        assert (reply.text, list(reply.ids)) == (each["text"], each["ids"])


@pytest.mark.parametrize("kernels", kernel_sets())
def test_the_golden_says_its_words_with_every_set_of_kernels(kernels: str) -> None:
    try:
        golden = generator(GOLDEN / "model", kernels=kernels)
    except InputError:
        pytest.skip(f"this processor lacks the instructions of {kernels}")
    for each in json.loads((GOLDEN / "expected.json").read_text()):
        [reply] = golden.complete([Request(each["prompt"], max_tokens=len(each["ids"]))])
        assert (reply.text, list(reply.ids)) == (each["text"], each["ids"])


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "float16"])
def test_the_golden_says_its_words_from_gguf(dtype: str, tmp_path: Path) -> None:
    write_checkpoint(open_checkpoint(GOLDEN / "model"), tmp_path / "golden.gguf", format="gguf", dtype=dtype)  # type: ignore[arg-type]
    golden = generator(tmp_path / "golden.gguf")
    for each in json.loads((GOLDEN / "expected.json").read_text()):
        assert golden.complete([Request(each["prompt"], max_tokens=20)])[0].ids == tuple(each["ids"][:20])


def test_a_slot_goes_on_from_what_its_rings_still_hold() -> None:
    checkpoint = open_checkpoint(GOLDEN / "model")  # windows of 16
    ids = tuple(np.random.default_rng(3).integers(6, 500, 60).tolist())
    engine = NativeEngine(checkpoint, max_length=64, chunk_length=8)
    fresh = NativeEngine(checkpoint, max_length=64, chunk_length=8)

    def run(engine: NativeEngine, ids: tuple[int, ...], start: int) -> np.ndarray:
        return [engine.logits([Chunk(slot=0, start=at, ids=ids[at : at + 8])]) for at in range(start, len(ids), 8)][-1]

    run(engine, ids[:40], 0)
    assert engine.keep(0, 31) == 0  # the window before it is partly overwritten
    assert engine.keep(0, 32) == 32
    other = ids[:32] + ids[45:60]
    np.testing.assert_array_equal(run(engine, other, 32), run(fresh, other, 0))
    assert NativeEngine(checkpoint, max_length=24, chunk_length=8).keep(0, 1) == 1  # nothing is ever overwritten


def test_what_cannot_be_had_is_refused() -> None:
    checkpoint = open_checkpoint(GOLDEN / "model")
    with pytest.raises(InputError, match="expected float32 or bfloat16, got float16"):
        NativeEngine(checkpoint, dtype="float16")
    with pytest.raises(InputError, match="expected max_length >= 1, got 0"):
        NativeEngine(checkpoint, max_length=0)
    with pytest.raises(InputError, match="expected a slot in 0"):
        NativeEngine(checkpoint, max_length=8).logits([Chunk(slot=1, start=0, ids=(2,))])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_is_bfloat16_whatever_the_precision(dtype: str) -> None:
    checkpoint = open_checkpoint(GOLDEN / "model")
    engine = NativeEngine(checkpoint, num_slots=2, max_length=128, chunk_length=16, dtype=dtype)
    assert engine.cache_bytes == checkpoint.config.cache_bytes(128, chunk=16, itemsize=2, slots=2)


def test_only_greedy_replies_are_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(GOLDEN / "model")
    assert checkpoint.vocabulary is not None
    engine, screened = NativeEngine(checkpoint, max_length=32, num_slots=2), list[int]()
    original = engine.candidates
    monkeypatch.setattr(engine, "candidates", lambda chunks: screened.append(len(chunks)) or original(chunks))
    golden = BatchedGenerator(engine, Tokenizer(checkpoint.vocabulary))
    greedy, drawn = Request([2, 300], max_tokens=4), Request([2, 300], max_tokens=4, sampling=Sampling(temperature=1.0))
    [alone] = golden.complete([greedy])
    assert screened
    screened.clear()
    assert golden.complete([drawn, greedy])[1].ids == alone.ids
    golden.complete([Request([2, 300], sampling=Sampling(repetition_penalty=1.2), max_tokens=4)])
    assert screened == []
    whole = BatchedGenerator(
        NativeEngine(checkpoint, max_length=32, two_stages=False), Tokenizer(checkpoint.vocabulary)
    )
    assert whole.complete([greedy])[0].ids == alone.ids


def hidden_states(sequences: list[list[int]]) -> list[np.ndarray]:
    """What transformers gives after each token of the golden, normed."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(GOLDEN / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in sequences]


@pytest.mark.parametrize("kernels", kernel_sets())
def test_sums_of_hidden_states_are_those_of_the_reference(kernels: str) -> None:
    texts = [[2, *np.random.default_rng(seed).integers(6, 500, 40).tolist()] for seed in range(2)]
    checkpoint = open_checkpoint(GOLDEN / "model")
    try:
        engine = NativeEngine(checkpoint, num_slots=2, max_length=64, chunk_length=41, kernels=kernels)
    except InputError:
        pytest.skip(f"this processor lacks the instructions of {kernels}")
    found = engine.embed([Chunk(slot=slot, start=0, ids=tuple(ids)) for slot, ids in enumerate(texts)])
    for row, states in zip(found, hidden_states(texts), strict=True):
        expected = states.sum(axis=0)
        assert np.linalg.norm(row - expected) < 0.03 * np.linalg.norm(expected)  # activations are int8
    parts = [engine.embed([Chunk(slot=1, start=at, ids=tuple(texts[0][at : at + 9]))]) for at in range(0, 41, 9)]
    np.testing.assert_allclose(sum(parts)[0], found[0], rtol=0, atol=1e-5 * np.abs(found[0]).max())


def test_an_embedding_is_the_direction_of_the_mean_whatever_the_batch_and_the_chunks() -> None:
    texts = [[2, *np.random.default_rng(seed).integers(6, 500, 5 + 9 * seed).tolist()] for seed in range(5)]
    alone = generator(GOLDEN / "model", max_length=64)
    expected = np.concatenate([alone.embed([ids]) for ids in texts])
    assert expected.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-6)
    for row, states in zip(expected, hidden_states(texts), strict=True):
        mean = states.mean(axis=0)
        assert row @ mean > 0.999 * np.linalg.norm(mean)  # activations are int8
    many = generator(GOLDEN / "model", max_length=64, num_slots=3, chunk_length=7)
    many.complete([Request(texts[4][:30], max_tokens=2)])  # a slot that holds a beginning must not cut it off
    np.testing.assert_allclose(many.embed(texts), expected, rtol=0, atol=1e-6)
    assert many.embed([]).shape == (0, 64)


def test_what_cannot_be_embedded_is_refused() -> None:
    golden = generator(GOLDEN / "model", max_length=16)
    assert golden.embed([[2] * 16]).shape == (1, 64)
    with pytest.raises(ContextError, match="expected at most 16 tokens, got 17"):
        golden.embed([[2], [2] * 17])
    with pytest.raises(InputError, match="expected sequences of at least one token, got an empty one"):
        golden.embed([[]])
    with pytest.raises(InputError, match=r"expected token ids in 0\.\.511, got 512"):
        golden.embed([[2, 512]])


@pytest.mark.slow
def test_two_stages_say_the_same_on_the_real_model() -> None:
    checkpoint = open_checkpoint(embedded_default())
    assert checkpoint.vocabulary is not None
    ids = Tokenizer(checkpoint.vocabulary).prompt(Path(__file__).read_text())[:240]
    engine = NativeEngine(checkpoint, max_length=512)
    for start in range(0, len(ids), 3):  # more rows than 3 in a pass read the whole head
        some = tuple(ids[start : start + 3])
        chunk = [Chunk(slot=0, start=start, ids=some, num_logits=len(some))]
        whole, found = engine.logits(chunk), engine.candidates(chunk)
        np.testing.assert_array_equal(found.argmax(axis=1), whole.argmax(axis=1))
        assert np.isfinite(found).mean() < 0.5


def test_no_framework_is_loaded() -> None:
    code = (
        "import sys, gemmary.generate.native_engine, gemmary.generate.batched;"
        "print(sorted({'keras', 'jax', 'torch', 'tensorflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
def test_real_weights_give_the_text_and_probabilities_of_the_reference(
    default_checkpoint: Path, shared_data: Path, tmp_path: Path
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    write_checkpoint(open_checkpoint(default_checkpoint), tmp_path / "hf", format="safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ours = generator(default_checkpoint, max_length=1024)
    for prompt in ("The capital of France is", "def fibonacci(n):", "Once upon a time"):
        ids = model.generate(torch.tensor([ours.tokenizer.prompt(prompt)]), max_new_tokens=24, do_sample=False)
        best, second = model(ids).logits[0, :-1].topk(2, dim=-1).values.T
        sure = (best - second > 0.5).numpy()  # eight bits of activations may turn a closer choice
        sure[: len(ours.tokenizer.prompt(prompt)) - 1] = False
        assert sure.sum() > 8
        assert ours.score(ids.tolist())[0].is_greedy[sure].all()
    text = (shared_data / "corpora" / "wikitext2_valid_test" / "valid.txt").read_text("utf-8")
    ids = ours.tokenizer.prompt(text[:6000])[:1000]
    with torch.no_grad():
        logits = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), dim=-1)
    expected = logits[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()
    assert abs(float(ours.score([ids])[0].log_probs.mean() - expected.mean())) < 0.005
