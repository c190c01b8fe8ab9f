# SPDX-License-Identifier: Apache-2.0
"""A wheel of the package, in an empty environment and without a compiler, does the README's first job."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMPT, REPLY = "The capital of France is", " the capital of the country of France.\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    build = f"build-dir={folder / 'build'}"
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(folder), f"--config-settings={build}", str(ROOT))
    [path] = folder.glob("*.whl")
    return path


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_wheel_serves_every_python_of_a_platform(wheel: Path) -> None:
    _, _, python, abi, platform = wheel.stem.split("-")
    assert (python, abi) == ("py3", "none")
    assert platform not in ("any", "")
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(name.startswith("gemmary/native/lib/libgemmary.") for name in names) == 1
    assert {"adapter_config.json", "adapter_model.safetensors", "NOTICE"} <= {
        name.removeprefix("gemmary/adapters/chat/") for name in names
    }
    assert not [name for name in names if name.endswith((".c", ".h", ".so.1")) or name.startswith("tests")]


def test_it_generates_in_an_empty_environment_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "empty"
    run(sys.executable, "-m", "venv", str(environment))
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    alone = {"PATH": str(programs), "PYTHONPATH": "", "CC": "/no/compiler"}
    run(
        str(programs / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        f"gemmary[demo] @ {wheel.as_uri()}",
        **alone,
    )
    gemmary = str(programs / "gemmary")
    printed = run(gemmary, "generate", PROMPT, "--max-tokens", "8", XDG_CACHE_HOME=str(tmp_path / "cache"), **alone)
    assert printed == REPLY
