# SPDX-License-Identifier: Apache-2.0
"""Rows of tuning data, one after the other, whatever they are stored in.

.jsonl               an object a line
.json                a list of objects, which is in memory whole, or as .jsonl
.parquet             a table (needs the extra `data`)
.txt                 a document, or more with <|endoftext|> between them
a folder             its files of these kinds, but not those of other splits (test, validation) beside them
hf://datasets/...    a data set of Hugging Face, or one file of it

Files of text may be packed with gzip (.jsonl.gz).
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gemmary.base.errors import FileError, InputError, MissingExtraError
from gemmary.formats.hub import dataset_from_hugging_face
from gemmary.text.tokenizer import decode_utf8

LIMIT = 1 << 28  # bytes of a line, a document or a list: what a file can make us hold in memory
_BLOCK = 1 << 22  # bytes read at once
_HUB = "hf://datasets/"
_KINDS = re.compile(r"\.((?:jsonl|json|txt)(?=\.gz$|$)|parquet$)")
_OTHER_SPLIT = re.compile(r"(?<![a-z])(test|testing|valid|validation|val|dev|eval|evaluation)(?![a-z])")
_NO_ROWS = "dataset_infos.json"  # what data sets of Hugging Face say about themselves


class Row(NamedTuple):
    """The fields of one row that are not null, and where it stands: for `.jsonl` its number is that of the line.

    >>> Row({"text": "Rain."}, 3, "a.jsonl, line 3").number
    3
    """

    values: Mapping[str, object]
    number: int  # from 1
    place: str  # for messages


def files(source: str | Path) -> list[Path]:
    """The files of a source, in the order of their names; a data set of Hugging Face is downloaded first.

    Raises FileError for a path that leads nowhere or to no file of rows, and what the hub raises.

    >>> files("rows.csv")
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a file or folder of tuning data, got nothing at rows.csv: ...
    """
    name = str(source)
    path = dataset_from_hugging_face(name.removeprefix(_HUB)) if name.startswith(_HUB) else Path(source)
    if not path.exists():
        raise FileError(f"expected a file or folder of tuning data, got nothing at {name}: give the path of one")
    within = sorted(path.rglob("*")) if path.is_dir() else [path]
    known = [each for each in within if has_rows(each) and each.name != _NO_ROWS and each.is_file()]
    if not known:
        raise FileError(f"expected .jsonl, .json or .txt (also with .gz), or .parquet, got {name}: convert it to one")
    return [each for each in known if not _OTHER_SPLIT.search(str(each.relative_to(path)).lower())] or known


def has_rows(file: Path) -> bool:
    """Whether a file's name says that `rows` reads it.

    >>> has_rows(Path("web.jsonl.gz")), has_rows(Path("logo.svg"))
    (True, False)
    """
    return _KINDS.search(file.name) is not None


def rows(file: Path) -> Iterator[Row]:
    """The rows of one file, read as they are asked for.

    Raises FileError, saying where, for what cannot be read or is no object; MissingExtraError without pyarrow.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "rain.json")
    ...     _ = file.write_text('[{"text": "Rain."}, {"text": "Sun.", "id": null}]', "utf-8")
    ...     [dict(row.values) for row in rows(file)]
    [{'text': 'Rain.'}, {'text': 'Sun.'}]
    """
    kind = _kind(file)
    for number, content in enumerate(_contents(file, kind), 1):
        place = f"{file.name}, {'line' if kind == 'jsonl' else 'row'} {number}"
        try:
            values = _values(content, kind)
        except InputError as error:
            raise FileError(f"{error} ({place})") from None
        if values is not None:
            yield Row(values, number, place)


def _kind(file: Path) -> str:
    match = _KINDS.search(file.name)
    kind = match[1] if match else ""
    if kind == "json":
        lines = (line.removeprefix(codecs.BOM_UTF8).strip() for line in _pieces(file, b"\n"))
        return "list" if next(filter(None, lines), b"").startswith(b"[") else "jsonl"
    return kind


def _contents(file: Path, kind: str) -> Iterator[object]:
    """Rows as they come: bytes of lines and documents, values of lists and tables."""
    if kind == "parquet":
        yield from _table(file)
    elif kind == "list":
        try:
            for data in _pieces(file, b"\0"):  # JSON has none: the whole file
                yield from _json(data)
        except InputError as error:
            raise FileError(f"{error} ({file.name})") from None
    else:
        yield from _pieces(file, b"<|endoftext|>" if kind == "txt" else b"\n")


def _values(content: object, kind: str) -> dict[str, object] | None:
    """The fields of a row; None for what is blank."""
    if isinstance(content, bytes):
        if not content.strip():
            return None
        content = {"text": decode_utf8(content).strip()} if kind == "txt" else _json(content)
    if not isinstance(content, dict):
        raise InputError(f"expected an object with named fields, got {type(content).__name__}: write one a row")
    return {key: value for key, value in content.items() if value is not None}


def _json(data: bytes) -> Any:
    try:
        return json.loads(decode_utf8(data).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected JSON, got something else: {error}; write an object a line or a list") from None


def _pieces(file: Path, separator: bytes) -> Iterator[bytes]:
    """What stands before, between and after separators in a file, unpacked if it is packed; no empty one at its end."""
    held = b""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                *whole, held = (held + block).split(separator)
                yield from whole
                if len(held) > LIMIT:
                    raise FileError(f"expected rows up to {LIMIT >> 20} MiB, got more in {file.name}: use .jsonl")
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"expected a readable file, got {file}: {error}; fetch or write it again") from None
    if held:
        yield held


def _table(file: Path) -> Iterator[dict[str, object]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MissingExtraError.of(f"reading {file.name}", "pyarrow", "data") from None
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FileError(f"expected a Parquet file, got {file.name}: {reason}; fetch or write it again") from None
