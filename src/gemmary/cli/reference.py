# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md, made from the app: python -m gemmary.cli.reference > docs/cli.md"""

import io
from contextlib import redirect_stdout, suppress

from typer import Typer

from gemmary.cli.main import app

HEAD = """\
# The command line

Results go to stdout, everything else to stderr. A mistake ends with one line that says what was expected, what came and
what to do, and with exit status 2; Ctrl-C ends with 130. [Generating text](guides/generating.md) shows the verbs at
work. This page is made by `python -m gemmary.cli.reference > docs/cli.md`.
"""


def reference() -> str:
    """The page: what every verb's --help says.

    >>> reference().count("## gemmary ")
    18
    """
    verbs = [[name] for name in _names(app)]
    for group in app.registered_groups:
        if group.name and group.typer_instance:
            verbs += [[group.name], *([group.name, name] for name in _names(group.typer_instance))]
    return "\n".join([HEAD, _help(), *(f"{'#' * (1 + len(v))} gemmary {' '.join(v)}\n\n{_help(*v)}" for v in verbs)])


def _names(commands: Typer) -> list[str]:
    return [info.callback.__name__.replace("_", "-") for info in commands.registered_commands if info.callback]


def _help(*verb: str) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        app([*verb, "--help"], prog_name="gemmary", terminal_width=100)
    lines = "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
    return f"```text\n{lines}\n```\n"


if __name__ == "__main__":
    print(reference(), end="")
