# SPDX-License-Identifier: Apache-2.0
"""gemmary bench measures any model, shows a table or JSON, and ends cleanly."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]
SHORT = ("--pairs", "1", "--prefill", "32", "--decode", "4", "--batch", "2", "--engine", "native")


@pytest.mark.slow
def test_a_gguf_file_is_measured_beside_llama_cpp(command: Command, tiny_model: Path) -> None:
    pytest.importorskip("xllamacpp")
    status, out, err = command("bench", "--model", str(tiny_model), *SHORT, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    labels = ["prefill of 32", "decode of 4", "decode of 4, 2 at once", "process start to first token"]
    assert [row["measure"] for row in found["measures"]] == [*labels, "peak memory of that"]
    for row in found["measures"]:
        ours, theirs = (row["medians"][name] for name in ("gemmary", "llama.cpp"))
        assert row["ratio"] == ours / theirs > 0
        assert row["values"] == {"gemmary": [ours], "llama.cpp": [theirs]}
    assert found["engine"] == "native" and found["pairs"] == 1
    decode, [bandwidth] = found["measures"][1]["medians"]["gemmary"], found["measures"][1]["bandwidth"]
    assert found["bandwidth"]["median"] == bandwidth
    assert found["bandwidth_share"] == pytest.approx(decode * found["weight_bytes"] / bandwidth)


@pytest.mark.slow
def test_other_models_are_measured_alone(command: Command, golden: Path) -> None:
    status, out, err = command("bench", "--model", str(golden / "model"), *SHORT)
    assert (status, err) == (0, "without llama.cpp: it reads GGUF only, which gemmary convert writes\n")
    first, head, *rows = out.splitlines()
    assert first.startswith(f"{golden / 'model'}, native engine, ") and head.split() == ["gemmary"]
    assert [row.split(",")[0].split("  ")[0] for row in rows[:3]] == ["prefill of 32", "decode of 4", "decode of 4"]
    assert "GB/s" in rows[-2] and rows[-1].startswith("a token reads ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pairs", "0", "--prefill", "9"), "expected pairs >= 1, got 0"),
        (("--prefill", "9000"), "expected at most 512 tokens, the model's context, got 9001"),
        (("--decode", "0"), "expected decode >= 2, got 0"),
        (("--engine", "native", "--backend", "jax"), "expected no backend with the native engine"),
    ],
)
def test_what_cannot_be_measured_is_refused_on_one_line(
    arguments: tuple[str, ...], message: str, command: Command, golden: Path
) -> None:
    status, out, err = command("bench", "--model", str(golden / "model"), *arguments)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the children")
def test_ctrl_c_ends_it_and_its_children(golden: Path) -> None:
    arguments = ["bench", "--model", str(golden / "model"), "--pairs", "100000", "--prefill", "9"]
    command = [sys.executable, "-m", "gemmary", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and process.stderr.readline().startswith("without llama.cpp")
        while not (found := children(process.pid)):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
    until = time.monotonic() + 20  # a child that is just starting ends when it finds its input closed
    while any(child.exists() for child in found) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(child.exists() for child in found)


def children(parent: int) -> list[Path]:
    """The folders in /proc of a process's children."""
    return [path for path in Path("/proc").glob("[0-9]*") if parent_of(path) == parent]


def parent_of(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # ended meanwhile
        return None
