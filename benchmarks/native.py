# SPDX-License-Identifier: Apache-2.0
"""The native engine beside llama.cpp and CTranslate2, on the same weights and threads: `gemmary bench`, and more.

    python benchmarks/native.py [gemma-2b | gemma-7b | MODEL.gguf] [--pairs 5] [--prefill 512] [--decode 64]
    python benchmarks/native.py --full-context

The embedded default meets both peers; with --full-context only its peak memory beside llama.cpp's is measured. A name
stands for a file of that model's sizes with random weights, which is made first; it and any other file meet llama.cpp.
The default and the names have sections in docs/numbers.md. Needs xllamacpp and ctranslate2, and for the 7B 16 GB of
free memory.
"""

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from peer_ctranslate2 import CTranslate2, write_int8
from record import record
from shaped import write_shaped

import gemmary
from gemmary.formats.checkpoint import open_checkpoint
from gemmary.formats.locate import embedded_default
from gemmary.generate.llama_cpp import LlamaCpp
from gemmary.generate.measure import Report, Row, Task, compare, usual_tasks
from gemmary.generate.native_engine import default_threads
from gemmary.generate.process import Opener, Ours, start

SECTIONS = {"": "native", "gemma-2b": "native 2b", "gemma-7b": "native 7b"}
LATE, FULL_CONTEXT = Task(prompt=512, reply=32), 32_768
WARM_UP = Task(prompt=16, reply=2, sequences=8)
Table = tuple[list[str], list[list[str]]]  # columns, rows
SCALES = {"tokens/s": ("tokens/s", 1.0, 1), "s": ("s", 1.0, 2), "bytes": ("MB", 1e-6, 0)}


def made(model: str, folder: Path) -> Path:
    """The file that a model's name means, written into the folder when it is one of random weights."""
    if not model:
        return embedded_default()
    if model not in SECTIONS:
        return Path(model)
    write_shaped(folder / f"{model}.gguf", gemmary.PRESETS[model], embedded_default())
    return folder / f"{model}.gguf"


def programs_of(path: Path, threads: int) -> dict[str, Opener]:
    return {
        "gemmary": partial(Ours, partial(gemmary.load, str(path), engine="native")),
        "llama.cpp": partial(LlamaCpp, path, num_threads=threads),
    }


def rows_of(report: Report) -> list[list[str]]:
    """The medians of each program for docs/numbers.md, and of the ratios to each peer."""
    rows, decode = [cells(row) for row in report.rows], report.rows[1]
    label = f"share of {decode.median_bandwidth / 1e9:.1f} GB/s in {decode.label}"
    return [*rows, [label, f"{report.share(decode, 'gemmary'):.0%}", *[""] * (len(rows[0]) - 2)]]


def cells(row: Row) -> list[str]:
    unit, scale, digits = SCALES[row.unit]
    medians = [f"{scale * row.median(name):.{digits}f}" for name in row.values]
    ours, *peers = row.values
    return [f"{row.label}, {unit}", *medians, *(f"{row.ratio(ours, peer):.2f}" for peer in peers)]


def columns_of(programs: dict[str, Opener]) -> list[str]:
    _, *peers = programs
    return [*programs, *(f"over {peer}" for peer in peers)]


def memory(path: Path, threads: int) -> Table:
    """Peak memory with room for a context and a prompt that fills it, so that every page of a cache is in use."""
    [prompt] = Task(prompt=FULL_CONTEXT - 1).prompts(seed=0, vocab_size=open_checkpoint(path).config.vocab_size)
    programs = programs_of(path, threads)
    peaks = [start(opener, max_length=FULL_CONTEXT, prompt=prompt).peak_bytes for opener in programs.values()]
    row = [f"{FULL_CONTEXT:,}", *(f"{peak / 1e6:.0f}" for peak in peaks), f"{peaks[0] / peaks[1]:.2f}"]
    return ["MB with a full context of", *columns_of(programs)], [row]


def speed(path: Path, threads: int, folder: Path, options: argparse.Namespace) -> Table:
    """What `gemmary bench` measures; of the default a reply after a long prompt, too."""
    config, programs = open_checkpoint(path).config, programs_of(path, threads)
    tasks = usual_tasks(prefill=options.prefill, decode=options.decode)
    if not options.model:
        write_int8(path, folder)
        programs["CTranslate2"] = partial(CTranslate2, folder, num_threads=threads)
    report = compare(
        programs,
        tasks if options.model else (*tasks, LATE),
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        pairs=options.pairs,
        num_threads=threads,
        tick=lambda: print(".", end="", file=sys.stderr, flush=True),
        warm_up=[WARM_UP],
    )
    return [f"{path.stem}, {threads} threads", *columns_of(programs)], rows_of(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--full-context", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # a child imports its program by name
    threads = default_threads()
    with tempfile.TemporaryDirectory(prefix="gemmary-") as folder:
        path = made(options.model, Path(folder))
        columns, rows = memory(path, threads) if options.full_context else speed(path, threads, Path(folder), options)
    if options.no_record or options.model not in SECTIONS:
        print(*("  ".join(row) for row in [columns, *rows]), sep="\n")
    else:
        section = "native memory" if options.full_context else SECTIONS[options.model]
        record(section, columns, rows, command=" ".join(["python benchmarks/native.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
