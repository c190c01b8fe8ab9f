# SPDX-License-Identifier: Apache-2.0
"""Documents by source, such as code, wiki and web: a folder with a folder or a file of rows for each."""

from collections.abc import Iterator
from pathlib import Path

from gemmary.base.errors import FileError, InputError
from gemmary.corpus.rows import has_rows, rows
from gemmary.text.tokenizer import decode_utf8

_WHOLE = (".md", ".py", ".rst")  # files that are a document each


def read_sources(folder: Path) -> dict[str, list[str]]:
    """The documents of each source in a folder, by the source's name; all are held in memory.

    A source is a file that `rows` reads, each row with its document in "text", or a folder of such files and of .md,
    .py and .rst files, however deep. Other files are passed over, and what begins with a dot.

    Raises FileError for a folder or a source in which there is nothing, and for what cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "songs.txt").write_text("Rain.<|endoftext|>Sun.", "utf-8")
    ...     read_sources(Path(folder))
    {'songs': ['Rain.', 'Sun.']}
    """
    if not folder.is_dir():
        raise FileError(f"expected a folder of sources, got none at {folder}: give the path of one")
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or has_rows(path)):
            continue
        name = path.name if path.is_dir() else path.name.partition(".")[0]
        if name in found:
            raise FileError(f"expected one folder or file for each source, got two for {name}: rename one of them")
        found[name] = list(_documents(path))
        if not found[name]:
            raise FileError(f"expected documents in {path}, got none: add some or take it away")
    if not found:
        raise FileError(f"expected folders or files of rows in {folder}, got none: put each source into one")
    return found


def _documents(path: Path) -> Iterator[str]:
    if path.is_dir():
        for each in sorted(path.iterdir()):
            if not each.name.startswith("."):
                yield from _documents(each)
    elif path.suffix in _WHOLE:
        try:
            yield decode_utf8(path.read_bytes()).removeprefix("\ufeff")
        except (InputError, OSError) as error:
            raise FileError(f"expected a readable text, got {path}: {error}; fetch or write it again") from None
    elif has_rows(path):
        for row in rows(path):
            text = row.values.get("text")
            if not isinstance(text, str):
                raise FileError(f'expected a row with a string in "text", got none: write one ({row.place})')
            yield text
