# SPDX-License-Identifier: Apache-2.0
"""gemmary evaluate side-by-side: two systems' replies, judged by a third."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemmary.base.errors import FileError, InputError
from gemmary.cli import options
from gemmary.cli.progress import Progress

if TYPE_CHECKING:
    from gemmary.evaluate.judge import Judge
    from gemmary.evaluate.side_by_side import SideBySide


def side_by_side(
    first: Annotated[Path, typer.Argument(metavar="A", help="Rows with prompt and response: one system's replies.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The other's, on the same prompts in the same order.")],
    judge: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model that judges: ours, or the server's at --judge-url.")
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server, ending in /v1; key: OPENAI_API_KEY.")
    ] = None,
    both_orders: Annotated[
        bool, typer.Option("--both-orders", help="Judge each pair in both orders; where they differ, it is a tie.")
    ] = False,
    seed: options.Seed = 0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the pages go: .html, and .json for LLM Comparator.")
    ] = (Path("evaluation")),
    engine: options.Engine = "auto",
    backend: options.KerasBackend = None,
) -> None:
    """Let a model judge two systems' replies side by side, in shuffled order.

    Prints how often A won, tied and lost, and the win rate with its 95% interval, ties split evenly. A verdict that
    cannot be read is counted and never guessed.

    >>> side_by_side(Path("no-such.jsonl"), Path("nor-this.jsonl"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a file ...
    """
    from gemmary.evaluate.side_by_side import compare
    from gemmary.evaluate.side_by_side_report import write_comparator, write_html

    prompts, replies = _replies(first)
    others, theirs = _replies(second)
    if prompts != others:
        raise InputError(f"expected the same prompts in {first} and {second}, got others: give replies to one list")
    progress = Progress(len(prompts), unit="pairs", scale=1)
    asked = _judge(judge, judge_url, engine=engine, backend=backend)
    result = compare(prompts, replies, theirs, asked, seed=seed, both_orders=both_orders, tick=progress.add)
    names = (first.stem, second.stem) if first.stem != second.stem else (str(first), str(second))
    write_comparator(result, out / "side-by-side.json", names)
    write_html(result, out / "side-by-side.html", names)
    progress.finish(f"{out / 'side-by-side.html'}: {len(prompts)} pairs")
    print(_told(result))


def _replies(path: Path) -> tuple[list[str], list[str]]:
    from gemmary.corpus.rows import files, rows

    found = [row for file in files(path) for row in rows(file)]
    wrong = next((row for row in found if not all(isinstance(row.values.get(k), str) for k in _FIELDS)), None)
    if wrong is not None:
        raise FileError(f"expected a prompt and a response, both texts, in {wrong.place}, got none: add them")
    prompts, replies = ([str(row.values[field]) for row in found] for field in _FIELDS)
    return prompts, replies


def _judge(name: str | None, url: str | None, *, engine: options.Engine, backend: options.KerasBackend) -> "Judge":
    from gemmary.api import load
    from gemmary.evaluate.endpoint import Endpoint
    from gemmary.evaluate.judge import generator_judge

    if url is None:
        return generator_judge(load(name, engine=engine, backend=backend))
    if name is None:
        raise InputError("expected the name of the server's model with --judge-url, got none: add --judge NAME")
    return Endpoint(url=url, model=name).chat


def _told(result: "SideBySide") -> str:
    counts = {verdict: result.count(verdict) for verdict in ("win", "tie", "loss", "unreadable")}
    said = f"A won {counts['win']}, tied {counts['tie']}, lost {counts['loss']}, {counts['unreadable']} unreadable"
    if result.win_rate is None:
        return said
    low, high = result.interval
    return f"{said}: win rate {100 * result.win_rate:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


_FIELDS = ("prompt", "response")
