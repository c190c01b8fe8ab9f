# SPDX-License-Identifier: Apache-2.0
"""gemmary convert writes a whole model or nothing, and says how far it is."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gemmary.cli.progress import Progress
from gemmary.formats.adapter import Adapter, merged
from gemmary.formats.checkpoint import open_checkpoint
from gemmary.formats.peft_folder import write_adapter

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("target", "options"),
    [("folder", ()), ("model.gguf", ()), ("model.ckpt", ()), ("preset", ("--format", "keras"))],
)
def test_the_same_weights_arrive_in_every_format(
    target: str, options: tuple[str, ...], command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    status, out, err = command("convert", str(tiny_model), str(tmp_path / target), *options)
    assert (status, out) == (0, "")
    assert err.startswith(f"{tmp_path / target}: ") and err.count("\n") == 1
    old, new = open_checkpoint(tiny_model), open_checkpoint(tmp_path / target)
    assert new.config == old.config
    for path, read in old.tensors.items():
        np.testing.assert_array_equal(new.tensors[path](), read())


@pytest.mark.parametrize("target", ["folder", "model.gguf"])
def test_a_model_is_merged_with_its_adapter(
    target: str, command: Command, tiny_model: Path, random_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    base = open_checkpoint(tiny_model)
    adapter = random_adapter(base, is_dora=True)
    write_adapter(adapter, tmp_path / "adapter")
    found = command("convert", str(tiny_model), str(tmp_path / target), "--adapter", str(tmp_path / "adapter"))
    assert (found[0], found[1]) == (0, "")
    new, expected = open_checkpoint(tmp_path / target), merged(base, adapter)
    for path, read in expected.tensors.items():
        np.testing.assert_array_equal(new.tensors[path](), read())


def test_an_adapter_of_another_model_leaves_nothing_behind(
    command: Command, tiny_model: Path, random_adapter: Callable[..., Adapter], golden: Path, tmp_path: Path
) -> None:
    write_adapter(random_adapter(open_checkpoint(golden / "model")), tmp_path / "adapter")
    new = tmp_path / "new"
    status, out, err = command("convert", str(tiny_model), str(new), "--adapter", str(tmp_path / "adapter"))
    assert (status, out, err.count("\n"), new.exists()) == (2, "", 1, False)
    assert "the adapter is for another model, give the one it is for" in err


def test_an_existing_target_stays_as_it_is(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_text("precious")
    status, _, err = command("convert", str(tiny_model), str(target))
    assert (status, err.count("\n"), target.read_text()) == (2, 1, "precious")
    assert "choose another name or remove it" in err


def test_a_precision_the_format_has_not_is_refused(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    status, _, err = command("convert", str(tiny_model), str(tmp_path / "new"), "--dtype", "q4_0")
    assert (status, err.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import time\nimport gemmary.cli.convert as verb\nfrom gemmary.cli.main import main\n"
        "def add(self, count):\n    print('reading', flush=True)\n    time.sleep(60)\n"
        "verb.Progress.add = add\nmain()"
    )
    arguments = ["convert", str(tiny_model), str(tmp_path / "new.gguf")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err, list(tmp_path.iterdir())) == (130, "", [])


@pytest.mark.slow
def test_a_terminal_is_told_how_far_it_is_and_a_pipe_only_the_end(tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import itertools\nimport gemmary.cli.convert as verb\nfrom gemmary.cli.main import main\n"
        "begin, ticks = verb.Progress.__init__, itertools.count()\n"
        "verb.Progress.__init__ = lambda self, total: begin(self, total, clock=ticks.__next__)\nmain()"
    )
    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-c", code, "convert", str(tiny_model), str(tmp_path / "new.gguf")]
    subprocess.run(arguments, check=True, stderr=theirs)
    os.close(theirs)
    drawn = os.read(ours, 65536).decode()
    os.close(ours)
    assert "%" in drawn and "million parameters" in drawn and "s left" in drawn
    assert drawn.rstrip().split("\r")[-1].removeprefix("\033[K").startswith(str(tmp_path / "new.gguf"))


def test_the_time_left_follows_from_the_rate() -> None:
    clock = iter([0.0, 10.0, 20.0])
    progress = Progress(4_000_000, clock=clock.__next__)
    progress.add(1_000_000)
    assert progress.line() == "25%  1 of 4 million parameters  0.05 a second  60 s left"
