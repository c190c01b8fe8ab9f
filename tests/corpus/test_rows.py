# SPDX-License-Identifier: Apache-2.0
"""The same rows from every kind of file; what is wrong is said with its place."""

import gzip
import json
import sys
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from gemmary.base.errors import FileError, MissingExtraError
from gemmary.corpus import rows as module
from gemmary.corpus.rows import files, rows

VALUES = [{"text": f"Regen {number} ☔"} for number in range(3)]
LINES = "\n".join(json.dumps(each, ensure_ascii=False) for each in VALUES).encode()
LIST = json.dumps(VALUES, indent=2).encode()


def write_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(VALUES), path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "mark.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES),
    "windows.jsonl": lambda path: path.write_bytes(LINES.replace(b"\n", b"\r\n") + b"\r\n"),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "list.json": lambda path: path.write_bytes(b"\n" + LIST),
    "mark.json": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LIST),
    "list.json.gz": lambda path: path.write_bytes(gzip.compress(LIST)),
    "lines.json": lambda path: path.write_bytes(LINES),
    "a.parquet": write_parquet,
    "a.txt": lambda path: path.write_text("<|endoftext|>\n".join(each["text"] for each in VALUES), "utf-8"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert [row.values for row in rows(tmp_path / name)] == VALUES
    assert [row.number for row in rows(tmp_path / name)] == [1, 2, 3]


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "list.json", "a.txt"])
def test_blocks_may_end_anywhere(name: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    WRITERS[name](tmp_path / name)
    assert [row.values for row in rows(tmp_path / name)] == VALUES


def test_blank_lines_count_as_lines_and_null_fields_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "a", "id": null}\n\n{"text": "b"}\n', "utf-8")
    assert [(row.values, row.place) for row in rows(tmp_path / "a.jsonl")] == [
        ({"text": "a"}, "a.jsonl, line 2"),
        ({"text": "b"}, "a.jsonl, line 4"),
    ]


def test_parquet_keeps_lists_of_messages_and_reads_in_parts(tmp_path: Path) -> None:
    values = [{"messages": [{"role": "user", "content": str(at)}], "n": at or None} for at in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "a.parquet")
    found = list(rows(tmp_path / "a.parquet"))
    assert found[0].values == {"messages": values[0]["messages"]}
    assert [row.values for row in found[1:]] == values[1:]


BAD: dict[str, tuple[str, bytes, str]] = {
    "not JSON": ("a.jsonl", b'{"text": "a"}\n{"text": ', "expected JSON, got something else: .*a.jsonl, line 2"),
    "not JSON in a list": ("a.json", b'[{"text": "a"}', r"expected JSON, got something else: .*\(a.json\)"),
    "nested too deep": ("a.jsonl", b"[" * 100_000, "expected JSON, got something else: .*a.jsonl, line 1"),
    "endless digits": ("a.jsonl", b"1" * 9999, "expected JSON, got something else: .*a.jsonl, line 1"),
    "no object": ("a.jsonl", b'{"text": "a"}\n[1, 2]', "expected an object with named fields, got list: .*, line 2"),
    "a number in a list": ("a.json", b'[{"text": "a"}, 3]', "expected an object .*, got int: .*a.json, row 2"),
    "not UTF-8": ("a.jsonl", b'{}\n{"text": "caf\xe9"}', "expected UTF-8 text, got the byte 0xE9 .*a.jsonl, line 2"),
    "a text not UTF-8": ("a.txt", b"caf\xe9", "expected UTF-8 text, got the byte 0xE9 at offset 3: .*a.txt, row 1"),
    "not gzip": ("a.jsonl.gz", b"{}", "expected a readable file, got .*a.jsonl.gz: Not a gzipped file"),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(LINES)[:-9], "expected a readable file, got .*a.jsonl.gz: "),
    "gzip damaged": ("a.jsonl.gz", gzip.compress(LINES)[:12] + b"\xff" * 40, "expected a readable file, got "),
    "not Parquet": ("a.parquet", b"PAR1" + b"\0" * 50 + b"PAR1", "expected a Parquet file, got a.parquet: "),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_line_with_its_place(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=f"^{message}") as caught:
        list(rows(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_row_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 1 << 20)
    monkeypatch.setattr(module, "_BLOCK", 1 << 18)
    for name, content in {"a.jsonl.gz": gzip.compress(b" " * (1 << 22)), "a.txt": b"a" * (1 << 22)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=f"expected rows up to 1 MiB, got more in {name}"):
            list(rows(tmp_path / name))


def test_rows_come_as_they_are_read(tmp_path: Path) -> None:
    line = json.dumps({"text": "a" * 10_000}).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([line] * 4000))  # 40 MB
    tracemalloc.start()
    count = sum(1 for _ in rows(tmp_path / "a.jsonl"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4000 and peak < 24 << 20
    (tmp_path / "b.jsonl").write_bytes(LINES + b"\nbad")
    assert len(list(islice(rows(tmp_path / "b.jsonl"), 3))) == 3


def test_a_folder_is_its_files_of_one_split(tmp_path: Path) -> None:
    names = ["b/train-1.jsonl", "a.jsonl", "test.jsonl", "data/validation/x.parquet", "dev.json", "contest.jsonl"]
    for name in [*names, "README.md", "dataset_infos.json"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in files(tmp_path)]
    assert found == ["a.jsonl", "b/train-1.jsonl", "contest.jsonl"]
    assert files(tmp_path / "test.jsonl") == [tmp_path / "test.jsonl"]
    assert files(tmp_path / "data") == [tmp_path / "data/validation/x.parquet"]


def test_a_real_folder_is_read_without_its_test_split(shared_data: Path) -> None:
    assert [path.name for path in files(shared_data / "benchmarks/gsm8k")] == ["train.jsonl"]


def test_a_source_without_files_of_rows_says_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    for source in (tmp_path, tmp_path / "a.csv"):
        with pytest.raises(FileError, match=r"^expected .jsonl, .json or .txt .*, or .parquet, got .*: convert it"):
            files(source)


def test_a_data_set_of_hugging_face_is_its_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "dataset_from_hugging_face", lambda address: asked.append(address) or tmp_path)
    (tmp_path / "a.jsonl").touch()
    assert files("hf://datasets/owner/name") == [tmp_path / "a.jsonl"] and asked == ["owner/name"]


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"reading a.parquet needs pyarrow: pip install 'gemmary\[data\]'"):
        list(rows(tmp_path / "a.parquet"))
