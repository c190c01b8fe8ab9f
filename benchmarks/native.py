# SPDX-License-Identifier: Apache-2.0
"""The native engine beside llama.cpp, on the same file and threads: what `gemmary bench` measures, and more.

    python benchmarks/native.py [MODEL.gguf] [--pairs 5] [--context 32768] [--no-record]

Beyond the usual tasks: a reply after a long prompt, and the peak memory with a context that is full. Writes two
sections of docs/numbers.md. Needs xllamacpp.
"""

import argparse
from functools import partial
from pathlib import Path

from record import record

import gemmary
from gemmary.formats.checkpoint import open_checkpoint
from gemmary.formats.locate import embedded_default
from gemmary.generate.llama_cpp import LlamaCpp
from gemmary.generate.measure import Report, Task, compare, usual_tasks
from gemmary.generate.native_engine import default_threads
from gemmary.generate.process import Opener, Ours, start

LATE = Task(prompt=512, reply=32)


def rows_of(report: Report) -> list[list[str]]:
    """The report's medians for docs/numbers.md."""
    scales = {"tokens/s": ("tokens/s", 1.0, 1), "s": ("s", 1.0, 2), "bytes": ("MB", 1e-6, 0)}
    rows = []
    for row in report.rows:
        unit, scale, digits = scales[row.unit]
        medians = [f"{scale * row.median(name):.{digits}f}" for name in row.values]
        label = f"{row.label} after {LATE.prompt}" if row.label == LATE.label else row.label
        rows.append([f"{label}, {unit}", *medians, f"{row.ratio('gemmary', 'llama.cpp'):.2f}"])
    decode, bandwidth = report.rows[1], f"{report.median_bandwidth / 1e9:.1f} GB/s"
    rows.append([f"share of {bandwidth} in {decode.label}", f"{report.share(decode, 'gemmary'):.0%}", "", ""])
    return rows


def memory(programs: dict[str, Opener], context: int, vocab_size: int) -> list[list[str]]:
    """Peak memory with room for a context and a prompt that fills it, so that every page of a cache is in use."""
    [prompt] = Task(prompt=context - 1).prompts(seed=0, vocab_size=vocab_size)
    peaks = [start(opener, max_length=context, prompt=prompt).peak_bytes for opener in programs.values()]
    return [[f"{context:,}", *(f"{peak / 1e6:.0f}" for peak in peaks), f"{peaks[0] / peaks[1]:.2f}"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--context", type=int, default=32_768)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    path, threads = options.model or embedded_default(), default_threads()
    config = open_checkpoint(path).config
    programs: dict[str, Opener] = {
        "gemmary": partial(Ours, partial(gemmary.load, str(path), engine="native")),
        "llama.cpp": partial(LlamaCpp, path, num_threads=threads),
    }
    sizes = {"vocab_size": config.vocab_size, "max_length": config.max_length}
    tasks = (*usual_tasks(), LATE)
    report = compare(programs, tasks, **sizes, pairs=options.pairs, num_threads=threads, tick=lambda: None)
    context = min(options.context, config.max_length)
    tables = {
        "native": ([f"{path.stem}, {threads} threads", *programs, "ratio"], rows_of(report)),
        "native memory": (
            ["MB with a full context of", *programs, "ratio"],
            memory(programs, context, config.vocab_size),
        ),
    }
    for section, (columns, rows) in tables.items():
        if options.no_record:
            print(*("  ".join(row) for row in [columns, *rows]), sep="\n")
        else:
            record(section, columns, rows, command=f"python benchmarks/native.py --pairs {options.pairs}")


if __name__ == "__main__":
    main()
