# SPDX-License-Identifier: Apache-2.0
"""Decoding with and without tokens looked up in the text so far: writes a section of docs/numbers.md.

    python benchmarks/speculation.py [MODEL.gguf] [--pairs 5] [--tokens 128] [--no-record]

Two native engines in one process, one that looks up and one that does not, are asked in turn for the same replies,
which must be equal. Each runs on one thread and processor time is counted, which other programs disturb least. Texts to
summarise and code to edit are the project's own; plain text is drawn, so that it repeats little, and shows what looking
up costs where it helps nothing.
"""

import argparse
import inspect
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import ROOT, record

from gemmary.formats.checkpoint import open_checkpoint
from gemmary.formats.locate import locate
from gemmary.generate import rings, sampling, scheduler
from gemmary.generate.batched import BatchedGenerator
from gemmary.generate.draft import Drafter, Lookup
from gemmary.generate.native_engine import NativeEngine
from gemmary.generate.request import Completion, Request, Sampling, Usage
from gemmary.text.tokenizer import Tokenizer

EDITS: tuple[tuple[Callable[..., Any], str, str], ...] = (
    (sampling.distribution, "logits", "scores"),
    (sampling._nucleus_edge, "weights", "masses"),
    (scheduler.Scheduler._start, "slot", "place"),
    (rings.Rings.keep, "length", "count"),
)
SUMMARIES = ("How the house is built", "**Ring caches", "**A pass reads", "**Words are cached")
PLAIN = (
    "Once upon a time there was a fisherman who",
    "The history of the city begins in",
    "Dear Anna,\nI have been thinking about",
    "Photosynthesis is the process by which",
)


def prompts() -> dict[str, list[str]]:
    """What is asked, by kind."""
    page = (ROOT / "docs" / "design.md").read_text("utf-8")
    return {
        "summarising": [summary(page[page.index(begin) :]) for begin in SUMMARIES],
        "editing code": [edit(*each) for each in EDITS],
        "plain text": list(PLAIN),
    }


def summary(text: str) -> str:
    return f"Text:\n{text[:1500]}\n\nThe most important sentences of the text, word for word:\n-"


def edit(function: Callable[..., Any], name: str, other: str) -> str:
    source = inspect.getsource(function)
    head = source.splitlines()[0].replace(name, other)
    return f"```python\n{source}```\n\nThe same function, with `{name}` renamed to `{other}`:\n\n```python\n{head}\n"


def requests(tokens: int) -> Iterator[tuple[str, Request]]:
    for kind, texts in prompts().items():
        for seed, text in enumerate(texts):
            drawn = Sampling(temperature=0.8 if kind == "plain text" else 0.0, seed=seed)
            yield kind, Request(text, max_tokens=tokens, sampling=drawn, ignore_stop_ids=True)


def generator(path: Path, drafter: Drafter | None) -> BatchedGenerator:
    checkpoint = open_checkpoint(path)
    assert checkpoint.vocabulary is not None
    engine = NativeEngine(checkpoint, max_length=2048, num_threads=1)
    return BatchedGenerator(engine, Tokenizer(checkpoint.vocabulary), drafter)


def timed(model: BatchedGenerator, request: Request) -> tuple[Completion, float]:
    began = time.process_time()
    [reply] = model.complete([request])
    return reply, time.process_time() - began


def measure(path: Path, tokens: int, pairs: int) -> list[list[object]]:
    """A row for each kind: median tokens per second of both, of the pairs' ratios, and what was accepted."""
    without, looking = generator(path, None), generator(path, Lookup())
    found: dict[str, list[tuple[float, float]]] = {}
    usages: dict[str, list[Usage]] = {}
    for kind, request in requests(tokens):
        for each in (without, looking):
            each.complete([replace(request, max_tokens=1)])  # leaves the prompt in the cache
        for _ in range(pairs):
            (plain, slow_seconds), (fast, fast_seconds) = timed(without, request), timed(looking, request)
            if plain.ids != fast.ids:
                raise SystemExit(f"expected the same reply with and without looking up, got another for {request}")
            found.setdefault(kind, []).append((tokens / slow_seconds, tokens / fast_seconds))
        usages.setdefault(kind, []).append(fast.usage)
        ratios = [f"{b / a:.2f}" for a, b in found[kind][-pairs:]]
        print(kind, ratios, fast.usage.accepted_tokens, fast.usage.drafted_tokens, file=sys.stderr, flush=True)
    rows: list[list[object]] = []
    for kind, speeds in found.items():
        plain_speed, fast_speed = (statistics.median(each) for each in zip(*speeds, strict=True))
        ratio = statistics.median(b / a for a, b in speeds)
        accepted, drafted = (
            sum(getattr(usage, name) for usage in usages[kind]) for name in ("accepted_tokens", "drafted_tokens")
        )
        share = f"{accepted} of {drafted} in {tokens * len(usages[kind])}"
        rows.append([kind, f"{plain_speed:.1f}", f"{fast_speed:.1f}", f"{ratio:.2f}", share])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    rows = measure(locate(options.model), options.tokens, options.pairs)
    columns = ["decode, tokens/s of processor time", "without", "with look-up", "ratio", "drafts accepted"]
    if options.no_record:
        print(*("  ".join(map(str, row)) for row in [columns, *rows]), sep="\n")
    else:
        record(
            "speculation",
            columns,
            rows,
            command=f"python benchmarks/speculation.py --pairs {options.pairs} --tokens {options.tokens}",
        )


if __name__ == "__main__":
    main()
