# SPDX-License-Identifier: Apache-2.0
"""The C library against the forward pass in NumPy, for every set of kernels and every block format; hostile calls."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.base.config import PRESETS
from gemmary.base.errors import CheckpointError, GemmaryError, InputError
from gemmary.formats.content import Blocks
from gemmary.formats.quantize import BlockType
from gemmary.native import library as native_library
from gemmary.native.library import library
from gemmary.native.runtime import Model, NativeChunk, blocks_of

sys.path.insert(0, str(Path(__file__).parent))
import reference

IDS = [2, *np.random.default_rng(1).integers(0, 37, 60).tolist()]
QUANTIZED = [kind for kind in BlockType if not kind.is_float]


def run(model: Model, ids: list[int], chunk: int, slot: int = 0) -> np.ndarray:
    """Logits after every chunk."""
    parts = [NativeChunk(slot=slot, start=start, ids=ids[start : start + chunk]) for start in range(0, len(ids), chunk)]
    return np.concatenate([model.forward([part]) for part in parts])


def rounds_of(kernels: str) -> reference.Rounds:
    return reference.Rounds.QUERIES if kernels == "avx512bf16" else reference.Rounds.OPERANDS


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float = 0.01) -> None:
    """Half of it within a share of the logits' spread, the rest near: an activation between two int8 steps may fall
    either way, which moves all later logits by about half a percent."""
    error = np.abs(got - expected) / expected.std()
    assert np.median(error) < tolerance
    assert error.max() < 10 * tolerance


@pytest.mark.parametrize("name", ["gemma1", "gemma2", "gemma3", "odd"])
def test_logits_are_those_of_the_formula(name: str, kernels: str, make_tiny: Callable[..., Any]) -> None:
    tiny = make_tiny(name)
    expected = reference.logits(tiny.config, tiny.arrays, IDS, rounds_of(kernels))
    model = tiny.open(kernels=kernels)
    assert model.kernels == kernels
    assert_close(run(model, IDS, 1), expected)  # one token at a time, around the rings several times
    assert_close(run(model, IDS, 8), np.concatenate([expected[7::8], expected[-1:]]))


@pytest.mark.parametrize("generation", ["gemma1", "gemma2", "gemma3"])
def test_queries_are_rounded_by_the_kernels_that_say_so(
    generation: str, kernels: str, make_tiny: Callable[..., Any]
) -> None:
    tiny = make_tiny(generation)
    found = run(tiny.open(kernels=kernels), IDS, 1)
    errors = {
        rounds: np.median(np.abs(found - reference.logits(tiny.config, tiny.arrays, IDS, rounds)))
        for rounds in (reference.Rounds.OPERANDS, reference.Rounds.QUERIES)
    }
    assert min(errors, key=errors.__getitem__) == rounds_of(kernels)


@pytest.mark.parametrize("kind", [*QUANTIZED, BlockType.F32, BlockType.F16, BlockType.BF16], ids=lambda kind: kind.name)
def test_every_block_format_means_what_its_bytes_say(
    kind: BlockType, kernels: str, make_tiny: Callable[..., Any]
) -> None:
    tiny = make_tiny("gemma1", kind)
    expected = reference.logits(tiny.config, tiny.arrays, IDS[:13], rounds_of(kernels))
    tolerance = 0.02 if kind.is_float else 0.01  # floats become int8
    assert_close(run(tiny.open(kernels=kernels), IDS[:13], 1), expected, tolerance)
    assert_close(run(tiny.open(kernels=kernels), IDS[:13], 8), expected[[7, 12]], tolerance)


def test_rounding_costs_little(make_tiny: Callable[..., Any]) -> None:
    tiny = make_tiny("gemma3")
    exact = reference.logits(tiny.config, tiny.arrays, IDS, reference.Rounds.NOTHING)
    assert_close(run(tiny.open(), IDS, 1), exact, 0.02)


def test_neither_chunks_nor_threads_nor_neighbours_change_a_bit(kernels: str, make_tiny: Callable[..., Any]) -> None:
    tiny = make_tiny("gemma2", BlockType.Q4_K)
    alone = run(tiny.open(kernels=kernels), IDS, 1)
    model = tiny.open(kernels=kernels, num_threads=3, num_slots=3)
    for start, size in ((0, 5), (5, 8), (13, 1), (14, 7)):
        chunk = NativeChunk(slot=1, start=start, ids=IDS[start : start + size])
        others = [NativeChunk(slot=slot, start=0, ids=IDS[slot : slot + 6]) for slot in (2, 0)]
        logits = model.forward([others[0], chunk, others[1]])
        np.testing.assert_array_equal(logits[1], alone[start + size - 1])


def test_logits_are_given_after_as_many_tokens_as_are_wanted(kernels: str, make_tiny: Callable[..., Any]) -> None:
    tiny = make_tiny("gemma3", BlockType.Q8_0)
    alone = run(tiny.open(kernels=kernels), IDS, 1)
    model = tiny.open(kernels=kernels, num_threads=2, num_slots=3)
    for wanted in ((3, 8, 1), (0, 2, 0), (0, 0, 0)):
        chunks = [
            NativeChunk(slot, 0, IDS[:length], n)
            for slot, (length, n) in enumerate(zip((5, 8, 1), wanted, strict=True))
        ]
        expected = [alone[length - n : length] for length, n in zip((5, 8, 1), wanted, strict=True)]
        np.testing.assert_array_equal(model.forward(chunks), np.concatenate(expected))


@pytest.mark.parametrize("generation", ["gemma2", "gemma3"])
def test_candidates_are_exact_and_hold_the_best(generation: str, kernels: str, make_tiny: Callable[..., Any]) -> None:
    tiny = make_tiny(generation)
    model = tiny.open(kernels=kernels, num_threads=2, num_slots=3)
    for wanted in ((1, 1, 1), (3, 8, 1), (0, 2, 0), (0, 0, 0)):
        chunks = [
            NativeChunk(slot, 0, IDS[:length], n)
            for slot, (length, n) in enumerate(zip((5, 8, 1), wanted, strict=True))
        ]
        whole, found = model.forward(chunks), model.candidates(chunks)
        known = np.isfinite(found)
        np.testing.assert_array_equal(found[known], whole[known])
        assert (known | (found == -np.inf)).all()
        np.testing.assert_array_equal(found.argmax(axis=1), whole.argmax(axis=1))
    assert model.screened_bytes > 0


def test_many_slots_run_in_parts(make_tiny: Callable[..., Any]) -> None:
    tiny = make_tiny("gemma1")
    model = tiny.open(num_slots=70, num_threads=2)
    logits = model.forward([NativeChunk(slot=slot, start=0, ids=IDS[slot % 9 :][:8]) for slot in range(70)])
    np.testing.assert_array_equal(logits[:9], logits[63:].tolist() + logits[7:9].tolist())
    scores, _ = model.score([NativeChunk(slot=slot, start=0, ids=IDS[:8]) for slot in range(70)], [IDS[1:9]] * 70)
    np.testing.assert_array_equal(scores.reshape(70, 8), np.broadcast_to(scores[:8], (70, 8)))


def test_scores_are_those_of_the_logits(kernels: str, make_tiny: Callable[..., Any]) -> None:
    tiny = make_tiny("gemma3")
    logits = run(tiny.open(kernels=kernels), IDS[:24], 1).astype(np.float64)
    best = logits.argmax(axis=1).tolist()
    targets = [best[at] if at % 3 == 0 else IDS[at + 1] for at in range(24)]
    normal = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    model = tiny.open(kernels=kernels, num_threads=2)
    for start in range(0, 24, 8):
        chunk = NativeChunk(slot=0, start=start, ids=IDS[start : start + 8])
        log_probs, is_greedy = model.score([chunk], [targets[start : start + 8]])
        expected = [normal[at, targets[at]] for at in range(start, start + 8)]
        np.testing.assert_allclose(log_probs, expected, atol=2e-5)
        assert is_greedy.tolist() == [best[at] == targets[at] for at in range(start, start + 8)]


PRESET_OF = {config: name for name, config in PRESETS.items()}  # one name for each of the different sizes


@pytest.mark.parametrize("name", [*PRESET_OF.values(), "gemma1", "gemma2", "gemma3"])
@pytest.mark.parametrize(("length", "chunk", "slots"), [(64, 16, 1), (1024, 128, 3), (8192, 512, 2)])
def test_what_the_cache_takes_is_what_the_configuration_says(
    name: str, length: int, chunk: int, slots: int, make_tiny: Callable[..., Any]
) -> None:
    config = PRESETS[name] if name in PRESETS else make_tiny(name).config
    config = config.with_(window_pattern=tuple(window and round_up(window) for window in config.window_pattern))
    model = Model(config, num_slots=slots, max_length=length, chunk_length=chunk, num_threads=1)
    assert model.cache_bytes == config.cache_bytes(length, chunk=chunk, itemsize=2, slots=slots)


def test_rings_and_heads_fill_whole_groups_of_16(make_tiny: Callable[..., Any]) -> None:
    config = make_tiny("odd").config  # heads of 10, windows of 3
    model = Model(config, num_slots=2, max_length=100, chunk_length=9, num_threads=1)
    lengths = [round_up(length) for length in config.cache_lengths(100, 9)]
    assert lengths == [16, 112, 16]
    assert model.cache_bytes == 2 * 2 * 2 * config.num_kv_heads * round_up(config.head_dim) * sum(lengths)


def round_up(size: int) -> int:
    return -(-size // 16) * 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_threads": 0}, "expected 1 to 256 threads, got 0"),
        ({"num_threads": 100_000}, "expected 1 to 256 threads, got 100000"),
        ({"num_slots": 0}, "expected num_slots >= 1"),
        ({"max_length": 2**40}, "expected max_length >= 1"),
        ({"kernels": "mmx"}, "expected kernels that were built and run on this processor .*portable.*, got 'mmx'"),
        ({"num_slots": 4096, "max_length": 2**23}, "expected memory and threads for 4096 slots"),
    ],
)
def test_settings_that_cannot_be_had_are_refused(
    settings: dict[str, Any], message: str, make_tiny: Callable[..., Any]
) -> None:
    with pytest.raises(InputError, match=message):
        make_tiny("gemma1").open(**settings)


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [NativeChunk(slot=2, start=0, ids=[2])],
        [NativeChunk(slot=-1, start=0, ids=[2])],
        [NativeChunk(slot=0, start=-1, ids=[2])],
        [NativeChunk(slot=0, start=64, ids=[2])],
        [NativeChunk(slot=0, start=2**31 - 1, ids=[2])],
        [NativeChunk(slot=0, start=0, ids=[])],
        [NativeChunk(slot=0, start=0, ids=[2] * 9)],
        [NativeChunk(slot=0, start=0, ids=[2]), NativeChunk(slot=0, start=0, ids=[2])],
        [NativeChunk(slot=0, start=0, ids=[2], num_logits=2)],
        [NativeChunk(slot=0, start=0, ids=[2], num_logits=-1)],
        [NativeChunk(slot=0, start=0, ids=[-1])],
        [NativeChunk(slot=0, start=0, ids=[200])],
        [NativeChunk(slot=0, start=0, ids=[2**40])],
    ],
)
def test_chunks_out_of_range_are_refused_and_the_model_goes_on(
    chunks: list[NativeChunk], make_tiny: Callable[..., Any]
) -> None:
    model = make_tiny("gemma1").open(num_slots=2)
    with pytest.raises(InputError, match="expected"):
        model.forward(chunks)
    with pytest.raises(InputError, match="expected"):
        model.score(chunks, [[200] * len(chunk.ids) for chunk in chunks])
    assert np.isfinite(model.forward([NativeChunk(slot=0, start=0, ids=[2])])).all()


def test_weights_that_do_not_fit_are_refused(make_tiny: Callable[..., Any]) -> None:
    tiny = make_tiny("gemma1")

    def load(**changed: Blocks | None) -> None:
        model = Model(tiny.config, num_slots=1, max_length=8, chunk_length=8, num_threads=2)
        kept = {path: changed.get(path.split(".")[-1], blocks) for path, blocks in tiny.blocks.items()}
        model.load((path, blocks) for path, blocks in kept.items() if blocks is not None)
        model.forward([NativeChunk(slot=0, start=0, ids=[2])])

    load()
    gate = tiny.blocks["layers.0.mlp.gate"]
    short = Blocks(kind=gate.kind, shape=gate.shape, read=lambda first, count: gate.read(first, count - 1))
    unfit = {
        "expected every weight": {"gate": None},
        "expected the weights of the configuration": {"gate": blocks_of(np.ones((4, 4), np.float32))},
        "once each": {"attention_norm": Blocks(kind=BlockType.F16, shape=(1, 256), read=gate.read)},
        r"expected \d+ bytes of layers.0.mlp.gate": {"gate": short},
        "finite": {"gate": blocks_of(np.full(gate.shape, np.nan, np.float32))},
    }
    for message, changed in unfit.items():
        with pytest.raises(CheckpointError, match=message):
            load(**changed)
    with pytest.raises(CheckpointError, match="expected a weight of the table"):
        Model(tiny.config, num_slots=1, max_length=8, chunk_length=8, num_threads=1).load([("layers.0.no", gate)])


def test_c_refuses_what_python_would_have_refused(make_tiny: Callable[..., Any]) -> None:
    model = make_tiny("gemma1").open()
    lib, handle = library(), model._handle
    assert lib.gemmary_open(None, None) == 1
    assert lib.gemmary_forward(handle, None, 1, None, None) == 3
    assert lib.gemmary_forward(None, None, 1, None, None) == 3
    assert lib.gemmary_declare(handle, 99, 0, 0, 1, 1) == lib.gemmary_declare(handle, 3, 2, 0, 256, 256) == 2
    assert lib.gemmary_declare(handle, 3, 0, 8, 256, 256) == 2  # twice
    assert lib.gemmary_fill(handle, 3, 0, 8, 1, 1, 272) == lib.gemmary_fill(handle, 3, 0, 0, 512, 1, 1) == 2
    assert lib.gemmary_fill(handle, 3, 0, 0, 16, 1, 271) == lib.gemmary_fill(None, 3, 0, 0, 16, 1, 271) == 2
    lib.gemmary_close(None)


def test_a_missing_or_foreign_library_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native_library, "_find", lambda name: None)
    library.cache_clear()
    with pytest.raises(GemmaryError, match=r"expected Gemmary's C library .* install a C compiler"):
        library()
    monkeypatch.undo()
    monkeypatch.setattr(native_library, "ABI", 0)
    with pytest.raises(GemmaryError, match="expected the library of this version"):
        library()
    monkeypatch.undo()
    library.cache_clear()
    assert library()
