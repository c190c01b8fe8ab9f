# SPDX-License-Identifier: Apache-2.0
"""A sandbox for programs that a model wrote: no network, no files but its own, little memory and time, no survivors.

    run(source) ─► python -I launcher.py ─► walls ─► the program ─► "passed" | "failed" | "timed out" | "killed"
                        ▲                                 │
                        └── a socket that holds a token ◄─┘ sent back only when the source has run to its end

A program passes when it runs to its end and exits with 0: sys.exit(0) or os._exit(0) before the last line is no pass.
The token is no secret from a program that looks for its socket on purpose. The walls hold all the same; the verdict is
then its own, as with a program that redefines what its assertions compare.
"""

import marshal
import math
import os
import secrets
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from gemmary.base.errors import GemmaryError, InputError
from gemmary.evaluate.launcher import READY

_LAYERS = (  # the most first
    ("limits", "namespaces"),
    ("limits", "landlock", "seccomp"),
    ("limits", "landlock"),
    ("limits", "seccomp"),
    ("limits",),
)
_TAIL = 2000  # characters of output that are kept
_START = 60.0  # seconds in which a launcher must have built its walls
_OUT_OF_CPU = 128 + 24  # SIGXCPU


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use.

    >>> Limits(seconds=2.0).memory
    536870912
    >>> Limits(processes=0)
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected processes > 0 and finite, got 0: give the program at least one
    """

    seconds: float = 10.0  # by the clock, and of computing in each process
    memory: int = 512 << 20  # bytes of address space in each process; macOS has no such limit
    processes: int = 16  # and threads, all together
    folder: int = 64 << 20  # bytes in all of its files; without namespaces, in each of them
    files: int = 64  # open ones

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise InputError(f"expected {name} > 0 and finite, got {value}: give the program at least one")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended, the end of what it printed, and the seconds it took.

    >>> Outcome(status="passed", output="", seconds=0.1).status
    'passed'
    """

    status: Literal["passed", "failed", "timed out", "killed"]  # killed: by a signal, such as that of a limit
    output: str
    seconds: float


class _WallError(GemmaryError):
    """This machine does not give the layers that were asked for."""


def run(source: str, *, limits: Limits = Limits()) -> Outcome:
    """Run a program where it can do no harm; when this returns, nothing of it is left.

    >>> run("assert sum([1, 2]) == 3").status
    'passed'
    >>> outcome = run("print('half way'); import sys; sys.exit(0); assert False")
    >>> outcome.status, outcome.output
    ('failed', 'half way\\n')
    """
    return _run(source, limits, isolation())


@cache
def isolation() -> tuple[str, ...]:
    """The layers that this machine gives: tried once, the most first.

    limits      memory, computing time, processes, open files, size of files; root becomes a user that owns nothing
    namespaces  its own network (none), processes, and root folder: only the system and Python, read-only, and a /tmp
    landlock    in their place: writes in the program's folder alone; since Linux 6.12, signals to its own alone
    seccomp     in their place: no sockets

    With limits alone a program can do what this user can: write, reach the network, end other processes. On macOS they
    do not hold memory and processes either, and what starts a session of its own outlives its run.

    >>> isolation()[0]
    'limits'
    """
    reason = ""
    for layers in _LAYERS:
        try:
            outcome = _run("import tempfile", Limits(), layers)
        except _WallError as error:
            reason = str(error)
            continue
        if outcome.status == "passed":
            return layers
        reason = outcome.output
    raise GemmaryError(f"expected a machine that can limit a program, got: {reason}")


class _Course(NamedTuple):
    """What a run looked like from outside."""

    said: bytes  # on the socket
    output: bytes
    seconds: float
    late: bool


def _run(source: str, limits: Limits, layers: tuple[str, ...]) -> Outcome:
    if sys.platform == "win32":
        raise InputError("expected Linux or macOS to run programs in, got Windows: use WSL 2 or a Linux container")
    token = secrets.token_bytes(16)
    ours, theirs = socket.socketpair()
    ours.sendall(token)
    with ours, tempfile.TemporaryFile() as job, tempfile.TemporaryDirectory(prefix="gemmary-") as folder:
        bounds = asdict(limits) | {"seconds": math.ceil(limits.seconds)}
        with theirs:
            line = theirs.fileno()
            marshal.dump({"source": source, "layers": layers, "limits": bounds, "folder": folder, "line": line}, job)
            job.seek(0)
            child = _launch(job.fileno(), line, folder)
        with child:
            try:
                course = _follow(child, ours, limits.seconds)
            finally:
                child.terminate()  # it kills the rest before it ends
    output = course.output.decode("utf-8", "replace")[-_TAIL:]
    if not course.said.startswith(READY):
        got = output.strip().rpartition("\n")[2]
        raise _WallError(f"expected {' and '.join(layers)} around a program, got {got!r}: try another machine")
    return Outcome(status=_status(course, READY + token, child.returncode), output=output, seconds=course.seconds)


def _launch(job: int, line: int, folder: str) -> "subprocess.Popen[bytes]":
    launcher = Path(__file__).with_name("launcher.py")
    return subprocess.Popen(
        [sys.executable, "-I", "-X", "utf8", str(launcher)],
        stdin=job,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[line],
        cwd="/",
        env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder, "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )


def _follow(child: "subprocess.Popen[bytes]", line: socket.socket, seconds: float) -> _Course:
    """Read what is said and printed, holding little of it, until the child ends; end it when its time is over."""
    assert child.stdout is not None
    said, output, late = b"", b"", False
    began = time.monotonic()
    deadline = began + _START
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        selector.register(line, selectors.EVENT_READ)
        while child.stdout in selector.get_map():
            events = selector.select(0.05)
            if child.poll() is not None and (late or not events):
                break  # what still holds the pipe has left us
            for key, _ in events:
                data = _read(key.fd)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stdout:
                    output = (output + data)[-4 * _TAIL :]
                else:
                    if not said:
                        began = time.monotonic()
                        deadline = began + seconds
                    said = (said + data)[:64]
            if not late and time.monotonic() > deadline:
                late = True
                child.terminate()
    return _Course(said, output, time.monotonic() - began, late)


def _read(source: int) -> bytes:
    try:
        return os.read(source, 1 << 16)
    except ConnectionResetError:  # closed with the token unread
        return b""


def _status(course: _Course, pledge: bytes, code: int) -> Literal["passed", "failed", "timed out", "killed"]:
    if course.late or code == _OUT_OF_CPU:
        return "timed out"
    if code > 128 or code < 0:
        return "killed"
    return "passed" if code == 0 and course.said == pledge else "failed"
