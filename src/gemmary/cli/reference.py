# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md, made from the app: python -m gemmary.cli.reference > docs/cli.md"""

import io
from contextlib import redirect_stdout, suppress

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
    8
    """
    names = [info.callback.__name__ for info in app.registered_commands if info.callback]
    return "\n".join([HEAD, _help(), *(f"## gemmary {name}\n\n{_help(name)}" for name in names)])


def _help(*verb: str) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        app([*verb, "--help"], prog_name="gemmary", terminal_width=100)
    lines = "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
    return f"```text\n{lines}\n```\n"


if __name__ == "__main__":
    print(reference(), end="")
