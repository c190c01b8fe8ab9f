# SPDX-License-Identifier: Apache-2.0
"""Our server beside llama.cpp's on one GGUF file, in turn; or ours alone under the load of many clients.

    python benchmarks/serve.py peers --rounds 5
    python benchmarks/serve.py load --clients 64 --minutes 10

peers: 8 streams at once, greedy, each a passage of our documents to continue by 64 tokens, new in each round, so that
no server has them in its cache; then a chat of 2,000 tokens and its second turn. Both servers are loaded, and wait
while the other is asked; ratios are medians of the rounds' own. llama.cpp has its defaults and a slot for each stream.

load: every client asks one request after the other, of 10 to 1,000 tokens and 8 to 64 more, greedy or drawn. Each reply
is compared with what the server said to the same request alone, one in ten clients is killed in mid-stream now and then
(kill -9), and the server's memory is read after a minute and at the end.
"""

import argparse
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import ROOT, record

STREAMS, REPLY = 8, 64
WORDS = " ".join(path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))).split()
SERVE = [sys.executable, "-m", "gemmary", "serve", "--no-documents", "--port", "0"]
PEER = """
import sys, time, xllamacpp
path, length, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel = path, length * slots, slots
settings.verbosity, settings.fit_params = 0, False
server = xllamacpp.Server(settings)
print("at", server.listening_address, flush=True)
sys.stdin.read()
"""


@dataclass
class Server:
    """A server in a process of its own."""

    command: list[str]
    child: subprocess.Popen[str] = field(init=False)
    host: str = field(init=False)

    def __post_init__(self) -> None:
        self.child = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if "http://" in line:
                self.host = line.split("http://")[1].split()[0].rstrip(",/")
                break
        else:
            raise SystemExit(f"expected an address, got the end of {self.command}")
        for _ in range(300):
            try:
                self.get("/health")
                return
            except OSError:
                time.sleep(0.2)
        raise SystemExit(f"expected an answer of {self.host}, got none in a minute")

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.host, timeout=600)
        connection.request("GET", path)
        return connection.getresponse().read()

    def stream(self, path: str, body: dict[str, Any]) -> "Answer":
        """One streamed answer, with the seconds to each of its tokens."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection(self.host, timeout=600)
        asked = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
        connection.request("POST", path, asked, {"content-type": "application/json"})
        response, answer = connection.getresponse(), Answer()
        if response.status != 200:
            raise SystemExit(f"expected 200, got {response.status}: {response.read()[:300]!r}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                answer.count = event["usage"]["completion_tokens"]
            for choice in event.get("choices", []):
                text = choice.get("text") or choice.get("delta", {}).get("content") or ""
                answer.first = answer.first or (time.perf_counter() - began if text else 0.0)
                answer.text += text
        answer.seconds = time.perf_counter() - began
        return answer

    @property
    def resident(self) -> int:
        """Megabytes of resident memory."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) // 1024

    def end(self) -> None:
        self.child.kill()
        self.child.wait()


@dataclass
class Answer:
    text: str = ""
    first: float = 0.0  # seconds to the first text
    seconds: float = 0.0
    count: int = 0  # tokens


def passage(draw: random.Random, words: int) -> str:
    start = draw.randrange(len(WORDS) - words)
    return " ".join(WORDS[start : start + words])


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def streams(server: Server, seed: int) -> dict[str, float]:
    """Tokens a second of all streams together, and their times to the first token."""
    draw = random.Random(seed)
    bodies = [{"prompt": passage(draw, 150), "max_tokens": REPLY, "temperature": 0} for _ in range(STREAMS)]
    began = time.perf_counter()
    with ThreadPoolExecutor(STREAMS) as pool:
        answers = list(pool.map(lambda body: server.stream("/v1/completions", body), bodies))
    seconds = time.perf_counter() - began
    firsts = [answer.first for answer in answers]
    count = sum(answer.count for answer in answers)
    return {"rate": count / seconds, "p50": percentile(firsts, 0.5), "p95": percentile(firsts, 0.95)}


def second_turn(server: Server, seed: int) -> float:
    """The time to the first token of a chat's second turn, as a share of that of its first, of 2,000 tokens."""
    draw = random.Random(seed)
    messages = [{"role": "user", "content": passage(draw, 1150) + "\nWhat is this about?"}]
    settings = {"temperature": 0, "max_tokens": 16}
    one = server.stream("/v1/chat/completions", {"messages": messages, **settings})
    messages += [{"role": "assistant", "content": one.text}, {"role": "user", "content": "And what else?"}]
    two = server.stream("/v1/chat/completions", {"messages": messages, **settings})
    return two.first / one.first


