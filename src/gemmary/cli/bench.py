# SPDX-License-Identifier: Apache-2.0
"""gemmary bench: how fast a model runs on this machine, beside llama.cpp."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmary.cli import options
from gemmary.cli.progress import Progress

if TYPE_CHECKING:
    from gemmary.generate.measure import Report
    from gemmary.generate.process import Opener


def bench(
    model: options.Model = None,
    engine: options.Engine = "auto",
    backend: options.KerasBackend = None,
    dtype: options.Precision = "float32",
    prefill: Annotated[int, typer.Option(metavar="N", help="Tokens of the prompt that is timed.")] = 512,
    decode: Annotated[int, typer.Option(metavar="N", help="Tokens of the reply that is timed.")] = 64,
    batch: Annotated[int, typer.Option(metavar="N", help="Sequences that are decoded at once.")] = 8,
    pairs: Annotated[int, typer.Option(metavar="N", help="Rounds; their medians are shown.")] = 5,
    as_json: options.AsJson = False,
) -> None:
    """Measure how fast a model runs on this machine.

    Times the prompt, the reply, replies at once and a fresh process until its first token, with its memory; measures
    how fast memory is read, and which share of that a reply reaches. Where xllamacpp is installed and the model is a
    GGUF file, llama.cpp is measured beside it, in turn. All cores that the process may use compute.

    >>> bench(decode=1)
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected decode >= 2, got 1: leave it out for what is usual
    """
    from gemmary.api import load, runtime
    from gemmary.formats.checkpoint import open_checkpoint
    from gemmary.formats.locate import DEFAULT, locate
    from gemmary.generate.llama_cpp import LlamaCpp, why_not
    from gemmary.generate.measure import compare, num_steps, usual_tasks
    from gemmary.generate.native_engine import default_threads
    from gemmary.generate.process import Ours

    tasks = usual_tasks(prefill=prefill, decode=decode, batch=batch)
    chosen, path, threads = runtime(engine, backend), locate(model), default_threads()
    config = open_checkpoint(path).config
    ours = partial(load, str(path), engine=engine, backend=backend, dtype=dtype)
    programs: dict[str, Opener] = {OURS: partial(Ours, ours)}
    if reason := why_not(path):
        options.note(f"without llama.cpp: {reason}")
    else:
        programs[PEER] = partial(LlamaCpp, path, num_threads=threads)
    steps = num_steps(programs=len(programs), tasks=len(tasks), pairs=pairs)
    progress = Progress(max(1, steps), unit="measurements", scale=1)
    report = compare(
        programs,
        tasks,
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        pairs=pairs,
        num_threads=threads,
        tick=partial(progress.add, 1),
    )
    progress.clear()
    ran = {"model": model or DEFAULT, "engine": chosen.engine, "backend": chosen.backend, "threads": threads}
    if as_json:
        options.print_json(ran | {"pairs": pairs} | _found(report))
    else:
        print("\n".join(_lines(ran, report)))


def _found(report: "Report") -> dict[str, Any]:
    """What was found, for machines: medians, their ratio, and every value."""
    rows = [
        {
            "measure": row.label,
            "unit": row.unit,
            "medians": {program: row.median(program) for program in row.values},
            "ratio": row.ratio(OURS, PEER) if PEER in row.values else None,
            "values": row.values,
            "bandwidth": row.bandwidth,
        }
        for row in report.rows
    ]
    decode = report.rows[1]
    return {
        "measures": rows,
        "bandwidth": {"median": decode.median_bandwidth, "unit": "bytes/s"},
        "weight_bytes": report.weight_bytes[OURS],
        "bandwidth_share": report.share(decode, OURS),
    }


def _lines(ran: dict[str, Any], report: "Report") -> Iterator[str]:
    """What was found, for people."""
    backend = f" on {ran['backend']}" if ran["backend"] else ""
    yield f"{ran['model']}, {ran['engine']} engine{backend}, {ran['threads']} threads"
    has_peer = PEER in report.rows[0].values
    yield f"{'':<34}{OURS:>11}" + (f"{PEER:>11}{'ratio':>8}" if has_peer else "")
    for row in report.rows:
        shown = "".join(f"{_SHOWN[row.unit](row.median(program)):>11}" for program in row.values)
        unit = "" if row.unit == "bytes" else f", {row.unit}"
        yield f"{row.label + unit:<34}{shown}" + (f"{row.ratio(OURS, PEER):>8.2f}" if has_peer else "")
    decode = report.rows[1]
    read, share = report.weight_bytes[OURS], report.share(decode, OURS)
    yield f"memory is read at {decode.median_bandwidth / 1e9:.1f} GB/s by {ran['threads']} threads"
    if read and share:
        yield f"a token reads {options.size(read)} of weights: {decode.label} reaches {share:.0%} of that"


OURS, PEER = "gemmary", "llama.cpp"
_SHOWN: dict[str, Callable[[float], str]] = {
    "tokens/s": lambda rate: f"{rate:,.1f}",
    "s": lambda seconds: f"{seconds:.2f}",
    "bytes": options.size,
}
