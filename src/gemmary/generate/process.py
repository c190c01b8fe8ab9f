# SPDX-License-Identifier: Apache-2.0
"""A program to be measured, in a process of its own: it is opened there, runs what it is asked to, and says how long.

    Process ─► python -c "work()" ─► opener(num_slots, max_length) ─► run(prompts, reply) ─► Answer

What this file imports counts in the time to a child's first token, so NumPy and the engines come where they are used.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol, Self

from gemmary.base.errors import GemmaryError

if TYPE_CHECKING:
    from gemmary.generate.batched import BatchedGenerator

Prompt = str | list[int]
Opener = Callable[..., "Program"]  # called with num_slots and max_length in the child, so it must pickle


class Timing(NamedTuple):
    """Seconds from a request to its first token, and from there to its last, by the program's own clock.

    >>> Timing(prefill=0.5, decode=2.0).decode
    2.0
    """

    prefill: float
    decode: float


class Program(Protocol):
    """Something that continues prompts and says how long it took."""

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of weights that are read for each token; None where it does not say."""
        ...

    def run(self, prompts: Sequence[Prompt], reply: int) -> list[Timing]:
        """Continue all prompts at once, each by `reply` tokens."""
        ...


class Ours:
    """A model in one of our engines; `load` is gemmary.load with all but the sizes settled.

    >>> import gemmary
    >>> Ours(partial(gemmary.load, "gemma-2-2c"), num_slots=1, max_length=8)
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected a path or the name of a model, got 'gemma-2-2c': did you mean ...
    """

    def __init__(self, load: "Callable[..., BatchedGenerator]", *, num_slots: int, max_length: int) -> None:
        # no guesses: what is timed is a step for each token, as in the peers
        self._generator = load(num_slots=num_slots, max_length=max_length, draft="none")

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of weights that are read for each token."""
        return self._generator.engine.weight_bytes

    def run(self, prompts: Sequence[Prompt], reply: int) -> list[Timing]:
        """Continue all prompts at once, each by `reply` tokens."""
        from gemmary.generate.request import Request

        requests = [Request(prompt, max_tokens=reply, ignore_stop_ids=True) for prompt in prompts]
        usages = [completion.usage for completion in self._generator.complete(requests)]
        return [Timing(usage.prefill_seconds, usage.decode_seconds) for usage in usages]


class Answer(NamedTuple):
    """What a child says after a run: the times, the bytes of weights of a token, its peak of resident memory in bytes.

    >>> Answer(timings=[Timing(0.1, 0.0)], weight_bytes=None, peak_bytes=50_000_000).timings[0].prefill
    0.1
    """

    timings: list[Timing]
    weight_bytes: int | None
    peak_bytes: int


class Process:
    """A program in a child that lives as long as the block.

    >>> import gemmary
    >>> with Process(partial(Ours, partial(gemmary.load, "gemma-2-2c")), num_slots=1, max_length=8) as process:
    ...     process.ask(["a"], reply=1)
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected a path or the name of a model, got 'gemma-2-2c': did you mean ...
    """

    def __init__(self, opener: Opener, *, num_slots: int, max_length: int) -> None:
        command = [sys.executable, "-c", f"from {__name__} import work; work()"]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._pending: list[object] = [partial(opener, num_slots=num_slots, max_length=max_length)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    def ask(self, prompts: Sequence[Prompt], reply: int) -> Answer:
        """Continue all prompts at once, each by `reply` tokens.

        Raises the GemmaryError of the program, and one of its own for any other failure.
        """
        assert self._child.stdin is not None and self._child.stdout is not None
        jobs, self._pending = (*self._pending, (list(prompts), reply)), []
        with suppress(BrokenPipeError):  # a child that has failed says so, or nothing, below
            for each in jobs:
                _send(each, self._child.stdin)
        try:
            answer: Answer | GemmaryError = pickle.load(self._child.stdout)
        except EOFError:
            status = self._child.wait()
            raise GemmaryError(
                f"expected an answer, the process ended with {status}: is there enough memory?"
            ) from None
        if isinstance(answer, GemmaryError):
            raise answer
        return answer


def _send(value: object, stream: IO[bytes]) -> None:
    pickle.dump(value, stream)
    stream.flush()


def work() -> None:
    """What the child does: open the program that comes on stdin, then answer every run asked for, until stdin ends.

    >>> work.__name__
    'work'
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the program prints is no answer
    try:
        program = pickle.load(sys.stdin.buffer)()
        while True:
            timings = program.run(*pickle.load(sys.stdin.buffer))
            _send(Answer(timings, program.weight_bytes, peak_bytes()), answers)
    except EOFError:
        return
    except GemmaryError as error:
        _send(error, answers)
    except Exception as error:
        _send(GemmaryError(f"expected a program that runs, got {type(error).__name__}: {error}"), answers)


def peak_bytes() -> int:
    """The most bytes that this process held resident.

    >>> 1_000_000 < peak_bytes() < 1_000_000_000_000
    True
    """
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says on Linux begins with the memory of the parent
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Start(NamedTuple):
    """Seconds from starting a process to its first token, and the bytes it had then held resident at most.

    >>> Start(seconds=0.7, peak_bytes=400_000_000).seconds
    0.7
    """

    seconds: float
    peak_bytes: int


def start(opener: Opener, *, max_length: int, prompt: Prompt = "The capital of France is") -> Start:
    """Start a program as its user would, with room for one sequence, and wait for its first token.

    >>> import gemmary
    >>> start(partial(Ours, partial(gemmary.load, "gemma-2-2c")), max_length=8)
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected a path or the name of a model, got 'gemma-2-2c': did you mean ...
    """
    began = time.perf_counter()
    with Process(opener, num_slots=1, max_length=max_length) as process:
        answer = process.ask([prompt], 1)
        return Start(time.perf_counter() - began, answer.peak_bytes)
