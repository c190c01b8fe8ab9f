# SPDX-License-Identifier: Apache-2.0
"""The endpoint speaks the OpenAI protocol with a real server on this machine, well-behaved or not."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gemmary.base.errors import GemmaryError, InputError, MissingExtraError
from gemmary.evaluate.endpoint import Endpoint
from gemmary.evaluate.side_by_side import compare
from gemmary.generate.request import Request, Sampling
from gemmary.text.chat import Message

KEY = "sk-very-secret"


class Server(ThreadingHTTPServer):
    """Answers "re: " and the last thing said, unless `answers` holds something else to send first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, str | None]] = []  # a status and a body; None is silence
        self.heard: list[tuple[str, str, dict[str, Any]]] = []  # path, key, body
        self.is_over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.heard.append((self.path, self.headers["Authorization"], body))
        status, text = self.server.answers.pop(0) if self.server.answers else (200, reply(body))
        if text is None:
            self.server.is_over.wait(10)
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *parts: object) -> None:
        """Nothing: the tests look at `heard`."""


def reply(body: dict[str, Any]) -> str:
    said: dict[str, Any]
    if "messages" in body:
        said = {"message": {"role": "assistant", "content": f"re: {body['messages'][-1]['content']}"}}
    else:
        said = {"text": f"re: {body['prompt']}"}
    return json.dumps({"choices": [{"index": 0, "finish_reason": "stop", **said}]})


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.is_over.set()
        made.shutdown()
        thread.join()


def endpoint(server: Server, **settings: Any) -> Endpoint:
    return Endpoint(url=server.url, model="gemma", **settings)


def test_conversations_are_answered_in_their_order(server: Server) -> None:
    talk = [Message("system", "Be brief."), Message("user", "Hi"), Message("model", "Hello"), Message("user", "Bye")]
    texts = endpoint(server, parallel=4).chat([*(f"n{n}" for n in range(12)), talk])
    assert texts == [*(f"re: n{n}" for n in range(12)), "re: Bye"]
    assert {path for path, _, _ in server.heard} == {"/v1/chat/completions"}
    [body] = [body for _, _, body in server.heard if len(body["messages"]) > 1]
    assert body == {
        "model": "gemma",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Bye"},
        ],
        "max_tokens": 1024,
        "temperature": 0.0,
    }


def test_requests_go_as_they_are(server: Server) -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, seed=2**63 + 7)
    requests = [Request("Once", max_tokens=5, sampling=sampling, stop=("\n",)), Request([2, 7])]
    assert endpoint(server, parallel=1).complete(requests) == ["re: Once", "re: [2, 7]"]
    assert [(path, body) for path, _, body in server.heard] == [
        (
            "/v1/completions",
            {
                "model": "gemma",
                "prompt": "Once",
                "max_tokens": 5,
                "temperature": 0.5,
                "top_p": 0.9,
                "seed": 7,
                "stop": ["\n"],
            },
        ),
        ("/v1/completions", {"model": "gemma", "prompt": [2, 7], "max_tokens": 256, "temperature": 0.0}),
    ]


def test_nothing_to_ask_asks_nothing(server: Server) -> None:
    assert endpoint(server).chat([]) == endpoint(server).complete([]) == []
    assert server.heard == []


def test_the_key_is_the_argument_or_else_that_of_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint(server).chat(["Hi"])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment\n")
    endpoint(server).chat(["Hi"])
    endpoint(server, api_key=KEY).chat(["Hi"])
    assert [key for _, key, _ in server.heard] == ["Bearer no-key", "Bearer sk-environment", f"Bearer {KEY}"]


def test_a_server_that_stumbles_is_asked_again(server: Server) -> None:
    server.answers = [(500, "oops"), (429, "{}"), (503, "<html>")]
    assert endpoint(server, retries=3).chat(["Hi"]) == ["re: Hi"]
    assert len(server.heard) == 4


