# SPDX-License-Identifier: Apache-2.0
"""gemmary evaluate: the benchmarks of the report, and two results compared."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmary.base.errors import FileError, InputError, MissingExtraError
from gemmary.cli import options
from gemmary.cli.progress import Progress

if TYPE_CHECKING:
    from gemmary.evaluate.tasks import Benchmark

evaluate_app = typer.Typer(invoke_without_command=True)


@evaluate_app.callback()
def evaluate(
    context: typer.Context,
    tasks: Annotated[
        str,
        typer.Option("--tasks", "-t", metavar="NAMES", help="report, leaderboard, safety, card, or benchmarks: a,b,c."),
    ] = "report",
    model: options.Model = None,
    adapter: options.Adapter = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="The most items of a benchmark, spread over its parts, one of each at least."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with the data; by default the Hugging Face hub.")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where results go, and the replies that a second run goes on from.")
    ] = Path("evaluation"),
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run the programs that the model writes, in a sandbox.")
    ] = False,
    engine: options.Engine = "auto",
    backend: options.KerasBackend = None,
    dtype: options.Precision = "float32",
    max_length: options.MaxLength = None,
    slots: Annotated[int | None, typer.Option(metavar="N", min=1, help="How many requests run at once.")] = None,
    lm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A model type of lm-eval in place of ours: hf, local-completions."),
    ] = None,
    lm_args: Annotated[
        str, typer.Option(metavar="TEXT", help="Its arguments, such as pretrained=meta-llama/Llama-2-7b-hf.")
    ] = "",
) -> None:
    """Measure a model on benchmarks, asked as lm-eval asks them.

    Prints a table with 95% intervals beside the published figures, and writes results.json, results.md and results.png.
    What was answered is kept in the folder: stopped with Ctrl-C or killed, the same command goes on from there.

    >>> evaluate.__name__  # it is typer that calls it
    'evaluate'
    """
    if context.invoked_subcommand is not None:
        return
    os.environ.setdefault("TQDM_DISABLE", "1")  # the progress that is shown is ours
    from gemmary.evaluate.tasks import chosen

    wanted = chosen(tasks.replace(",", " ").split())
    if find_spec("lm_eval") is None:
        raise MissingExtraError.of("gemmary evaluate", "lm-eval", "evaluate")
    if (lm is None and lm_args) or (lm is not None and (model or adapter)):
        raise InputError("expected --lm-args with --lm, and no --model or --adapter with it: leave one out")
    if lm is None:
        how = {"engine": engine, "backend": backend, "dtype": dtype, "max_length": max_length, "num_slots": slots}
        asked, about = _ours(model, adapter, how, out)
    else:
        asked, about = _theirs(lm, lm_args)
    _measure(wanted, asked, {"model": about, **_circumstances(limit, data)}, out=out, run_code=run_code)


def _measure(
    wanted: "Mapping[str, Benchmark]", asked: Any, about: dict[str, Any], *, out: Path, run_code: bool
) -> None:
    from gemmary.evaluate.harness import run
    from gemmary.evaluate.report import table, write_results
    from gemmary.evaluate.sandbox import isolation

    results = {**about, "benchmarks": dict[str, Any](), "not_run": dict[str, str]()}
    data, missing = Path(about["data"]) if about["data"] else None, list[FileError]()
    if run_code and any(benchmark.runs_code for benchmark in wanted.values()):
        options.note(f"programs run behind: {', '.join(isolation())}")
    for name, benchmark in wanted.items():
        if not benchmark.tasks:
            results["not_run"][name] = benchmark.protocol
        elif benchmark.runs_code and not run_code:
            results["not_run"][name] = "it runs programs that the model writes: ask for that with --run-code"
        else:
            try:
                measured = run(benchmark, asked, limit=about["limit"], data=data)
            except FileError as error:
                missing.append(error)
                results["not_run"][name] = str(error)
                continue
            low, high = (f"{100 * end:.1f}" for end in measured.interval)
            count, seconds = len(measured.values), measured.seconds
            options.note(f"{name}: {100 * measured.mean:.1f} ({low} to {high}), {count} items in {seconds:.0f} s")
            results["benchmarks"][name] = measured.to_dict()
        write_results(results, out)
    if missing and not results["benchmarks"]:
        raise missing[0]
    write_results(results, out)
    print(table(results), end="")


def _ours(name: str | None, adapter: str | None, how: dict[str, Any], out: Path) -> tuple[Any, dict[str, Any]]:
    """Our model, what was answered by it before, and what to say of it."""
    from gemmary.api import load, runtime
    from gemmary.evaluate.harness import GeneratorLM
    from gemmary.evaluate.replies import Replies
    from gemmary.formats.locate import DEFAULT, locate, locate_adapter

    digests = [_digest(locate(name)), *([_digest(locate_adapter(adapter))] if adapter else [])]
    chosen = runtime(how["engine"], how["backend"])
    about = {
        "name": (name or DEFAULT) + (f" + {adapter}" if adapter else ""),
        "sha256": digests,
        "engine": chosen.engine,
        "backend": chosen.backend,
        "dtype": how["dtype"],
        "max_length": how["max_length"],
    }
    makers = {each: version(each) for each in ("gemmary", chosen.backend) if each}
    key = hashlib.sha256(json.dumps(about | {"name": makers}).encode()).hexdigest()[:16]
    replies = Replies(out / f"replies-{key}.db")
    return GeneratorLM(load(name, adapter=adapter, **how), replies, _Ticker()), about


def _theirs(kind: str, arguments: str) -> tuple[Any, dict[str, Any]]:
    """A model of lm-eval's own, and what to say of it."""
    from lm_eval.api.registry import MODEL_REGISTRY, get_model

    try:
        made = get_model(kind).create_from_arg_string(arguments, {"batch_size": 1})
    except (ImportError, KeyError, ValueError, TypeError, OSError) as error:
        known = ", ".join(sorted(MODEL_REGISTRY))
        raise InputError(
            f"expected a model type of lm-eval that can be made, of {known}; got {kind}: {error}"
        ) from None
    named = [part.partition("=")[2] for part in arguments.split(",") if part.startswith(("pretrained=", "model="))]
    return made, {"name": named[0] if named else kind, "engine": f"lm-eval {kind}"}  # other arguments may be secrets


