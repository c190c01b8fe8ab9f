# SPDX-License-Identifier: Apache-2.0
"""Packed batches hold every document once an epoch, whole and apart from the others, and depend on the step alone."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmary.base.errors import InputError
from gemmary.corpus.examples import Example, load
from gemmary.corpus.pack import Batches, split
from gemmary.text.tokenizer import Tokenizer


def made(lengths: list[int], seed: int = 0) -> list[Example]:
    """Examples of those lengths with random ids, each token but the first learned by chance, the last always."""
    generator = np.random.default_rng(seed)
    masks = [generator.random(length) < 0.5 for length in lengths]
    for mask in masks:
        mask[-1], mask[0] = True, False
    arrays = [generator.integers(1, 1000, length).astype(np.int32) for length in lengths]
    return [Example(ids, mask, at) for at, (ids, mask) in enumerate(zip(arrays, masks, strict=True), 1)]


def documents(batch: dict[str, np.ndarray]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of one batch, the ids of each document and the places in it that are targets, read back one by one."""
    size, length = batch["ids"].shape
    targets = {}
    for at, target, weight in zip(
        batch["at"].tolist(), batch["targets"].tolist(), batch["weights"].tolist(), strict=True
    ):
        assert weight in (0, 1)
        if weight:
            assert at not in targets
            targets[at] = target
    found = []
    for b in range(size):
        row, count = batch["segments"][b], int(batch["segments"][b].max())
        starts = [int(np.flatnonzero(row == segment)[0]) for segment in range(1, count + 1)]
        ends = [*starts[1:], int(np.count_nonzero(row))]
        assert starts[:1] in ([], [0]) and (row[ends[-1] :] == 0).all() and (batch["ids"][b, ends[-1] :] == 0).all()
        for segment, (start, end) in enumerate(zip(starts, ends, strict=False), 1):
            assert (row[start:end] == segment).all()
            assert batch["positions"][b, start:end].tolist() == list(range(end - start))
            ids = tuple(batch["ids"][b, start:end].tolist())
            learned = [at - start + 1 for at in range(start, end) if b * length + at in targets]
            assert all(targets.pop(b * length + start + at - 1) == ids[at] for at in learned)  # IndexError past the end
            found.append((ids, tuple(learned)))
    assert not targets
    return found