def test_a_server_that_stays_down_is_one_line(server: Server) -> None:
    server.answers = [(500, "<html>\n<h1>Internal\nError</h1>" + "x" * 1000)] * 2
    with pytest.raises(GemmaryError) as caught:
        endpoint(server, retries=1).chat(["Hi"])
    assert str(caught.value).startswith(f"expected an answer of {server.url}/chat/completions, got Error code: 500")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert len(server.heard) == 2


def test_a_refused_key_is_asked_once_and_shown_nowhere(server: Server) -> None:
    server.answers = [(401, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}}))]
    refused = endpoint(server, api_key=KEY)
    with pytest.raises(
        GemmaryError, match=r"got Error code: 401 - .*provided: \*\*\*\..* api_key \(or OPENAI_API_KEY\)"
    ) as caught:
        refused.chat(["Hi"])
    assert caught.value.__context__ is None  # the client's error holds the answer as it came
    assert KEY not in f"{refused}{refused!r}{caught.value}"
    assert len(server.heard) == 1


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{not json",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": null}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"text": "of the other path"}]}',
        '{"choices": [{"message": {"content": ["parts"]}}]}',
        '{"error": {"message": "no such model"}}',
        "<html>a page",
    ],
)
def test_an_answer_in_another_protocol_is_said_to_be_one(server: Server, body: str) -> None:
    server.answers = [(200, body)]
    with pytest.raises(
        GemmaryError, match=r"^expected an answer of http.*/v1/chat/completions, got .*/v1\?$"
    ) as caught:
        endpoint(server).chat(["Hi"])
    assert body in str(caught.value)


def test_a_reply_of_null_is_empty(server: Server) -> None:
    server.answers = [(200, '{"choices": [{"message": {"content": null}}]}')]
    assert endpoint(server).chat(["Hi"]) == [""]


def test_a_refused_connection_and_a_time_out_are_one_line(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(GemmaryError, match=r"^expected an answer of .*, got .*refused: is it running"):
        Endpoint(url=f"http://127.0.0.1:{port}/v1", model="gemma", retries=0).chat(["Hi"])
    server.answers = [(200, None)]
    with pytest.raises(GemmaryError, match=r"^expected an answer of .*, got .*timed out: .* is the timeout enough\?"):
        endpoint(server, timeout=0.1, retries=0).chat(["Hi"])


def test_one_failure_ends_the_batch_before_it_is_through(server: Server) -> None:
    server.answers = [(400, "{}")]
    with pytest.raises(GemmaryError, match="got Error code: 400"):
        endpoint(server, parallel=1).chat(["Hi"] * 200)
    assert len(server.heard) < 200


def test_settings_that_cannot_be_used_are_refused(server: Server) -> None:
    for wrong in ({"url": "localhost:8000"}, {"timeout": 0}, {"retries": -1}, {"parallel": 0}):
        with pytest.raises(
            InputError, match=r"^expected an http url, timeout > 0, retries >= 0, parallel >= 1, got "
        ) as caught:
            Endpoint(**{"url": server.url, "model": "gemma", "api_key": KEY, **wrong})
        assert KEY not in str(caught.value)
    for sampling in (Sampling(top_k=5), Sampling(min_p=0.1), Sampling(repetition_penalty=1.1)):
        with pytest.raises(InputError, match=r"^expected sampling by temperature and top_p, got "):
            endpoint(server).chat(["Hi"], sampling=sampling)
    with pytest.raises(InputError, match=r"^expected requests that end where the model ends, got ignore_stop_ids"):
        endpoint(server).complete([Request("Hi", ignore_stop_ids=True)])
    assert server.heard == []


def test_without_the_client_the_extra_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"needs the openai client: pip install 'gemmary\[remote\]'"):
        endpoint(server)


def test_an_endpoint_judges(server: Server) -> None:
    def said(verdict: str) -> tuple[int, str]:
        return 200, json.dumps({"choices": [{"message": {"content": f"Thoughts.\nVerdict: {verdict}"}}]})

    server.answers = [said("tie"), said("unclear")]
    result = compare(["p", "q"], ["a", "a"], ["b", "b"], endpoint(server, parallel=1).chat)
    assert [pair.verdict for pair in result.pairs] == ["tie", "unreadable"]
