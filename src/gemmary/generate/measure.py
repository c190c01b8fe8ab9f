# SPDX-License-Identifier: Apache-2.0
"""How fast a model runs, beside other programs: all are asked in turn, so that they meet the same noise.

rate           tokens a second: of the prompt, or of the reply after its first token
first token    seconds from starting a process to its answer, everything read and imported on the way
peak memory    the most that this process held resident
bandwidth      bytes a second that as many threads read from an array far beyond the caches
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from gemmary.base.errors import InputError
from gemmary.generate.process import Opener, Process, Prompt, Start, Timing, start

START_LENGTH = 2048  # positions that a fresh process makes room for
_SHORT = 16  # tokens of the prompt before a reply that is timed
_FIRST_ID = 6  # what comes before are BOS and its like
_BEYOND_CACHES = 1 << 29  # bytes


@dataclass(frozen=True, kw_only=True)
class Task:
    """Prompts of so many tokens, run at once; with a reply of one token the prompt is timed, else the reply.

    >>> Task(prompt=512).label, Task(prompt=16, reply=64, sequences=8).label, Task(prompt=512, reply=64).label
    ('prefill of 512', 'decode of 64, 8 at once', 'decode of 64 after 512')
    >>> Task(prompt=3).prompts(seed=0, vocab_size=288)
    [[2, 6, 113]]
    >>> task = Task(prompt=16, reply=5, sequences=2)
    >>> task.length, task.rate([Timing(1.0, 2.0), Timing(1.0, 4.0)])
    (21, 2.0)
    """

    prompt: int
    reply: int = 1
    sequences: int = 1

    @property
    def length(self) -> int:
        """Positions that a sequence takes."""
        return self.prompt + self.reply

    @property
    def label(self) -> str:
        """What is timed."""
        if self.reply == 1:
            return f"prefill of {self.prompt}"
        after = f" after {self.prompt}" if self.prompt != _SHORT else ""
        at_once = f", {self.sequences} at once" if self.sequences > 1 else ""
        return f"decode of {self.reply}{after}{at_once}"

    def prompts(self, *, seed: int, vocab_size: int) -> list[Prompt]:
        """BOS and ids that are in no cache, unless that of the same seed; sequences take seeds one after the other."""
        return [
            [2, *(_FIRST_ID + (each * 7919 + at * 104_729) % (vocab_size - _FIRST_ID) for at in range(self.prompt - 1))]
            for each in range(seed, seed + self.sequences)
        ]

    def rate(self, timings: Sequence[Timing]) -> float:
        """Tokens a second of all sequences together."""
        if self.reply == 1:
            return self.prompt * self.sequences / max(timing.prefill for timing in timings)
        return (self.reply - 1) * self.sequences / max(timing.decode for timing in timings)


def usual_tasks(*, prefill: int = 512, decode: int = 64, batch: int = 8) -> tuple[Task, Task, Task]:
    """A prompt of `prefill` tokens, a reply of `decode` tokens, and `batch` such replies at once.

    Raises InputError for numbers that leave nothing to time.

    >>> [task.label for task in usual_tasks()]
    ['prefill of 512', 'decode of 64', 'decode of 64, 8 at once']
    """
    for name, value, least in (("prefill", prefill, 2), ("decode", decode, 2), ("batch", batch, 2)):
        if value < least:
            raise InputError(f"expected {name} >= {least}, got {value}: leave it out for what is usual")
    short = Task(prompt=_SHORT, reply=decode)
    return Task(prompt=prefill), short, replace(short, sequences=batch)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing measured: for each program a value of every round, and the bandwidth in bytes/s before the first's.

    >>> rates = {"gemmary": (4.0, 8.0, 6.0), "other": (2.0, 2.0, 2.0)}
    >>> row = Row(label="decode", unit="tokens/s", values=rates, bandwidth=(3e10, 2e10, 3e10))
    >>> row.median("gemmary"), row.ratio("gemmary", "other"), row.median_bandwidth
    (6.0, 3.0, 30000000000.0)
    """

    label: str
    unit: str
    values: Mapping[str, tuple[float, ...]]
    bandwidth: tuple[float, ...] = ()

    def median(self, program: str) -> float:
        """The median of a program's rounds."""
        return statistics.median(self.values[program])

    @property
    def median_bandwidth(self) -> float:
        """The median of the rounds, in bytes a second."""
        return statistics.median(self.bandwidth)

    def ratio(self, program: str, other: str) -> float:
        """The median of the rounds' ratios."""
        pairs = zip(self.values[program], self.values[other], strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a comparison found: rows, and the bytes of weights that each program reads a token.

    >>> decode = Row(label="decode of 64", unit="tokens/s", values={"gemmary": (50.0,)}, bandwidth=(20e9,))
    >>> Report(rows=(decode,), weight_bytes={"gemmary": 200_000_000}).share(decode, "gemmary")
    0.5
    """

    rows: tuple[Row, ...]
    weight_bytes: Mapping[str, int | None]

    def share(self, row: Row, program: str) -> float | None:
        """The share of the bandwidth at which one sequence's decode reads the weights; None if unknown."""
        read = self.weight_bytes[program]
        if read is None:
            return None
        return statistics.median(
            rate * read / most for rate, most in zip(row.values[program], row.bandwidth, strict=True)
        )


def num_steps(*, programs: int, tasks: int, pairs: int) -> int:
    """How often `compare` calls `tick` for so many programs and tasks.

    >>> num_steps(programs=2, tasks=3, pairs=5)
    46
    """
    return programs * tasks * (pairs + 1) + pairs * programs


def compare(
    programs: Mapping[str, Opener],
    tasks: Sequence[Task],
    *,
    vocab_size: int,
    max_length: int,
    pairs: int,
    num_threads: int,
    tick: Callable[[], None],
    warm_up: Sequence[Task] | None = None,
) -> Report:
    """Measure every task and the start `pairs` times, alternating the programs.

    The bandwidth is measured before each task, since a shared machine's may double within a minute. `max_length` is the
    model's context; `tick` is called `num_steps` times; `warm_up` is run before, once, and is all tasks unless said
    otherwise. Raises InputError for tasks that do not fit the context, GemmaryError for what a program raises and for
    one that ends before it answers.

    >>> sizes = {"vocab_size": 288, "max_length": 8, "pairs": 1, "num_threads": 1}
    >>> [row.label for row in compare({}, [], **sizes, tick=lambda: None).rows]
    ['process start to first token', 'peak memory of that']
    """
    rates: list[list[list[float]]] = [[] for _ in tasks]
    bandwidth: list[list[float]] = [[] for _ in tasks]
    weight_bytes: dict[str, int | None] = {}

    def ask(name: str, process: Process, task: Task, seed: int) -> float:
        answer = process.ask(task.prompts(seed=seed, vocab_size=vocab_size), task.reply)
        weight_bytes[name] = answer.weight_bytes
        tick()
        return task.rate(answer.timings)

    num_slots = max((task.sequences for task in tasks), default=1)
    length = max((task.length for task in tasks), default=1)
    if length > max_length:
        raise InputError(f"expected at most {max_length} tokens, the model's context, got {length}: measure fewer")
    if pairs < 1:
        raise InputError(f"expected pairs >= 1, got {pairs}: 5 are usual")
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(Process(opener, num_slots=num_slots, max_length=length))
            for name, opener in programs.items()
        }
        for task in tasks if warm_up is None else warm_up:
            for each in running.items():
                ask(*each, task, 0)
        for turn in range(1, pairs + 1):
            for at, task in enumerate(tasks):
                bandwidth[at].append(read_bandwidth(num_threads))
                rates[at].append([ask(*each, task, 100 * turn) for each in running.items()])
    starts = [_starts(programs, min(START_LENGTH, max_length), tick) for _ in range(pairs)]
    rows = [
        _row(task.label, "tokens/s", programs, values, most)
        for task, values, most in zip(tasks, rates, bandwidth, strict=True)
    ]
    for at, (label, unit) in enumerate((("process start to first token", "s"), ("peak memory of that", "bytes"))):
        rows.append(_row(label, unit, programs, [[each[at] for each in turn] for turn in starts]))
    return Report(rows=tuple(rows), weight_bytes=weight_bytes)


def _starts(programs: Mapping[str, Opener], max_length: int, tick: Callable[[], None]) -> list[Start]:
    found = []
    for opener in programs.values():
        found.append(start(opener, max_length=max_length))
        tick()
    return found


def _row(
    label: str,
    unit: str,
    names: Mapping[str, Opener],
    rounds: Sequence[Sequence[float]],
    bandwidth: Sequence[float] = (),
) -> Row:
    values = dict(zip(names, zip(*rounds, strict=True), strict=True))
    return Row(label=label, unit=unit, values=values, bandwidth=tuple(bandwidth))


def read_bandwidth(num_threads: int, num_bytes: int = _BEYOND_CACHES) -> float:
    """Bytes a second that threads read from memory: the best of five times that they find an array's largest byte.

    >>> read_bandwidth(1, 1 << 20) > 0
    True
    """
    parts = np.array_split(np.ones(num_bytes, np.int8), num_threads)  # written once, so that its pages are there
    seconds = []
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(5):
            began = time.perf_counter()
            list(pool.map(np.max, parts))
            seconds.append(time.perf_counter() - began)
    return num_bytes / min(seconds)
