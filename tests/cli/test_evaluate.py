# SPDX-License-Identifier: Apache-2.0
"""gemmary evaluate: results on the disk, nothing asked twice, two results compared, mistakes on one line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'gemmary[evaluate]'")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A HellaSwag of 40 items."""
    folder = tmp_path / "data" / "hellaswag"
    folder.mkdir(parents=True)
    rows = [
        {"activity_label": "Walking", "ctx_a": f"{n} of them walk.", "ctx_b": "they", "label": str(n % 4)}
        | {"endings": [f"go home at {n}.", "sit.", "run off.", "sing."], "ctx": "", "source_id": "a", "ind": n}
        for n in range(40)
    ]
    (folder / "validation.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return folder.parent


def arguments(golden: Path, data: Path, out: Path, *more: str) -> tuple[str, ...]:
    model = ("--model", str(golden / "model"), "--engine", "native")
    return ("evaluate", "--tasks", "hellaswag,humaneval,bold", *model, "--data", str(data), "--out", str(out), *more)


def test_results_are_a_table_a_file_and_a_picture_and_a_second_run_is_the_same(
    command: Command, golden: Path, data: Path, tmp_path: Path
) -> None:
    status, out, err = command(*arguments(golden, data, tmp_path / "out", "--limit", "12"))
    assert status == 0 and "Traceback" not in err
    assert "hellaswag: " in err and "12 items in" in err
    assert (tmp_path / "out" / "results.md").read_text("utf-8") == out
    assert "| HellaSwag | 0 | acc_norm |" in out and "| 77.2 | 80.7 | 81.0 | 71.4 | 81.2 |" in out
    assert "- humaneval: it runs programs that the model writes: ask for that with --run-code" in out
    assert "- bold: not run: needs a classifier of toxicity" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    row = results["benchmarks"]["hellaswag"]
    assert row["num_items"] == len(row["values"]) == 12 and results["model"]["engine"] == "native"
    assert len(results["model"]["sha256"][0]) == 64 and results["versions"]["lm-eval"]
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
    kept = (tmp_path / "out").glob("replies-*.db")
    before = {path: path.read_bytes() for path in kept}
    assert len(before) == 1
    assert command(*arguments(golden, data, tmp_path / "out", "--limit", "12"))[:2] == (0, out)
    assert {path: path.read_bytes() for path in before} == before  # nothing was asked, so nothing was kept


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_table(golden: Path, data: Path, tmp_path: Path, command: Command) -> None:
    status, whole, _ = command(*arguments(golden, data, tmp_path / "whole"))
    assert status == 0
    run = [sys.executable, "-m", "gemmary", *arguments(golden, data, tmp_path / "killed")]
    child = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not has_replies(tmp_path / "killed"):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert command(*arguments(golden, data, tmp_path / "killed"))[:2] == (0, whole)
    values = [
        json.loads((tmp_path / name / "results.json").read_text("utf-8"))["benchmarks"] for name in ("whole", "killed")
    ]
    assert [each["hellaswag"]["values"] for each in values] == [values[0]["hellaswag"]["values"]] * 2


def has_replies(folder: Path) -> bool:
    return any(path.stat().st_size > 8192 for path in folder.glob("replies-*.db"))


def results_of(folder: Path, values: dict[str, float], name: str = "coin") -> Path:
    folder.mkdir()
    row: dict[str, Any] = {"title": "Coin", "values": values}
    (folder / "results.json").write_text(json.dumps({"benchmarks": {name: row}}), "utf-8")
    return folder


def test_two_results_are_compared_on_what_both_were_asked(command: Command, tmp_path: Path) -> None:
    ones = {str(n): 1.0 for n in range(12)}
    first, second = (
        results_of(tmp_path / "a", ones),
        results_of(tmp_path / "b", {**ones, "0": 0, "1": 0, "2": 0, "x": 0}),
    )
    status, out, err = command("evaluate", "compare", str(first), str(second))
    assert (status, err) == (0, "") and out.splitlines()[-1] == "| Coin | 12 | +25.0 | -0.6 to +50.6 | 0.25 |"
    found = json.loads(command("evaluate", "compare", str(first), str(second), "--json")[1])["differences"]
    assert [(each["num_items"], each["mean"], each["p_value"]) for each in found] == [(12, 0.25, 0.25)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tasks", "helaswag"), "expected benchmarks or groups of them, got 'helaswag': did you mean hellaswag"),
        (("--tasks", ","), "expected benchmarks or groups of them, got None"),
        (("--tasks", "gsm8k", "--data", "nowhere"), "expected the data of gsm8k in nowhere/gsm8k, got no such folder"),
        (("--model", "gemma-2-2c"), "expected a path or the name of a model, got 'gemma-2-2c'"),
        (("--lm-args", "pretrained=x"), "expected --lm-args with --lm, and no --model or --adapter with it"),
        (("--lm", "hf", "--model", "x"), "expected --lm-args with --lm, and no --model or --adapter with it"),
        (("--lm", "no-such"), "expected a model type of lm-eval that can be made"),
        (("--lm", "hf", "--lm-args", "pretrained=/no/such"), "expected a model type of lm-eval that can be made"),
    ],
)
def test_mistakes_are_told_on_one_line(more: tuple[str, ...], message: str, command: Command, tmp_path: Path) -> None:
    status, out, err = command("evaluate", "--tasks", "gsm8k", "--out", str(tmp_path), *more)
    assert (status, out) == (2, "") and "Traceback" not in err
    assert message in err.splitlines()[-1]


def test_results_with_nothing_in_common_are_not_compared(command: Command, tmp_path: Path) -> None:
    first, second = results_of(tmp_path / "a", {"1": 1.0}), results_of(tmp_path / "b", {"1": 1.0}, name="dice")
    status, _, err = command("evaluate", "compare", str(first), str(second))
    assert status == 2 and "expected two results with benchmarks and items in common, got none" in err
    status, _, err = command("evaluate", "compare", str(first), str(tmp_path))
    assert status == 2 and "expected the results of gemmary evaluate in" in err


def test_memorization_writes_a_table_and_a_picture(command: Command, golden: Path, tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "notes.txt").write_text("a note on rain and wind " * 40, "utf-8")
    how = ("--model", str(golden / "model"), "--engine", "native", "--out", str(tmp_path / "out"))
    status, out, err = command("evaluate", "memorization", str(tmp_path / "sources"), *how)
    assert status == 0 and "1 documents in" in err and "| notes | 1 |" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "memorization.json",
        "memorization.md",
        "memorization.png",
    ]


def test_two_files_of_replies_are_judged(command: Command, scripted: Callable[..., object], tmp_path: Path) -> None:
    for name, replies in {"a": ["yes", "no"], "b": ["no", "no"]}.items():
        rows = [{"prompt": f"{n}?", "response": reply} for n, reply in enumerate(replies)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    files = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    scripted({"": "Both are short.\nVerdict: tie"})
    status, out, err = command("evaluate", "side-by-side", *files, "--out", str(tmp_path / "out"))
    assert status == 0 and out.startswith("A won 0, tied 2, lost 0, 0 unreadable: win rate 50.0%")
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".html", ".json"}
    (tmp_path / "b.jsonl").write_text('{"prompt": "other?", "response": "no"}\n', "utf-8")
    status, _, err = command("evaluate", "side-by-side", *files)
    assert status == 2 and "expected the same prompts in" in err
    (tmp_path / "b.jsonl").write_text('{"prompt": "other?"}\n', "utf-8")
    status, _, err = command("evaluate", "side-by-side", *files)
    assert status == 2 and "expected a prompt and a response, both texts, in" in err
