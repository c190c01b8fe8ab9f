# SPDX-License-Identifier: Apache-2.0
"""The child of the sandbox: it builds the walls, gives up its rights, and runs the program behind them.

    main ──fork──► first process of the namespaces ──fork──► rights and limits, then "ready",
    kills what     a root folder of its own;                 the program, and at its end the token,
    is left        then it only waits                        which until then lies in a socket

Without namespaces there is no first process, and the walls are Landlock for files and seccomp for sockets. The file
runs by its path, so it imports the standard library alone, and little of that: every program pays for it.
"""

import ctypes
import marshal
import os
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

READY = b"ready "  # said when the walls stand and the program begins

_NEW_USER = 0x10000000  # of unshare(2); the others: mount, UTS, IPC, process and network namespaces
_NEW_OTHERS = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000  # of mount(2)
_READ_ONLY, _NO_SUID, _NO_DEVICES = 1, 2, 4  # of mount(2) and mount_setattr(2) alike
_DEATH_SIGNAL, _DUMPABLE, _SECCOMP, _SUBREAPER, _NO_NEW_RIGHTS = 1, 4, 22, 36, 38  # of prctl(2)
_MOUNT_SETATTR, _CREATE_RULES, _ADD_RULE, _OBEY_RULES = 442, 444, 445, 446  # system calls, on every architecture
_SOCKET = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}  # seccomp's name of the machine, and socket(2)
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/nix/store")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def main() -> None:
    """Do the job that comes on stdin; exit as the program does, or with 128 more than the signal that ended it.

    >>> main.__name__
    'main'
    """
    job = marshal.load(sys.stdin.buffer)
    nothing, nobody = os.pipe()  # whose end comes at once
    os.dup2(nothing, 0)
    os.close(nothing)
    os.close(nobody)
    os.umask(0o022)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGCHLD))
    idle_users = (2**30 + os.getpid(), 65534)  # one that is nobody's, or nobody where numbers end before that
    walled = "namespaces" in job["layers"]
    if walled:
        _unshare()
    elif sys.platform == "linux":
        _call("prctl", _SUBREAPER, 1)
    if sys.platform == "linux":
        _call("prctl", _DEATH_SIGNAL, signal.SIGTERM)
    if child := os.fork():
        status = _watch(child)
        os._exit(status if walled else _sweep(child, status))
    with suppress(OSError):  # should memory run out, this is to go first; not every machine can be told
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    if walled:
        _call("prctl", _DEATH_SIGNAL, signal.SIGKILL)
        _furnish(Path(job["folder"]), job["limits"])
        if child := os.fork():
            os._exit(_reap(child))
    else:
        os.setpgid(0, 0)
        os.chdir(job["folder"])
    os.environ["HOME"] = os.environ["TMPDIR"] = str(Path.cwd())
    _confine(job["layers"], job["limits"], idle_users)
    _execute(job["source"], job["line"])


def _call(name: str, *arguments: int | bytes | None) -> int:
    """Call a function of the C library; raise OSError where it fails."""
    values = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = getattr(ctypes.CDLL(None, use_errno=True), name)(*values)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def _watch(child: int) -> int:
    """Wait for the child; on SIGTERM kill it."""
    done = status = 0
    while not done:
        if signal.sigwait((signal.SIGTERM, signal.SIGCHLD)) == signal.SIGTERM:
            os.kill(child, signal.SIGKILL)
        done, status = os.waitpid(child, os.WNOHANG)
    return _exit_status(status)


def _sweep(child: int, status: int) -> int:
    """Kill what the child left behind: its group, then, as Linux gives us every orphan, each of ours until none is."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    orphans = Path(f"/proc/self/task/{os.getpid()}/children")
    with suppress(ChildProcessError, FileNotFoundError):
        while True:
            for orphan in orphans.read_text("ascii").split():
                os.kill(int(orphan), signal.SIGKILL)
            os.wait()
    return status


def _reap(child: int) -> int:
    """Wait for the child, and for orphans before it; when the first process ends, the kernel kills all others."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # from inside, a first process gets no signal it has no handler for
    done = status = 0
    while done != child:
        done, status = os.wait()
    return _exit_status(status)


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _unshare() -> None:
    """Leave the namespaces of the machine; who is not root may do so in a user namespace."""
    user, group = os.getuid(), os.getgid()
    try:
        _call("unshare", _NEW_OTHERS)
    except PermissionError:
        _call("unshare", _NEW_OTHERS | _NEW_USER)
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", "ascii")


def _mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    _call("mount", source.encode(), os.fsencode(target), kind.encode(), flags, options.encode())


