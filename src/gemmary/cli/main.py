# SPDX-License-Identifier: Apache-2.0
"""The command `gemmary`: its verbs, and how errors end it.

what came                              what is seen                         exit status
an error of ours, or of the usage      one line (and the usage) on stderr   2
Ctrl-C                                 nothing                              130
a reader that went away (| head)       nothing                              1
anything else is a bug                 a traceback                          1
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from gemmary.base.errors import GemmaryError
from gemmary.cli.bench import bench
from gemmary.cli.chat import chat
from gemmary.cli.convert import convert
from gemmary.cli.documents import documents, documents_app
from gemmary.cli.evaluate import compare, evaluate, evaluate_app
from gemmary.cli.generate import generate
from gemmary.cli.inspect import inspect
from gemmary.cli.memorization import memorization
from gemmary.cli.quantize import quantize
from gemmary.cli.serve import serve
from gemmary.cli.side_by_side import side_by_side
from gemmary.cli.tokenize import tokenize
from gemmary.cli.tune import tune

app = typer.Typer(
    name="gemmary",
    help="Run, serve, tune, read, convert and measure Gemma models.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)
for verb in (generate, chat, serve, tokenize, inspect, convert, quantize, tune, bench):
    app.command(help=(verb.__doc__ or "").partition(">>>")[0])(verb)
for part in (compare, memorization, side_by_side):
    evaluate_app.command(help=(part.__doc__ or "").partition(">>>")[0])(part)
app.add_typer(evaluate_app, name="evaluate", help=(evaluate.__doc__ or "").partition(">>>")[0])
app.add_typer(documents_app, name="documents", help=(documents.__doc__ or "").partition(">>>")[0])


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        print(f"gemmary {version('gemmary')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Do what a command line says and give its exit status.

    >>> run(["tokenize", "--ids", "one"])  # says why not, on stderr
    2
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        app(list(arguments), prog_name="gemmary")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except GemmaryError as error:
        print(f"gemmary: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def main() -> NoReturn:
    """The entry point of the command `gemmary`; never returns.

    >>> main.__name__
    'main'
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow says at length that it finds no GPU
    sys.exit(run(sys.argv[1:]))