class _Ticker:
    """A line of progress for each kind of request."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        if self._progress is None:
            self._progress, self._done = Progress(total, unit="requests", scale=1), done
        self._progress.add(done - self._done)
        self._done = done
        if done == total:
            self._progress.clear()
            self._progress = None


def _digest(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's files and their names."""
    if path.is_file():
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        digest.update(f"{file.relative_to(path)} {_digest(file)}\n".encode())
    return digest.hexdigest()


def _circumstances(limit: int | None, data: Path | None) -> dict[str, Any]:
    return {
        "limit": limit,
        "data": str(data) if data else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "versions": {name: version(name) for name in ("gemmary", "lm-eval", "numpy")},
    }


def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="The --out folder of one evaluation, or its results.json.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="That of another on the same tasks.")],
    as_json: options.AsJson = False,
) -> None:
    """Compare two results item by item: A's less B's, with 95% intervals and an exact sign test.

    >>> compare(Path("no-such-folder"), Path("nor-this"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected the results of gemmary evaluate in no-such-folder, got no such file: ...
    """
    from gemmary.evaluate.report import compare as differences
    from gemmary.evaluate.report import read_results

    found = differences(read_results(first), read_results(second))
    if as_json:
        options.print_json({"differences": [{**vars(each), "interval": each.interval} for each in found]})
        return
    print("| benchmark | items | A - B, points | 95% interval | p |\n| --- | --: | --: | --: | --: |")
    for each in found:
        low, high = (f"{100 * end:+.1f}" for end in each.interval)
        print(f"| {each.title} | {each.num_items} | {100 * each.mean:+.1f} | {low} to {high} | {each.p_value:.3g} |")
