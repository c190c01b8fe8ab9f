# SPDX-License-Identifier: Apache-2.0
"""The sandbox: hostile programs, each looked at from outside, and honest ones that must not notice it.

What a hostile program could harm stands in a scene: a file of ours, a path that must stay empty, listeners that must
hear nothing, a process that must live and keep its secret. A case names the layers of which one is enough to hold it.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from gemmary.base.errors import GemmaryError, InputError
from gemmary.evaluate import sandbox
from gemmary.evaluate.sandbox import Limits, isolation, run

if sys.platform == "win32":
    pytest.skip("needs Linux or macOS", allow_module_level=True)

BOUNDED = Limits(seconds=20.0, memory=256 << 20, folder=4 << 20)
SHORT = Limits(seconds=1.0, memory=256 << 20, folder=4 << 20)  # for what runs until it is ended
ANY = frozenset({"limits", "namespaces", "landlock", "seccomp"})
KERNEL = ANY if sys.platform == "linux" else frozenset[str]()  # limits of memory and processes, and orphans found
FILES, NETWORK, PROCESSES = {"namespaces", "landlock"}, {"namespaces", "seccomp"}, {"namespaces"}

PRELUDE = """
import ctypes, os, resource, shutil, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(act, *arguments):
    try:
        return act(*arguments)
    except Exception as error:
        print(type(error).__name__)
def write(path):
    with open(path, "a") as file:
        file.write("hostile")
"""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a program could harm."""

    folder: Path  # of temporary folders
    file: Path
    outside: Path
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket
    abstract: socket.socket
    victim: "subprocess.Popen[bytes]"
    memory: "ctypes.Array[ctypes.c_char]"

    def source(self, program: str) -> str:
        """The program with the names of what it attacks before it."""
        names = {
            "os.environ['MARK']": str(self.folder),
            "FILE": str(self.file),
            "OUTSIDE": str(self.outside),
            "TCP": self.tcp.getsockname(),
            "UDP": self.udp.getsockname(),
            "UNIX": self.unix.getsockname(),
            "ABSTRACT": self.abstract.getsockname() if sys.platform == "linux" else "none",
            "TEST": os.getpid(),
            "VICTIM": self.victim.pid,
            "ADDRESS": ctypes.addressof(self.memory),
        }
        return PRELUDE + "".join(f"{name} = {value!r}\n" for name, value in names.items()) + program

    def check(self) -> None:
        """All is as it was, and nothing of the program is left."""
        assert survivors(self.folder) == []
        assert list(self.folder.iterdir()) == []
        assert self.file.read_text("utf-8") == "ours"
        status = self.file.stat()
        assert (status.st_mode & 0o777, status.st_nlink) == (0o644, 1)
        assert sorted(path.name for path in self.file.parent.iterdir()) == ["folder", "ours.txt"]
        assert not self.outside.exists()
        for listener in (self.tcp, self.udp, self.unix, self.abstract):
            with pytest.raises(BlockingIOError):
                listener.recv(1) if listener is self.udp else listener.accept()
        assert self.victim.poll() is None
        assert self.memory.value == b"ours"


