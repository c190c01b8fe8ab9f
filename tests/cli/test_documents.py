# SPDX-License-Identifier: Apache-2.0
"""gemmary documents adds, lists, searches and removes; what is wrong is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]
TEA = "# Tea\n\n## Green\n\nGreen tea is brewed at 80 degrees.\n\n## Black\n\nBlack tea takes boiling water.\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a document and a picture, and a data folder of its own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "tea.md").write_text(TEA, "utf-8")
    (folder / "photo.png").write_bytes(b"\x89PNG")
    return folder


def test_documents_are_added_listed_found_and_removed(command: Command, folder: Path) -> None:
    name = (folder / "tea.md").as_posix()
    status, out, err = command("documents", "add", str(folder))
    assert (status, out) == (0, f"       2  {name}\n1 document, 1 left out\n")
    assert err.startswith(f"left out {folder / 'photo.png'}: expected a name in .txt") and err.count("\n") == 1
    assert command("documents", "list") == (0, f"       2   94 bytes  markdown  {name}\n1 document\n", "")
    status, out, err = command("documents", "search", "How hot is the water for black tea?", "--limit", "1")
    assert (status, err) == (0, "")
    assert out == "[1] tea.md, lines 7-9 > Tea > Black\n\n## Black\n\nBlack tea takes boiling water.\n\n"
    assert command("documents", "remove", "tea.md") == (0, f"removed {name}\n", "")
    assert command("documents", "list") == (0, "0 documents\n", "")
    assert (folder / "tea.md").read_text("utf-8") == TEA


def test_nothing_found_is_said_on_stderr(command: Command, folder: Path) -> None:
    command("documents", "add", str(folder / "tea.md"))
    said = "no passage covers the question: the documents hold no answer\n"
    assert command("documents", "search", "Who wrote Hamlet?") == (0, "", said)
    assert json.loads(command("documents", "search", "Who wrote Hamlet?", "--json")[1]) == {"found": []}


def test_json_has_all_that_is_known(command: Command, folder: Path) -> None:
    added = json.loads(command("documents", "add", str(folder), "--json")[1])
    assert [each["kind"] for each in added["documents"]] == ["markdown"] and len(added["refused"]) == 1
    assert json.loads(command("documents", "list", "--json")[1]) == {"documents": added["documents"]}
    first = json.loads(command("documents", "search", "black tea", "--json")[1])["found"][0]
    assert (first["source"], first["first_line"], first["headings"]) == ("tea.md, lines 7-9", 7, ["Tea", "Black"])
    assert first["sha256"] == added["documents"][0]["sha256"] and first["score"] > 0


def test_another_library_is_another_file(command: Command, folder: Path, tmp_path: Path) -> None:
    there = ("--library", str(tmp_path / "other.db"))
    command("documents", "add", str(folder / "tea.md"), *there)
    assert command("documents", "list")[1] == "0 documents\n"
    assert command("documents", "list", *there)[1].endswith("1 document\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "nowhere.md"), "expected a file or a folder, got none at nowhere.md: check the path"),
        (("remove", "tea.md"), "expected the name of one document, got 'tea.md', of none: list them"),
        (("list", "--library", "/dev/null/x.db"), "expected a file of documents at /dev/null/x.db, but: "),
        (("search", "a\udcff"), "expected valid Unicode text, got a lone surrogate U+DCFF at character 1"),
    ],
)
def test_what_is_wrong_is_one_line(command: Command, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = command("documents", *arguments)
    assert (status, out) == (2, "") and err.startswith(f"gemmary: {message}") and err.count("\n") == 1
