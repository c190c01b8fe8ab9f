# SPDX-License-Identifier: Apache-2.0
"""The docs tell the truth: python blocks run, console blocks print what they show, local links lead somewhere.

A file's python blocks share one namespace and run in one process, in an empty folder. In a console block each `$`
line runs in a shell and what follows is its output, where `...` stands for any text. Blocks that are not to run
(installing, serving) are marked `sh` or `text`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Command(NamedTuple):
    """One `$` line of a console block, and what the page says it prints."""

    line: str
    shown: str


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text("utf-8")) if kind == language]


def commands(page: Path) -> list[Command]:
    """The page's `$ gemmary ...` lines; other programs are not ours to test."""
    parts = (part for block in blocks(page, "console") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:])
    split = (Command(*part.partition("\n")[::2]) for part in parts)
    return [command for command in split if command.line.startswith("gemmary ")]


def matches(shown: str, printed: str) -> bool:
    """Whether the page's output, with `...` for any text, is what was printed; space at line ends is no difference."""
    tidy = [re.sub(r"\s+$", "", text, flags=re.MULTILINE) for text in (shown, printed)]
    pattern = ".*?".join(re.escape(piece) for piece in tidy[0].split("..."))
    return re.fullmatch(pattern, tidy[1], re.DOTALL) is not None


def run(command: list[str] | str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "100"}
    options = {"cwd": folder, "env": environment, "shell": isinstance(command, str), "timeout": 300}
    return subprocess.run(command, capture_output=True, text=True, **options)


def ids(values: list[tuple[Path, Command]] | list[Path]) -> list[str]:
    pages = [value if isinstance(value, Path) else value[0] for value in values]
    return [page.relative_to(ROOT).as_posix() for page in pages]


CODE_PAGES = [page for page in PAGES if blocks(page, "python")]
CONSOLE_LINES = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", CODE_PAGES, ids=ids(CODE_PAGES))
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    done = run([sys.executable, "-c", "\n".join(blocks(page, "python"))], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), CONSOLE_LINES, ids=ids(CONSOLE_LINES))
def test_console_lines_print_what_is_shown(page: Path, command: Command, tmp_path: Path) -> None:
    done = run(command.line, tmp_path)
    assert matches(command.shown, done.stdout), (
        f"$ {command.line}\n{done.stdout}{done.stderr}\nexpected:\n{command.shown}"
    )


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_local_links_lead_somewhere(page: Path) -> None:
    links = [link.partition("#")[0] for link in LINK.findall(page.read_text("utf-8")) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_an_ellipsis_stands_for_any_text_and_nothing_else_does() -> None:
    assert matches("a ... d\n", "a b\nc d\n")
    assert not matches("a ... d\n", "a b c\n")
    assert matches("1.5\n", "1.5  \n")
    assert not matches("1.5\n", "1x5\n")