def _furnish(root: Path, limits: dict[str, int]) -> None:
    """A root folder of its own: the system and Python to read, an empty /tmp to write in, nothing else of the machine.

    It is built on the folder outside, which nobody but us sees covered.
    """
    _mount("none", Path("/"), "", _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", 0, "mode=755")
    for name in ("tmp", "proc", "dev"):
        (root / name).mkdir()
    size = f"size={limits['folder']},nr_inodes=4096,mode=1777"
    _mount("tmpfs", root / "tmp", "tmpfs", _NO_SUID | _NO_DEVICES, size)
    python = sorted({os.path.realpath(sys.base_prefix), sys.base_prefix, sys.prefix})
    shown: list[Path] = []
    for path in map(Path, (*_SYSTEM, *_DEVICES, *python)):
        if path.exists() and not any(path.is_relative_to(other) for other in shown):
            _show(path, root)
            shown.append(path)
    (root / "dev/shm").symlink_to("/tmp")
    with suppress(PermissionError):  # a container that hides parts of /proc gets no new one
        _mount("proc", root / "proc", "proc", _NO_SUID | _NO_DEVICES)
    _set_flags(root, 0x8000, on=_READ_ONLY | _NO_SUID)  # and all that is mounted beneath
    _set_flags(root / "tmp", 0, off=_READ_ONLY)
    os.chroot(root)  # the kernel lets nobody in one make a user namespace, and so regain rights
    os.chdir("/tmp")


def _show(path: Path, root: Path) -> None:
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target.symlink_to(path.readlink())
        return
    target.mkdir() if path.is_dir() else target.touch()
    _mount(str(path), target, "", _BIND | _RECURSIVE)


def _set_flags(target: Path, scope: int, *, on: int = 0, off: int = 0) -> None:
    values = struct.pack("=QQQQ", on, off, 0, 0)
    _call("syscall", _MOUNT_SETATTR, -100, os.fsencode(target), scope, values, len(values))


def _confine(layers: tuple[str, ...], limits: dict[str, int], idle_users: tuple[int, ...]) -> None:
    """Give up every right that the program does not need, for ever."""
    import resource

    if os.getuid() == 0:
        _step_down(idle_users)
    if sys.platform == "linux":
        _call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))
        _call("prctl", _NO_NEW_RIGHTS, 1, 0, 0, 0)
        _call("prctl", _DUMPABLE, 1)  # its own /proc/self, which a change of user closes
    if "landlock" in layers:
        _lock_files()
    if "seccomp" in layers:
        _deny_sockets()
    bounds = {"CPU": limits["seconds"], "FSIZE": limits["folder"], "NOFILE": limits["files"], "CORE": 0}
    if sys.platform == "linux":  # macOS knows no such limit of memory, and counts the processes of all programs
        bounds |= {"AS": limits["memory"], "NPROC": limits["processes"] + _running()}
    for name, value in bounds.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        known = resource.getrlimit(kind)[1]
        hard = value + 1 if name == "CPU" else value  # SIGXCPU a second before SIGKILL
        hard = hard if known == resource.RLIM_INFINITY else min(hard, known)
        resource.setrlimit(kind, (min(value, hard), hard))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGCHLD))


def _step_down(idle_users: tuple[int, ...]) -> None:
    """Become a user that owns nothing: limits of processes do not bind root."""
    for user in idle_users:
        with suppress(OSError):
            os.chown(".", user, user)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            return
    raise PermissionError("no other user to become")


def _running() -> int:
    """How many other threads of this user can be seen: the kernel counts them as well."""
    found = 0
    for threads in Path("/proc").glob("[0-9]*/task"):
        with suppress(OSError):  # ended by now
            found += len(list(threads.iterdir())) if threads.stat().st_uid == os.getuid() else 0
    return max(0, found - 1)


def _lock_files() -> None:
    """Landlock: writing in this folder and to /dev/null alone, and no signals to processes outside."""
    version = _call("syscall", _CREATE_RULES, None, 0, 1)
    write = 0x1FF2 | (version >= 2) << 13 | (version >= 3) << 14
    rules = struct.pack("=QQQ", write, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    fence = _call("syscall", _CREATE_RULES, rules, len(rules), 0)
    for path, rights in ((".", write), (os.devnull, write & 0x4002)):
        place = os.open(path, os.O_PATH)
        _call("syscall", _ADD_RULE, fence, 1, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    _call("syscall", _OBEY_RULES, fence, 0)
    os.close(fence)


def _deny_sockets() -> None:
    """seccomp: no new sockets, which io_uring can make as well; another architecture's numbers end the program."""
    machine, open_socket = _SOCKET[os.uname().machine]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    lines = (
        (load, 0, 0, 4),
        (equal, 1, 0, machine),
        (answer, 0, 0, 0x80000000),
        (load, 0, 0, 0),
        (equal, 3, 0, open_socket),
        (equal, 2, 0, 425),  # io_uring_setup
        (at_least, 1, 0, 0x40000000),  # the numbers of x32
        (answer, 0, 0, 0x7FFF0000),  # allowed
        (answer, 0, 0, 0x00050000 | 13),  # EACCES
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    _call("prctl", _SECCOMP, 2, struct.pack("HP", len(lines), ctypes.addressof(code)))


def _execute(source: str, line: int) -> None:
    """Run the program as the main module; a copy of this process that reaches the end is not the program."""
    module = sys.modules["__main__"] = ModuleType("__main__")
    process = os.getpid()
    os.write(line, READY)
    exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    if os.getpid() == process:
        os.write(line, os.read(line, 64))


if __name__ == "__main__":
    main()
