# SPDX-License-Identifier: Apache-2.0
"""Replicas behind the proxy of recipes/serve: real nginx, real servers, one of which is killed."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "serve" / "nginx.conf"
REPLICA = """
import sys, time, uvicorn
from gemmary.generate.scripted import ScriptedGenerator
from gemmary.serve.server import create_app
class Slow(ScriptedGenerator):
    def stream(self, request):
        for token in super().stream(request):
            time.sleep(0.05)
            yield token
app = create_app(Slow(lambda request: "Hello! " * 20), name=sys.argv[1])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", lifespan="off")
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(address: str) -> None:
    while True:
        with suppress(httpx.TransportError):
            httpx.get(f"{address}/health").raise_for_status()
            return
        time.sleep(0.05)


@pytest.fixture
def started() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.slow
def test_a_killed_replica_is_not_noticed_by_who_asks_next(started: ExitStack, tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("needs nginx: apt-get install nginx-light")
    ports = {"8000": free_port(), "8001": free_port(), "8002": free_port()}
    replicas = []
    for name in ("8001", "8002"):
        child = subprocess.Popen([sys.executable, "-c", REPLICA, name, str(ports[name])])
        started.callback(child.wait)
        started.callback(child.kill)
        replicas.append(child)
        wait_for(f"http://127.0.0.1:{ports[name]}")
    text = re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda found: str(ports[found[0]]), RECIPE.read_text("utf-8"))
    (tmp_path / "nginx.conf").write_text(text, "utf-8")
    proxy = subprocess.Popen([nginx, "-p", str(tmp_path), "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"])
    started.callback(proxy.wait)
    started.callback(proxy.terminate)
    address = f"http://127.0.0.1:{ports['8000']}"
    wait_for(address)

    def model(key: str) -> str:
        found = httpx.get(f"{address}/v1/models", headers={"authorization": f"Bearer {key}"})
        return found.raise_for_status().json()["data"][0]["id"]

    keys = [f"key {number}" for number in range(12)]
    served_by = {key: model(key) for key in keys}
    assert set(served_by.values()) == {"8001", "8002"}, "both have something to do"
    assert served_by == {key: model(key) for key in keys}, "and a client stays where its chat is"
    with httpx.stream("POST", f"{address}/v1/completions", json={"prompt": "Hi", "stream": True}) as answer:
        pieces = list(answer.iter_raw())
    assert len(pieces) > 5 and pieces[-1].endswith(b"data: [DONE]\n\n"), "tokens come one by one"

    os.kill(replicas[0].pid, signal.SIGKILL)
    replicas[0].wait()
    assert {model(key) for key in keys} == {"8002"}
