# SPDX-License-Identifier: Apache-2.0
"""Systems that take turns: each lives in a process of its own, and answers a line with one measurement."""

import json
import os
import subprocess
import sys
from typing import Any


def backend_of(system: str) -> str:
    """The backend in a system's name; PyTorch where there is none."""
    return next((name for name in ("jax", "torch", "tensorflow") if f"-{name}" in system), "torch")


def start(script: str, system: str, *options: str) -> subprocess.Popen[str]:
    """`script --serve system options`, when it is ready."""
    environment = {**os.environ, "KERAS_BACKEND": backend_of(system), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, script, "--serve", system, *options]
    child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _answer(child, "ready")
    return child


def ask(child: subprocess.Popen[str]) -> dict[str, Any]:
    """One measurement."""
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    found: dict[str, Any] = json.loads(_answer(child, "{"))
    return found


def _answer(child: subprocess.Popen[str], beginning: str) -> str:
    """The next line that begins so: libraries print others."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(beginning):
            return line
    raise SystemExit("a system ended before it answered: see its message above")