def peers(rounds: int) -> None:
    from gemmary.formats.locate import embedded_default

    path = str(embedded_default())
    length = 4096
    ours = Server([*SERVE, "--model", path, "--slots", str(STREAMS), "--max-length", str(length)])
    theirs = Server([sys.executable, "-c", PEER, path, str(length), str(STREAMS)])
    found: dict[str, list[dict[str, float]]] = {"gemmary": [], "llama.cpp": []}
    try:
        for seed in range(rounds + 1):
            for name, server in (("gemmary", ours), ("llama.cpp", theirs)):
                figures = streams(server, seed)
                figures["turn"] = second_turn(server, 1000 + seed)
                if seed:  # the first warms up
                    found[name].append(figures)
                    print(name, {key: round(value, 3) for key, value in figures.items()}, flush=True)
    finally:
        ours.end()
        theirs.end()
    rows = []
    for key, label in (
        ("rate", f"{STREAMS} streams: tokens/s"),
        ("p50", "time to first token, p50, s"),
        ("p95", "time to first token, p95, s"),
        ("turn", "second turn of 2,000 tokens: first token, share of the first turn's"),
    ):
        mine, other = ([each[key] for each in found[name]] for name in ("gemmary", "llama.cpp"))
        ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
        rows.append([label, *(f"{statistics.median(each):.3g}" for each in (mine, other)), f"{ratio:.2f}"])
    record(
        "serve-peers",
        ["", "gemmary", "llama.cpp", "ratio"],
        rows,
        command=f"python benchmarks/serve.py peers --rounds {rounds}",
    )


def kinds(count: int) -> list[dict[str, Any]]:
    """Requests of mixed lengths, greedy and drawn."""
    draw = random.Random(7)
    return [
        {
            "prompt": passage(draw, draw.choice([8, 30, 100, 300, 600])),
            "max_tokens": draw.choice([8, 16, 32, 64]),
            "temperature": draw.choice([0, 0.9]),
            "top_p": 0.95,
            "seed": number,
        }
        for number in range(count)
    ]


CLIENT = """
import json, sys, http.client
host, body = sys.argv[1], sys.argv[2]
connection = http.client.HTTPConnection(host, timeout=600)
connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
connection.getresponse().readline()
print("first", flush=True)
sys.stdin.read()
"""


def kill_in_mid_stream(server: Server) -> None:
    """A client in a process of its own that is killed when it has read its first event."""
    body = {"prompt": "Once upon a time", "max_tokens": 2000, "temperature": 1, "stream": True}
    command = [sys.executable, "-c", CLIENT, server.host, json.dumps(body)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.communicate()


def load(clients: int, minutes: float) -> None:
    server = Server([*SERVE, "--max-length", "2048"])
    bodies = kinds(40)
    try:
        alone = [server.stream("/v1/completions", body) for body in bodies]
        answers: list[Answer] = []
        wrong: list[int] = []
        killed: list[int] = []
        end = time.monotonic() + 60 * minutes

        def client(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() < end:
                if number % 10 == 0 and draw.random() < 0.3:
                    kill_in_mid_stream(server)
                    killed.append(number)
                at = draw.randrange(len(bodies))
                answer = server.stream("/v1/completions", bodies[at])
                answers.append(answer)
                if answer.text != alone[at].text:
                    wrong.append(at)

        began = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            work = [pool.submit(client, number) for number in range(clients)]
            time.sleep(min(60.0, 20 * minutes))
            before = server.resident
            for each in work:
                each.result()  # a request that was lost raises
        seconds = time.monotonic() - began
        after = server.resident
        time.sleep(1)
        state = json.loads(server.get("/health"))
    finally:
        server.end()
    firsts = [answer.first for answer in answers]
    rows = [
        ["replies", len(answers)],
        ["lost", 0],
        ["other than alone", len(wrong)],
        ["clients killed in mid-stream", len(killed)],
        ["running and waiting afterwards", state["running"] + state["waiting"]],
        ["tokens/s", f"{sum(answer.count for answer in answers) / seconds:.0f}"],
        ["time to first token, p50, s", f"{percentile(firsts, 0.5):.1f}"],
        ["time to first token, p95, s", f"{percentile(firsts, 0.95):.1f}"],
        ["memory after a minute and at the end, MB", f"{before}, {after}"],
    ]
    record(
        "serve-load",
        ["", f"{clients} clients"],
        rows,
        command=f"python benchmarks/serve.py load --clients {clients} --minutes {minutes:g}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["peers", "load"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    if options.what == "peers":
        peers(options.rounds)
    else:
        load(options.clients, options.minutes)


if __name__ == "__main__":
    main()
