# SPDX-License-Identifier: Apache-2.0
"""The head in two stages beside the whole head: the same most probable tokens, and the time of a token.

    python benchmarks/two_stages.py TEXT [--tokens 20480] [--pairs 5]

After every token of a text the native engine gives both, in turn: all logits, and those of the tokens that the first
stage leaves possible. Times are of single tokens, one after the other. Writes a section of docs/numbers.md.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from record import record

from gemmary.api import load_tokenizer
from gemmary.formats.checkpoint import open_checkpoint
from gemmary.formats.locate import embedded_default
from gemmary.generate.generator import Chunk
from gemmary.generate.native_engine import NativeEngine, default_threads

WINDOW, STEP, TIMED = 510, 3, 64  # more rows than 3 in a pass read the whole head


def compare(engine: NativeEngine, ids: Sequence[int]) -> tuple[int, int, list[int]]:
    """How many tokens were compared, how many differ, and how many were left possible after each."""
    count, differing, possible = 0, 0, []
    for first in range(0, len(ids), STEP):
        chunk = Chunk(slot=0, start=first % WINDOW, ids=tuple(ids[first : first + STEP]), num_logits=STEP)
        whole, staged = engine.logits([chunk]), engine.candidates([chunk])
        known = np.isfinite(staged)
        assert np.array_equal(whole[known], staged[known])
        differing += int((whole.argmax(axis=1) != staged.argmax(axis=1)).sum())
        possible += known.sum(axis=1).tolist()
        count += STEP
    return count, differing, possible


def seconds(engine: NativeEngine, ids: Sequence[int], *, is_whole: bool) -> float:
    """The time of a pass over some tokens, one after the other, per token."""
    run = engine.logits if is_whole else engine.candidates
    began = time.perf_counter()
    for place, token in enumerate(ids):
        run([Chunk(slot=0, start=place, ids=(token,))])
    return (time.perf_counter() - began) / len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=20_480)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    path = embedded_default()
    engine = NativeEngine(open_checkpoint(path), max_length=WINDOW)
    ids = load_tokenizer(str(path)).prompt(options.text.read_text())[: options.tokens // STEP * STEP]
    count, differing, possible = compare(engine, ids)
    pairs = [
        [seconds(engine, ids[first : first + TIMED], is_whole=is_whole) for is_whole in (True, False)]
        for first in range(0, TIMED * options.pairs, TIMED)
    ]
    whole, staged = (1e3 * statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(whole / staged for whole, staged in pairs)
    rows = [
        ["tokens that differ", f"{differing} of {count:,}"],
        ["tokens left possible, median", f"{statistics.median(possible):,.0f}"],
        ["tokens left possible, mean", f"{statistics.mean(possible):,.0f}"],
        ["a token with the whole head, ms", f"{whole:.2f}"],
        ["a token with two stages, ms", f"{staged:.2f}"],
        ["ratio", f"{ratio:.2f}"],
    ]
    command = f"python benchmarks/two_stages.py {options.text.name} --pairs {options.pairs}"
    record("two stages", [f"gemma-3-270m-q4_k_m, {default_threads()} threads", ""], rows, command=command)


if __name__ == "__main__":
    main()