def survivors(folder: Path) -> list[str]:
    """The processes whose environment names the folder: a launcher's does, and so do those of all that it starts."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if bytes(folder) in (process / "environ").read_bytes():
                found.append(process.name)
    return found


@pytest.fixture(scope="module")
def victim() -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-I", "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command, env={"SECRET": "of-the-victim"}) as process:
        yield process
        process.kill()


@pytest.fixture
def scene(tmp_path: Path, victim: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    folder, file, outside = tmp_path / "folder", tmp_path / "ours.txt", Path(tempfile.gettempdir())
    folder.mkdir()
    file.write_text("ours", "utf-8")
    file.chmod(0o644)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("SECRET", "of-the-test")
    with ExitStack() as stack:
        tcp, udp, unix, abstract = (
            stack.enter_context(socket.socket(family, kind))
            for family, kind in (
                (socket.AF_INET, socket.SOCK_STREAM),
                (socket.AF_INET, socket.SOCK_DGRAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
                (socket.AF_UNIX, socket.SOCK_STREAM),
            )
        )
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        short = stack.enter_context(tempfile.TemporaryDirectory(dir=outside))  # a socket's path has 100 bytes at most
        Path(short).chmod(0o755)
        unix.bind(f"{short}/socket")
        Path(f"{short}/socket").chmod(0o777)
        abstract.bind(f"\0gemmary-{os.getpid()}" if sys.platform == "linux" else f"{short}/other")
        for each in (tcp, unix, abstract):
            each.listen()
        for each in (tcp, udp, unix, abstract):
            each.setblocking(False)
        yield Scene(
            folder=folder,
            file=file,
            outside=outside / f"gemmary-outside-{os.getpid()}",
            tcp=tcp,
            udp=udp,
            unix=unix,
            abstract=abstract,
            victim=victim,
            memory=ctypes.create_string_buffer(b"ours"),
        )


class Case(NamedTuple):
    """A program, how it may end, and the layers of which one is enough to hold it."""

    program: str
    ends: str
    held_by: set[str] | frozenset[str] = ANY
    prints: str = ""


HOSTILE = {
    # time and memory
    "infinite loop": Case("while True: pass", "timed out"),
    "sleep for ever": Case("time.sleep(1e6)", "timed out"),
    "stops itself": Case("os.kill(os.getpid(), signal.SIGSTOP)", "timed out"),
    "ignores every signal": Case(
        "for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(number, signal.SIG_IGN)\n"
        "while True: time.sleep(1)",
        "timed out",
    ),
    "ten gigabytes": Case("x = bytearray(10 << 30)", "failed", KERNEL, "MemoryError"),
    "slow growth of memory": Case("x = []\nwhile True: x.append(bytearray(1 << 20))", "failed", KERNEL, "MemoryError"),
    "recursion": Case("def f(): return f() + 1\nf()", "failed", prints="RecursionError"),
    "recursion without a limit": Case(
        "sys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr([self])\nrepr(A())",
        "killed, failed",
        KERNEL,
    ),
    "raises its own limits": Case(
        "for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):\n"
        "    attempt(resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "x = bytearray(10 << 30)",
        "failed",
        KERNEL,
        "MemoryError",
    ),
    # processes
    "many forks": Case(
        "made = 0\ntry:\n    while made < 100:\n        if not os.fork(): time.sleep(60)\n        made += 1\n"
        "except BlockingIOError: pass\nassert made < 100",
        "passed",
        KERNEL,
    ),
    "fork bomb": Case(
        "children = []\n"
        "while len(children) < 100:\n"  # limits that do not bind show here, where the machine can bear it
        "    try: children.append(os.fork())\n    except OSError: break\n"
        "    if not children[-1]: time.sleep(60)\n"
        "assert len(children) < 100\n"
        "for child in children: os.kill(child, signal.SIGKILL); os.wait()\n"
        "while True: attempt(os.fork)",
        "timed out",
        KERNEL,
    ),
    "thread bomb": Case(
        "made = 0\n"
        "try:\n"
        "    while made < 100: threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); made += 1\n"
        "except RuntimeError: pass\n"
        "assert made < 100",
        "passed",
        KERNEL,
    ),
    "fork that goes on": Case("if os.fork(): time.sleep(60)", "timed out"),
    "daemon that writes later": Case(
        "if not os.fork():\n    os.setsid()\n    time.sleep(1)\n    write(FILE); write(OUTSIDE); os._exit(0)",
        "passed",
        KERNEL,
    ),
    "double fork without ties": Case(
        "if not os.fork():\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
        "    signal.signal(signal.SIGHUP, signal.SIG_IGN); os.closerange(0, 64)\n    while True: time.sleep(1)",
        "passed",
        KERNEL,
    ),
    "a chain of forks": Case("while True:\n    if os.fork(): os._exit(0)", "failed", KERNEL),
    "a shell left behind": Case("subprocess.Popen(['/bin/sh', '-c', 'sleep 60 & sleep 60'])", "passed"),
    "kills its parent": Case("attempt(os.kill, os.getppid(), signal.SIGKILL)\ntime.sleep(60)", "timed out", PROCESSES),
    "kills everything": Case(
        "if len([name for name in os.listdir('/proc') if name.isdigit()]) < 5: attempt(os.kill, -1, signal.SIGKILL)",
        "passed",
        PROCESSES,
        "ProcessLookupError",
    ),
    "kills another's process": Case("attempt(os.kill, VICTIM, signal.SIGKILL)", "passed", PROCESSES, "ProcessLookup"),
    "signals the test": Case("attempt(os.kill, TEST, signal.SIGUSR1)", "passed", PROCESSES, "ProcessLookupError"),
    "traces the test": Case(
        "print(libc.ptrace(16, TEST, 0, 0), libc.ptrace(16, os.getppid(), 0, 0))", "passed", FILES, "-1"
    ),
    "writes in the test's memory": Case(
        "def poke():\n    with open(f'/proc/{TEST}/mem', 'r+b', 0) as file: file.seek(ADDRESS); file.write(b'evil')\n"
        "attempt(poke)",
        "passed",
        FILES,
        "Error",
    ),
    "reads secrets": Case(
        "import glob\n"
        "def read(path):\n    with open(path, 'rb') as file: return file.read()\n"
        "found = [attempt(read, path) or b'' for path in glob.glob('/proc/[0-9]*/environ')]\n"
        "assert 'SECRET' not in os.environ and not any(b'SECRET' in each for each in found)",
        "passed",
        FILES,
    ),
    # network
    "TCP": Case("attempt(lambda: socket.create_connection(TCP, 2).send(b'x'))", "passed", NETWORK, "Error"),
    "UDP": Case(
        "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', UDP))",
        "passed",
        NETWORK,
        "Error",
    ),
    "DNS": Case("attempt(socket.getaddrinfo, 'example.com', 80)", "passed", NETWORK, "gaierror"),
    "UNIX socket": Case("attempt(lambda: socket.socket(socket.AF_UNIX).connect(UNIX))", "passed", NETWORK, "Error"),
    "abstract UNIX socket": Case(
        "attempt(lambda: socket.socket(socket.AF_UNIX).connect(ABSTRACT))", "passed", NETWORK, "Error"
    ),
    "raw socket": Case("attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)", "passed", NETWORK, "Error"),
    # files
    "writes at home": Case(
        "import pwd\nfor home in {'/root', pwd.getpwuid(0).pw_dir, os.path.dirname(FILE)}:\n"
        "    attempt(write, home + '/gemmary-hostile')",
        "passed",
        FILES,
        "Error",
    ),
    "writes elsewhere in /tmp": Case("attempt(write, OUTSIDE)", "passed", FILES),
    "overwrites": Case("attempt(write, FILE)", "passed", FILES, "Error"),
    "truncates": Case("attempt(os.truncate, FILE, 0)", "passed", FILES, "Error"),
    "deletes": Case("attempt(os.unlink, FILE)\nshutil.rmtree(os.path.dirname(FILE), True)", "passed", FILES, "Error"),
    "renames": Case("attempt(os.rename, FILE, FILE + '.gone')", "passed", FILES, "Error"),
    "chmod": Case("attempt(os.chmod, FILE, 0o777)", "passed", {"namespaces"}, "Error"),
    "writes through a symlink": Case(
        "attempt(os.symlink, FILE, 'link')\nattempt(write, 'link')", "passed", FILES, "Error"
    ),
    "writes through a hard link": Case(
        "attempt(os.link, FILE, 'hard')\nattempt(write, 'hard')", "passed", FILES, "Error"
    ),
    "writes without Python": Case("print(libc.open(FILE.encode(), os.O_WRONLY | os.O_TRUNC))", "passed", FILES, "-1"),
    "writes in Python's library": Case(
        "attempt(write, os.path.dirname(os.__file__) + '/os.py')", "passed", FILES, "Error"
    ),
    "one gigabyte in a file": Case(
        "with open('big', 'wb', 0) as file:\n    while True: file.write(bytes(1 << 20))", "failed", prints="OSError"
    ),
    "many small files": Case(
        "made = 0\ntry:\n    for made in range(20000): open(f'{made}', 'w').close()\nexcept OSError: pass\n"
        "assert made < 5000",
        "passed",
        {"namespaces"},
    ),
    "many open files": Case("kept = [open('/dev/null') for _ in range(1000)]", "failed", prints="Too many open files"),
    "special files": Case("attempt(os.mknod, 'disk', 0o60666, os.makedev(254, 0))", "passed", prints="PermissionError"),
    "kernel settings": Case(
        "for path in ('/proc/sys/kernel/hostname', '/proc/sysrq-trigger', '/proc/sys/user/max_user_namespaces'):\n"
        "    attempt(write, path)\n"
        "print(libc.sethostname(b'x', 1))",
        "passed",
        FILES,
        "-1",
    ),
    "mounts": Case(
        "print(libc.unshare(0x10020000), libc.mount(b'none', b'/tmp', b'tmpfs', 0, None), libc.umount2(b'/tmp', 2))",
        "passed",
        {"namespaces"},
        "-1 -1 -1",
    ),
    "remounts to write": Case(
        "print(libc.mount(None, b'/', None, 0x20, None), libc.mount(None, b'/usr', None, 0x1020, None))\n"
        "attempt(write, '/usr/gemmary-hostile')",
        "passed",
        {"namespaces"},
        "-1 -1",
    ),
    "leaves its root": Case(
        "os.mkdir('cell'); attempt(os.chroot, 'cell')\nfor _ in range(20): os.chdir('..')\n"
        "attempt(write, OUTSIDE.lstrip('/')); attempt(write, FILE.lstrip('/')); attempt(os.listdir, '/proc/1/root')",
        "passed",
        FILES,
        "PermissionError",
    ),
    # the verdict
    "os._exit before the assertion": Case("os._exit(0)\nassert False", "failed"),
    "sys.exit before the assertion": Case("sys.exit(0)\nassert False", "failed"),
    "becomes another program": Case("os.execv('/bin/true', ['true'])", "failed"),
    "a copy reaches the end": Case("if os.fork(): os.wait(); os._exit(0)", "failed"),
    "a copy passes, the program fails": Case("if os.fork(): os.wait(); assert False", "failed"),
    "says that it passed": Case(
        "for line in range(3, 64):\n    attempt(os.write, line, b'ready passed' * 9)\nos._exit(0)", "failed"
    ),
    "closes every file": Case("os.closerange(0, 64)", "failed"),
    "ends by a signal": Case("os.kill(os.getpid(), signal.SIGTERM)", "killed"),
    "segfault": Case("ctypes.string_at(0)", "killed"),
    # output
    "endless print": Case("while True: print('x' * 1000)", "timed out", prints="xxx"),
    "a line without end": Case("while True: os.write(1, b'x' * 65536)", "timed out", prints="xxx"),
    "huge print to stderr": Case("sys.stderr.write('x' * 50_000_000 + 'end')", "passed", prints="xxxend"),
    "bytes that are no text": Case("os.write(1, bytes(range(256)) * 100)", "passed"),
}
FALLBACK = ("limits", "landlock", "seccomp")
HELD_BY_FALLBACK = (
    "sleep for ever",
    "slow growth of memory",
    "fork bomb",
    "thread bomb",
    "fork that goes on",
    "daemon that writes later",
    "double fork without ties",
    "a chain of forks",
    "a shell left behind",
    "writes in the test's memory",
    "reads secrets",
    "TCP",
    "UDP",
    "abstract UNIX socket",
    "overwrites",
    "deletes",
    "renames",
    "writes elsewhere in /tmp",
    "writes through a symlink",
    "writes through a hard link",
    "one gigabyte in a file",
)


def examine(scene: Scene, case: Case, layers: tuple[str, ...], *, wait: float = 0.0) -> None:
    """Run a program; look at the scene first, perhaps later, and then at what the program says."""
    limits = SHORT if case.ends == "timed out" else BOUNDED
    outcome = sandbox._run(scene.source(case.program), limits, layers)
    time.sleep(wait)
    scene.check()
    assert outcome.status in case.ends.split(", "), outcome
    assert case.prints in outcome.output
    assert len(outcome.output) <= 2000


@pytest.fixture
def no_signal() -> Iterator[None]:
    """SIGUSR1 would be seen."""
    arrived: list[int] = []
    known = signal.signal(signal.SIGUSR1, lambda number, _: arrived.append(number))
    yield
    signal.signal(signal.SIGUSR1, known)
    assert not arrived


@pytest.mark.usefixtures("no_signal")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_harms_nothing(name: str, scene: Scene) -> None:
    case = HOSTILE[name]
    if case.held_by.isdisjoint(isolation()):
        pytest.skip(
            f"needs {' or '.join(sorted(case.held_by)) or 'Linux'}, got {' and '.join(isolation())} of this machine"
        )
    examine(scene, case, isolation(), wait=1.2 if name == "daemon that writes later" else 0.0)


@pytest.mark.usefixtures("no_signal")
@pytest.mark.skipif(sys.platform != "linux", reason="needs Landlock and seccomp")
@pytest.mark.parametrize("name", HELD_BY_FALLBACK)
def test_without_namespaces_other_walls_hold(name: str, scene: Scene) -> None:
    try:
        if sandbox._run("import tempfile", BOUNDED, FALLBACK).status != "passed":
            pytest.skip("needs a Python that other users can read, since root becomes another")
    except GemmaryError as error:
        pytest.skip(str(error))
    examine(scene, HOSTILE[name], FALLBACK, wait=1.2 if name == "daemon that writes later" else 0.0)


@pytest.mark.parametrize(
    ("status", "program", "output"),
    [
        ("passed", "print('hello')", "hello\n"),
        ("passed", "", ""),
        ("passed", "print('grüße')", "grüße\n"),
        ("passed", "assert __name__ == '__main__'", ""),
        ("passed", "import sys\nassert sys.stdin.read() == ''", ""),
        ("passed", "import sys, io\nsys.stdout = io.StringIO()\nprint('hidden')", ""),
        ("passed", "import ctypes\nassert ctypes.CDLL(None).getpid() > 0", ""),
        ("passed", "import tempfile\nwith tempfile.TemporaryFile() as f: assert f.write(b'x' * 1000) == 1000", ""),
        ("passed", "import os\nwith open('own', 'w') as f: f.write('x')\nassert 'own' in os.listdir()", ""),
        ("failed", "assert 1 + 1 == 3, 'wrong sum'", "AssertionError: wrong sum\n"),
        ("failed", "def f(:", "SyntaxError: invalid syntax\n"),
        ("failed", "input()", "EOFError: EOF when reading a line\n"),
        ("failed", "x = '\ud800'", "surrogates not allowed\n"),
        ("failed", "x = 1\0", "null bytes\n"),
        ("failed", "import sys\nsys.exit(3)", ""),
    ],
)
def test_an_honest_program_runs_as_anywhere(status: str, program: str, output: str, scene: Scene) -> None:
    outcome = run(program, limits=BOUNDED)
    assert outcome.status == status, outcome
    assert outcome.output.endswith(output) if status == "failed" else outcome.output == output
    scene.check()


def test_processes_and_queues_within_the_limits_work() -> None:
    program = """
