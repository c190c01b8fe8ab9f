# SPDX-License-Identifier: Apache-2.0
"""Files are read within their length, and written whole or not at all: after errors, kills and on a full disk."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from gemmary.base.errors import FileError
from gemmary.formats.checkpoint import Checkpoint, Format, write_checkpoint
from gemmary.formats.storage import (
    FileBytes,
    listed_files,
    parse_json,
    read_json,
    shown,
    write_json,
    written_folder,
    written_whole,
)


def test_a_range_past_the_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "four").write_bytes(b"abcd")
    source = FileBytes(tmp_path / "four")
    assert source.read(0, 4).tobytes() == b"abcd" and source.read(4, 0).size == 0
    for start, length in [(0, 5), (4, 1), (-1, 2), (2, -1), (2**63, 1), (0, 2**62)]:
        with pytest.raises(FileError, match="got a file of 4: it is truncated or damaged"):
            source.read(start, length)


def test_a_replaced_file_keeps_its_old_bytes_for_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old!")
    source = FileBytes(path)
    with written_whole(path) as file:
        file.write(b"new")
    assert source.read(0, 4).tobytes() == b"old!" and path.read_bytes() == b"new"


def test_threads_read_their_own_ranges(tmp_path: Path) -> None:
    numbers = np.arange(1 << 16, dtype=np.uint32)
    (tmp_path / "numbers").write_bytes(numbers.tobytes())
    source, wrong = FileBytes(tmp_path / "numbers"), []

    def read(start: int) -> None:
        for at in range(start, 1 << 16, 1024):
            if source.read(4 * at, 4).view(np.uint32)[0] != at:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_a_file_is_closed_with_its_last_reader(tmp_path: Path) -> None:
    (tmp_path / "four").write_bytes(b"abcd")
    before = num_open_files()
    source = FileBytes(tmp_path / "four")
    assert num_open_files() == before + 1
    del source
    assert num_open_files() == before


@pytest.mark.parametrize("name", ["nothing", "."])
def test_what_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected a readable file"):
        FileBytes(tmp_path / name).read(0, 1)


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "file") as file:
        file.write(b"half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), written_folder(tmp_path / "folder") as folder:
        write_json(folder / "half.json", {})
        raise ZeroDivisionError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    write_json(tmp_path / "ours", {})
    with written_folder(tmp_path / "folder") as folder:
        write_json(folder / "inner", {})
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("usual", "ours", "folder/inner")}
    assert len(set(modes.values())) == 1
    (tmp_path / "usual-folder").mkdir()
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "usual-folder").stat().st_mode


def test_missing_folders_are_made_and_taken_ones_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "c.json", {"a": 1})
    assert read_json(tmp_path / "a" / "b" / "c.json") == {"a": 1}
    with written_folder(tmp_path / "empty") as folder:
        write_json(folder / "d.json", {})
    for taken in (tmp_path / "a", tmp_path / "a" / "b" / "c.json"):
        with pytest.raises(FileError, match="expected a new or empty folder"), written_folder(taken):
            pytest.fail("nothing may be written")
    with pytest.raises(FileError, match="expected a folder to write"), written_whole(Path("/proc/no/such/file")):
        pytest.fail("nothing may be written")


KILLED = """
import os, sys
from pathlib import Path
from gemmary.formats.storage import written_whole, written_folder, write_json
with written_folder(Path(sys.argv[1], "folder")) as folder, written_whole(Path(sys.argv[1], "file")) as file:
    write_json(folder / "config.json", {})
    file.write(bytes(1 << 22))
    file.flush()
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_kill_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "file").read_bytes() == b"old" and not (tmp_path / "folder").exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir() if path.name != "file")


FULL = """
import resource, signal, sys
from pathlib import Path
from gemmary.base.errors import FileError
from gemmary.formats.checkpoint import open_checkpoint, write_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a full disk: writing more fails
try:
    write_checkpoint(open_checkpoint(Path(sys.argv[1])), Path(sys.argv[2]), format=sys.argv[3])
except FileError as error:
    print(error)
"""


@pytest.mark.parametrize("format", get_args(Format))
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    format: str, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    write_checkpoint(make_tiny("gemma1"), tmp_path / "source.gguf", format="gguf")
    target = tmp_path / "out" / "target"
    if format in ("gguf", "torch"):
        target.parent.mkdir()
        target.write_bytes(b"old")
    command = [sys.executable, "-c", FULL, str(tmp_path / "source.gguf"), str(target), format]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("expected to write") and done.stdout.endswith("; nothing was changed\n")
    assert done.stdout.count("\n") == 1
    left = [(path.name, path.read_bytes()) for path in target.parent.iterdir()]
    assert left == ([("target", b"old")] if format in ("gguf", "torch") else [])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", "expected JSON in a.json, got something else"),
        (b"{", "expected JSON in a.json, got something else"),
        (b"\xff\xfe", "expected JSON in a.json, got something else"),
        (b"7", "expected a JSON object in a.json, got a int"),
        (b"[" * 100_000, "expected JSON in a.json, got something else"),
        (b'{"a": 1, "a": 2}', "a.json: expected every name once, got one twice"),
        (b'{"a": {"b": 1, "b": 2}}', "a.json: expected every name once, got one twice"),
        (b'{"a": ' + b"1" * 5000 + b"}", "expected JSON in a.json, got something else"),
    ],
)
def test_what_is_no_json_object_is_refused(text: bytes, error: str) -> None:
    with pytest.raises(FileError, match=error) as caught:
        parse_json(text, "a.json")
    assert "\n" not in str(caught.value)


def test_a_long_json_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "long.json").write_bytes(bytes(2000))
    with pytest.raises(FileError, match=r"expected at most 1000 bytes of JSON in long\.json, got 2000"):
        read_json(tmp_path / "long.json", limit=1000)


@pytest.mark.parametrize(
    "names",
    [
        None,
        [],
        {},
        7,
        {"a": "../b"},
        {"a": "/etc/passwd"},
        {"a": ""},
        {"a": 7},
        {"a": ["b", None]},
        {"a": ".."},
        {"a": "b\0c"},
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(names: Any, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(FileError, match=r"expected a weight_map of names to files in index\.json"):
        listed_files(tmp_path / "index.json")


def test_what_errors_quote_is_short_and_on_one_line() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    for value in ("a\nb" * 1000, nested, 10**4000, "\x1b[31m", {"a": "\n"}, b"\n" * 1000, [["\r\n"]]):
        assert shown(value).isprintable() and len(shown(value)) <= 80
    while nested:
        nested = nested.pop()  # a long chain is taken apart by hand


def test_a_file_takes_the_place_of_no_device_and_no_pipe(tmp_path: Path) -> None:
    """As root, `gemmary convert model /dev/null` would have made the device a file."""
    os.mkfifo(tmp_path / "pipe")
    expected = pytest.raises(FileError, match=r"expected the name of a file to write, got .*pipe, a device or a pipe")
    with expected, written_whole(tmp_path / "pipe"):
        raise AssertionError("not reached")
    assert (tmp_path / "pipe").is_fifo()