def expected(examples: list[Example]) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    return Counter((tuple(each.ids.tolist()), tuple(np.flatnonzero(each.mask).tolist())) for each in examples)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 24), min_size=1, max_size=60),
    batch_size=st.integers(1, 5),
    length=st.integers(24, 50),
    seed=st.integers(0, 2**64 - 1),
    packed=st.booleans(),
    accumulate=st.integers(1, 3),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_every_document_once(
    lengths: list[int], batch_size: int, length: int, seed: int, packed: bool, accumulate: int, epoch: int
) -> None:
    examples = made(lengths)
    batches = Batches(examples, batch_size, length, seed, packed, accumulate)
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    weights = 0.0
    for step in range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch):
        batch = batches.batch(step)
        shape = (batch_size, length) if accumulate == 1 else (accumulate, batch_size, length)
        assert {batch[name].shape for name in ("ids", "segments", "positions")} == {shape}
        assert batch["at"].shape == batch["targets"].shape == batch["weights"].shape
        assert batch["at"].shape[-1] % -(-batch_size * length // 8) == 0 < batch["at"].shape[-1]
        assert all(array.dtype == (np.float32 if name == "weights" else np.int32) for name, array in batch.items())
        weights += float(batch["weights"].sum())
        micro = [batch] if accumulate == 1 else [{n: a[each] for n, a in batch.items()} for each in range(accumulate)]
        for each in micro:
            found.update(documents(each))
    assert found == expected(examples)
    assert weights == batches.num_learned == sum(int(each.mask.sum()) for each in examples)
    assert batches.num_tokens == sum(lengths)
    assert packed or batches.num_rows == len(examples)


def test_three_documents_by_hand() -> None:
    rows = [([2, 7, 8], [0, 1, 1]), ([2, 9, 9, 5], [0, 0, 0, 1])]
    examples = [Example(np.array(ids, np.int32), np.array(mask, np.bool_), 1) for ids, mask in rows]
    batch = Batches(examples, batch_size=1, length=8, seed=0).batch(0)
    assert {name: array.tolist() for name, array in batch.items()} == {
        "ids": [[2, 9, 9, 5, 2, 7, 8, 0]],
        "segments": [[1, 1, 1, 1, 2, 2, 2, 0]],
        "positions": [[0, 1, 2, 3, 0, 1, 2, 0]],
        "at": [2, 4, 5],
        "targets": [5, 7, 8],
        "weights": [1, 1, 1],
    }


def test_rows_are_as_few_as_a_best_fit_leaves() -> None:
    assert Batches(made([10, 6, 6, 4, 4, 10]), 1, 10, seed=3).num_rows == 4
    lengths = np.random.default_rng(1).integers(20, 400, 5000).tolist()
    batches = Batches(made(lengths), 8, 1024, seed=0)
    assert batches.num_tokens / (batches.num_rows * 1024) > 0.99


def test_epochs_and_seeds_differ_and_a_step_does_not() -> None:
    examples = made([5] * 64)
    batches, other = (Batches(examples, 4, 10, seed) for seed in (1, 2))
    first = batches.batch(0)["ids"]
    again = batches.batch(batches.steps_per_epoch)["ids"]
    assert not np.array_equal(first, again) and not np.array_equal(first, other.batch(0)["ids"])
    assert np.array_equal(first, batches.batch(0)["ids"])


def test_the_last_batch_of_an_epoch_is_filled_with_padding() -> None:
    batches = Batches(made([8, 8, 8]), 2, 8, seed=0, accumulate=2)
    batch = batches.batch(0)
    assert batches.steps_per_epoch == 1
    assert (batch["segments"][1, 1] == 0).all() and (batch["ids"][1, 1] == 0).all()
    assert int(batch["segments"].max(axis=-1).sum()) == 3


RESUMED = """
import hashlib, sys
import numpy as np
from gemmary.corpus.pack import Batches, Example
examples = [Example(np.arange(2, n + 2, dtype=np.int32), np.arange(n) > 0, n) for n in range(2, 40)]
batches = Batches(examples, 3, 40, seed=11, accumulate=2)
for step in map(int, sys.argv[1:]):
    batch = batches.batch(step)
print(hashlib.sha256(b"".join(array.tobytes() for array in batch.values())).hexdigest())
"""


@pytest.mark.parametrize("step", [0, 9, 1000])
def test_a_new_process_goes_on_with_the_same_batch(step: int) -> None:
    def last(*steps: int) -> str:
        command = [sys.executable, "-c", RESUMED, *map(str, steps)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert last(step) == last(*range(step + 1))


def test_the_order_is_the_same_for_good() -> None:
    examples = [Example(np.array([2, at], np.int32), np.array([False, True]), at) for at in range(10, 22)]
    batches = Batches(examples, 4, 2, seed=5)
    found = [batches.batch(step)["ids"][:, 1].tolist() for step in range(4)]
    assert found == [[17, 11, 12, 18], [21, 16, 20, 14], [10, 19, 13, 15], [11, 13, 18, 20]]


def test_settings_that_cannot_be_are_refused() -> None:
    good = made([3, 3])
    for arguments, message in (
        (([], 1, 8, 0), "expected examples of 1 to 8 tokens, got 0"),
        ((good, 1, 2, 0), "expected examples of 1 to 2 tokens, got 3"),
        ((good, 0, 8, 0), "expected a batch_size >= 1 and accumulate >= 1, got 0 and 1"),
        ((good, 1, 8, 0, True, 0), "expected a batch_size >= 1 and accumulate >= 1, got 1 and 0"),
        ((good, 1, 8, -1), "expected a seed from 0 to 2^64 - 1, got -1"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(message)}"):
            Batches(*arguments)
    with pytest.raises(InputError, match="expected a step >= 0, got -1"):
        Batches(good, 1, 8, 0).batch(-1)


def test_a_share_keeps_every_example_on_its_side_when_the_file_grows() -> None:
    examples = made([9] * 2000)
    kept, back = split(examples, 0.1, seed=3)
    assert len(kept) + len(back) == 2000 and 150 < len(back) < 250
    more_kept, more_back = split(examples + made([9] * 500, seed=1), 0.1, seed=3)
    assert more_kept[: len(kept)] == kept and more_back[: len(back)] == back
    assert split(examples[::-1], 0.1, seed=3)[1] == back[::-1]
    assert split(examples, 0.1, seed=4)[1] != back


def test_a_number_is_held_back_exactly() -> None:
    examples = made([9] * 300)
    kept, back = split(examples, 40, seed=3)
    assert (len(kept), len(back)) == (260, 40)
    more_back = split(examples + made([9] * 30, seed=1), 40, seed=3)[1]
    assert len({id(each) for each in back} & {id(each) for each in more_back}) >= 30


@pytest.mark.parametrize("held", [0, 3, 4, -1, 0.0, 1.5, 1e-9, 0.999999999])
def test_a_side_is_never_empty(held: float) -> None:
    with pytest.raises(InputError, match=r"expected examples to train on and examples to hold back, got .* of 3"):
        split(made([5, 5, 5]), held, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_gsm8k_is_packed_whole(packed: bool, shared_data: Path, gemma: Tokenizer) -> None:
    examples = load(shared_data / "benchmarks/gsm8k", gemma, length=512).examples
    batches = Batches(examples, 8, 512, seed=1, packed=packed)
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    sizes = set()
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        found.update(documents(batch))
        sizes.add(len(batch["at"]))
    assert found == expected(examples)
    assert sizes <= {512 * count for count in range(1, 9)}
    assert batches.num_rows < 3000 if packed else batches.num_rows == len(examples)