import multiprocessing

def square(x):
    return x * x

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(square, [1, 2, 3]) == [1, 4, 9]
"""
    if "namespaces" not in isolation():
        pytest.skip("needs a /dev/shm of its own, for locks that processes share")
    outcome = run(program, limits=BOUNDED)
    assert outcome.status == "passed", outcome


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_a_program_starts_is_seen_until_the_run_ends(scene: Scene) -> None:
    program = scene.source("subprocess.run(['/bin/sleep', '60'])")
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(run, program, limits=SHORT)
        most = 0
        while not outcome.done():
            most = max(most, len(survivors(scene.folder)))
            time.sleep(0.01)
    assert outcome.result().status == "timed out"
    assert most >= (4 if "namespaces" in isolation() else 3)
    scene.check()


def test_many_threads_run_programs_at_once(scene: Scene) -> None:
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda number: run(f"print({number})", limits=BOUNDED), range(8)))
    assert [outcome.output for outcome in outcomes] == [f"{number}\n" for number in range(8)]
    scene.check()


def test_the_end_of_the_output_is_kept() -> None:
    assert run("for i in range(10000): print(i)", limits=BOUNDED).output[-10:] == "9998\n9999\n"


def test_limits_that_leave_nothing_are_refused() -> None:
    for seconds in (0.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"expected seconds > 0 and finite, got {seconds}: give the program"):
            Limits(seconds=seconds)


def test_windows_is_told_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(InputError, match="expected Linux or macOS to run programs in, got Windows: use WSL 2"):
        sandbox._run("", BOUNDED, ("limits",))


def test_walls_that_cannot_be_built_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))  # no launcher beside it
    with pytest.raises(GemmaryError, match=r"expected limits around a program, got .*No such file or directory"):
        sandbox._run("", BOUNDED, ("limits",))
