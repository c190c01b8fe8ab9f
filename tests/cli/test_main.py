# SPDX-License-Identifier: Apache-2.0
"""How the command begins and ends: quickly, with the right status, one line for a mistake, a traceback for a bug."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmary.cli.main import app

SCRIPT = """
import sys, time
import gemmary.api
from gemmary.cli.main import main
from gemmary.generate.scripted import ScriptedGenerator

def reply(request):
    {reply}

gemmary.api.load = lambda name, **settings: ScriptedGenerator(reply)
main()
"""


def gemmary(*arguments: str | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The real command, in a process of its own."""
    return subprocess.run([sys.executable, "-m", "gemmary", *arguments], input=stdin, capture_output=True, timeout=60)


def with_reply(body: str, *arguments: str) -> list[str]:
    """A command line whose model computes its reply with the given Python."""
    return [sys.executable, "-c", SCRIPT.format(reply=body), *arguments]


def test_the_version_is_the_packages(command: Callable[..., tuple[int, str, str]]) -> None:
    import gemmary

    assert command("--version") == (0, f"gemmary {gemmary.__version__}\n", "")


def test_help_imports_neither_numpy_nor_a_framework() -> None:
    code = (
        "import json, sys\nfrom gemmary.cli.main import run\nstatus = run(['generate', '--help'])\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"numpy", "keras", "jax", "torch", "tensorflow", "rich"}.isdisjoint(json.loads(done.stderr))


def test_every_verb_has_help_without_examples_for_programmers(command: Callable[..., tuple[int, str, str]]) -> None:
    for info in app.registered_commands:
        assert info.callback is not None
        status, out, err = command(info.callback.__name__, "--help")
        assert (status, err) == (0, "")
        assert ">>>" not in out and out.count("\n") > 8


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("generate", ""), "expected a prompt, got an empty one: write some text, or pass the BOS id alone"),
        (("generate", "hi", "--temperature", "-1"), "expected temperature >= 0, got -1.0: use 0 for greedy"),
        (("generate", "hi", "-n", "0"), "expected max_tokens >= 1, got 0: ask for at least one token"),
        (("generate", "hi", "--stop", ""), "expected stop strings of at least one character, got an empty one: leave "),
        (("generate", "hi", "-m", "gemma-3-270n"), "expected a path or the name of a model, got 'gemma-3-270n': did "),
        (("chat", "--top-p", "0"), "expected top_p in (0, 1], got 0.0: use 1 to keep all tokens"),
        (("tokenize",), "expected a text or --ids, got neither: give a text, or - for stdin"),
        (("tokenize", "--ids", "2;3"), "expected token ids such as 2,651,9, got '2;3': write numbers"),
        (("inspect", "no/such/file"), "expected a path or the name of a model, got 'no/such/file': did you mean "),
        (("convert", "a", "pyproject.toml"), "expected a target that does not exist yet, got pyproject.toml: choose "),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: tuple[str, ...],
    line: str,
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"gemmary: {line}") and err.count("\n") == 1


def test_wrong_usage_is_status_2_and_says_what_was_perhaps_meant(
    command: Callable[..., tuple[int, str, str]],
) -> None:
    status, _, err = command("genrate", "hi")
    assert (status, "Did you mean 'generate'?" in err) == (2, True)
    status, _, err = command("generate", "hi", "--temprature", "1")
    assert (status, "--temperature" in err) == (2, True)
    status, _, err = command("generate", "hi", "--engine", "onnx")
    assert (status, "'auto', 'keras', 'native'" in err) == (2, True)
    assert command("generate")[0] == 2


def test_a_damaged_file_is_one_line(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 40)
    status, out, err = command("generate", "hi", "--model", str(path))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("gemmary: expected ")


@pytest.mark.slow
def test_text_that_is_not_utf8_is_one_line_from_an_argument_and_from_stdin() -> None:
    for done in (gemmary("generate", b"caf\xe9"), gemmary("generate", "-", stdin=b"caf\xe9")):
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.startswith(b"gemmary: expected ") and done.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_a_bug_keeps_its_traceback() -> None:
    done = subprocess.run(with_reply("raise ZeroDivisionError", "generate", "hi"), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.rstrip().endswith("ZeroDivisionError")


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_no_traceback() -> None:
    slow = with_reply("print('ready', flush=True); time.sleep(60)", "generate", "hi")
    with subprocess.Popen(slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        many = with_reply("return 'many words ' * 50_000", "generate", "hi", "--max-tokens", "100000")
        done = subprocess.run(many, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
