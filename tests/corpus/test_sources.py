# SPDX-License-Identifier: Apache-2.0
"""Documents by source: folders and files of rows are read, and what cannot be is named."""

from pathlib import Path

import pytest

from gemmary.base.errors import FileError
from gemmary.corpus.sources import read_sources


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def test_sources_are_folders_and_files_of_documents(tmp_path: Path) -> None:
    files = {
        "code/b.py": "print()\n",
        "code/a/deep.rst": "Deep\n====\n",
        "code/a/notes.txt": "One.<|endoftext|>Two.",
        "code/logo.svg": "<svg/>",
        "code/.venv/lib.py": "pass",
        "v1.0/notes.md": "\ufeff# Notes",
        "web.jsonl": '{"text": "one\\ntwo", "id": 1}\n\n{"text": ""}\n',
        "books.txt": "First.\n\nStill first.\n<|endoftext|>\n  Second.\n<|endoftext|>\n",
        ".hidden.txt": "no",
        "README.md": "no",
    }
    assert read_sources(written(tmp_path, files)) == {
        "books": ["First.\n\nStill first.", "Second."],
        "code": ["Deep\n====\n", "One.", "Two.", "print()\n"],
        "v1.0": ["# Notes"],
        "web": ["one\ntwo", ""],
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "expected folders or files of rows in"),
        ({"notes.md": "x"}, "expected folders or files of rows in"),
        ({"code/logo.svg": "x"}, "expected documents in"),
        ({"web.jsonl": "\n"}, "expected documents in"),
        ({"a.txt": " <|endoftext|> "}, "expected documents in"),
        ({"a.txt": "x", "a.jsonl": '{"text": "x"}'}, "expected one folder or file for each source, got two for a"),
        ({"a.jsonl": '{"text": "x"}\n{"text"}\n'}, r"expected JSON, got something else: .*a.jsonl, line 2\)$"),
        ({"a.jsonl": '{"body": "x"}'}, r'expected a row with a string in "text", got none: .*\(a.jsonl, line 1\)'),
        ({"a.jsonl": '{"text": 5}'}, 'expected a row with a string in "text", got none'),
        ({"a.jsonl": "[1]"}, "expected an object with named fields, got list"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(FileError, match=message):
        read_sources(written(tmp_path, files))


def test_what_is_no_folder_or_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected a folder of sources, got none at"):
        read_sources(tmp_path / "nowhere")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(FileError, match=r"^expected UTF-8 text, got the byte 0xE9 at offset 3: .*latin\.txt"):
        read_sources(tmp_path)
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(FileError, match=r"^expected a readable file, got .*a\.txt: "):
        read_sources(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "latin.py").write_bytes(b"caf\xe9")
    with pytest.raises(FileError, match=r"^expected a readable text, got .*latin\.py: expected UTF-8"):
        read_sources(tmp_path)
