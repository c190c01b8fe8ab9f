# SPDX-License-Identifier: Apache-2.0
"""gemmary serve as a process: it says where it is, answers, and ends when it is told to, with what runs."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_it_serves_the_embedded_default_and_finishes_what_runs(default_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gemmary", "serve", "--port", "0", "--documents", str(tmp_path / "documents.db")]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    try:
        told = child.stderr.readline()
        address = told.split(" at ")[1].split(",")[0]
        asked = {"messages": [{"role": "user", "content": "What is the capital of Italy?"}], "temperature": 0}
        found = httpx.post(f"{address}/v1/chat/completions", json=asked, timeout=60).json()
        assert found["choices"][0]["message"]["content"] == "The capital of Italy is Rome."
        assert (found["model"], found["choices"][0]["finish_reason"]) == ("gemma-3-270m", "stop")
        story = {"prompt": "Once upon a time", "max_tokens": 40, "seed": 1, "stream": True}
        with httpx.stream("POST", f"{address}/v1/completions", json=story, timeout=60) as answer:
            lines = answer.iter_lines()
            pieces = [next(lines)]
            os.kill(child.pid, signal.SIGINT)
            pieces += [line for line in lines if line]
        assert pieces[-1] == "data: [DONE]"
        assert json.loads(pieces[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
        assert child.wait(60) == 0
        assert child.stderr.read() == "", "no traceback, no noise"
    finally:
        child.kill()
        child.communicate()


def test_an_open_address_needs_a_key_and_a_taken_one_is_told(command: Command) -> None:
    status, out, err = command("serve", "--host", "0.0.0.0")
    assert (status, out) == (2, "") and "expected --api-key" in err and err.count("\n") == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, out, err = command("serve", "--port", str(taken.getsockname()[1]))
    assert (status, out) == (2, "") and "expected an address to listen on" in err and err.count("\n") == 1
