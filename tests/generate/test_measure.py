# SPDX-License-Identifier: Apache-2.0
"""What is measured is what is said: rates and ratios from times, programs in turn, failures of a child told."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from gemmary.base.errors import GemmaryError, InputError
from gemmary.generate import measure
from gemmary.generate.llama_cpp import why_not
from gemmary.generate.measure import Report, Row, Task, compare, num_steps, usual_tasks
from gemmary.generate.process import Process, Prompt, Timing, start

SIZES = {"vocab_size": 300, "max_length": 64, "num_threads": 1}


class Clockwork:
    """A program of known speed that notes what it is asked for."""

    weight_bytes = 1000

    def __init__(self, log: Path, name: str, *, num_slots: int, max_length: int) -> None:
        self._log, self._name = log, f"{name} with {num_slots} of {max_length}"

    def run(self, prompts: Sequence[Prompt], reply: int) -> list[Timing]:
        with self._log.open("a") as file:
            print(self._name, [len(prompt) for prompt in prompts], reply, file=file)
        return [Timing(0.5, 2.0) for _ in prompts]


class Failing:
    """A program that cannot be opened."""

    def __init__(self, error: Exception | None, *, num_slots: int, max_length: int) -> None:
        if error is None:
            time.sleep(60)
        else:
            raise error


def ends(*, num_slots: int, max_length: int) -> None:
    import os

    os._exit(7)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child imports the programs above by this file's name."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for program in (Clockwork, Failing, ends):
        monkeypatch.setattr(program, "__module__", "test_measure")
    monkeypatch.setitem(__import__("sys").modules, "test_measure", __import__("sys").modules[__name__])


@pytest.mark.slow
def test_programs_are_asked_in_turn_and_the_first_round_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"

    def read_bandwidth(num_threads: int) -> float:
        with log.open("a") as file:
            print("bandwidth", file=file)
        return float(log.read_text().count("bandwidth"))

    monkeypatch.setattr(measure, "read_bandwidth", read_bandwidth)
    programs = {name: partial(Clockwork, log, name) for name in ("a", "b")}
    tasks = [Task(prompt=10), Task(prompt=4, reply=5, sequences=2)]
    ticks: list[None] = []
    report = compare(programs, tasks, **SIZES, pairs=2, tick=lambda: ticks.append(None))
    assert len(ticks) == num_steps(programs=2, tasks=2, pairs=2)
    lines = log.read_text().splitlines()
    prefill, decode = ([f"{name} with 2 of 11 {what}" for name in "ab"] for what in ("[10] 1", "[4, 4] 5"))
    assert lines[:-4] == prefill + decode + ["bandwidth", *prefill, "bandwidth", *decode] * 2
    assert lines[-4:] == [f"{name} with 1 of 64 [24] 1" for name in "abab"]
    assert [row.label for row in report.rows[:2]] == ["prefill of 10", "decode of 5 after 4, 2 at once"]
    assert report.rows[0].values == {"a": (20.0, 20.0), "b": (20.0, 20.0)}  # 10 tokens in half a second
    assert report.rows[1].values == {"a": (4.0, 4.0), "b": (4.0, 4.0)}  # 2 times 4 tokens in 2 seconds
    assert [row.unit for row in report.rows[2:]] == ["s", "bytes"]
    assert [row.bandwidth for row in report.rows] == [(1.0, 3.0), (2.0, 4.0), (), ()]
    assert report.weight_bytes == {"a": 1000, "b": 1000}


def test_ratios_are_those_of_the_pairs() -> None:
    values = {"a": (10.0, 40.0, 9.0), "b": (5.0, 10.0, 9.0)}
    row = Row(label="", unit="tokens/s", values=values, bandwidth=(1e4, 2e4, 9e3))
    assert (row.median("a"), row.median("b"), row.ratio("a", "b")) == (10.0, 9.0, 2.0)
    report = Report(rows=(row,), weight_bytes={"a": 500, "b": None})
    assert (report.share(row, "a"), report.share(row, "b")) == (0.5, None)


def test_prompts_are_ids_of_the_vocabulary_and_differ_from_seed_to_seed() -> None:
    task = Task(prompt=200, reply=2, sequences=3)
    first, second = (task.prompts(seed=seed, vocab_size=50) for seed in (0, 100))
    assert all(len(ids) == 200 and ids[0] == 2 and 6 <= min(ids[1:]) <= max(ids[1:]) < 50 for ids in (*first, *second))
    assert len({tuple(ids) for ids in (*first, *second)}) == 6


def test_a_failure_in_the_child_is_told_here() -> None:
    for opener, message in (
        (partial(Failing, InputError("expected sense, got none: think")), "^expected sense, got none: think$"),
        (partial(Failing, ValueError("odd")), "got ValueError: odd"),
        (ends, "the process ended with 7"),
    ):
        for prompt in ("short", list(range(100_000))):  # the second fills the pipe before the child has failed
            with pytest.raises(GemmaryError, match=message):
                start(opener, max_length=8, prompt=prompt)


def test_the_child_ends_with_the_block() -> None:
    with Process(partial(Failing, None), num_slots=1, max_length=8) as process:
        assert process._child.poll() is None
    assert process._child.poll() == -9


def test_what_leaves_nothing_to_time_or_does_not_fit_is_refused() -> None:
    for settings in ({"prefill": 1}, {"decode": 1}, {"batch": 1}):
        with pytest.raises(InputError, match=r"^expected \w+ >= 2, got 1"):
            usual_tasks(**settings)
    for task, pairs in ((Task(prompt=64), 1), (Task(prompt=8), 0)):
        with pytest.raises(InputError, match=r"^expected (at most 64 tokens|pairs >= 1)"):
            compare({}, [task], **SIZES, pairs=pairs, tick=lambda: None)


def test_llama_cpp_reads_gguf_only(golden: Path) -> None:
    assert why_not(golden / "model") == "it reads GGUF only, which gemmary convert writes"
