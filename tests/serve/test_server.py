# SPDX-License-Identifier: Apache-2.0
"""The real Gemma 3 270M behind the server, asked by the real clients: openai, LangChain, httpx, schemathesis."""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import jsonschema
import numpy as np
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

import gemmary
from gemmary.generate.batched import BatchedGenerator
from gemmary.generate.request import Request, Sampling, Token
from gemmary.generate.scripted import ScriptedGenerator
from gemmary.serve.documents import Library
from gemmary.serve.doorway import Rules
from gemmary.text.chat import Message, prompt_ids

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "kind": {"enum": ["city", "river", "country"]},
        "population": {"type": "integer", "minimum": 0, "maximum": 100000000},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
    },
    "required": ["name", "kind", "population"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
HI = [{"role": "user", "content": "Name a city."}]


@pytest.fixture(scope="module")
def generator(default_checkpoint: Path) -> BatchedGenerator:
    return gemmary.load(str(default_checkpoint), engine="native", num_slots=4, max_length=1024, adapter="chat")


@pytest.fixture(scope="module")
def url(generator: BatchedGenerator, serving: Callable[..., str]) -> str:
    return serving(generator, num_active=4)


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def talk(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.slow
def test_a_chat_is_what_the_generator_says_to_the_same_turns(
    client: openai.OpenAI, generator: BatchedGenerator
) -> None:
    said = [{"role": "system", "content": "Be brief."}, *talk("Name a city."), *talk("In Italy.")]
    ids = prompt_ids(
        generator.tokenizer, [Message("system", "Be brief."), Message("user", "Name a city.\n\nIn Italy.")]
    )
    for sampling in (Sampling(), Sampling(temperature=0.9, top_p=0.9, seed=11)):
        [expected] = generator.complete([Request(ids, max_tokens=24, sampling=sampling)])
        settings = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        whole = client.chat.completions.create(model="gemma", messages=said, max_tokens=24, **settings)
        [choice] = whole.choices
        assert (choice.message.content, choice.finish_reason) == (expected.text, expected.finish_reason)
        assert whole.usage.prompt_tokens == len(ids)
        assert whole.usage.completion_tokens == len(expected.ids)
        pieces = list(
            client.chat.completions.create(
                model="gemma",
                messages=said,
                max_completion_tokens=24,
                stream=True,
                stream_options={"include_usage": True},
                **settings,
            )
        )
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == expected.text
        assert pieces[-2].choices[0].finish_reason == expected.finish_reason
        assert pieces[-1].usage == whole.usage.model_copy(
            update={"prompt_tokens_details": pieces[-1].usage.prompt_tokens_details}
        )


@pytest.mark.slow
def test_choices_have_seeds_of_their_own_and_a_reply_can_be_asked_for_again(client: openai.OpenAI) -> None:
    asked = {"model": "gemma", "messages": HI, "max_tokens": 16, "seed": 5}
    three = client.chat.completions.create(**asked, n=3)
    second = client.chat.completions.create(**{**asked, "seed": 6})
    texts = [choice.message.content for choice in three.choices]
    assert len(set(texts)) > 1 and texts[1] == second.choices[0].message.content
    streamed = ["", "", ""]
    for piece in client.chat.completions.create(**asked, n=3, stream=True):
        streamed[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert streamed == texts


@pytest.mark.slow
def test_logprobs_are_the_generator_s_scores(client: openai.OpenAI, generator: BatchedGenerator) -> None:
    ids = generator.tokenizer.prompt("The capital of France is")
    done = client.completions.create(model="gemma", prompt=ids, max_tokens=8, temperature=0, logprobs=3)
    [expected] = generator.complete([Request(ids, max_tokens=8)])
    [score] = generator.score([[*ids, *expected.ids]], [len(ids)])
    reported = done.choices[0].logprobs
    assert done.choices[0].text == expected.text == "".join(reported.tokens)
    assert reported.token_logprobs == pytest.approx(score.log_probs.tolist(), abs=1e-4)
    assert all(len(each) == 3 for each in reported.top_logprobs)
    chat = client.chat.completions.create(
        model="gemma", messages=HI, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == chat.choices[0].message.content
    assert all(token.top_logprobs[0].logprob == token.logprob <= 0 for token in content), "greedy"


@pytest.mark.slow
def test_stop_and_bias(client: openai.OpenAI, generator: BatchedGenerator) -> None:
    asked = {"model": "gemma", "prompt": "One, two, three, four,", "max_tokens": 12, "temperature": 0}
    free = client.completions.create(**asked).choices[0].text
    stopped = client.completions.create(**asked, stop=[free[3:6], "never"]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (free[: free.index(free[3:6])], "stop")
    first = generator.tokenizer.encode(free)[0]
    other = client.completions.create(**asked, logit_bias={str(first): -100}).choices[0].text
    assert not other.startswith(generator.tokenizer.decode([first]))


@pytest.mark.slow
def test_a_hundred_replies_follow_their_schema(client: openai.OpenAI) -> None:
    def one(seed: int) -> str:
        response_format = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
        done = client.chat.completions.create(
            model="gemma",
            messages=talk("Describe a place as JSON."),
            seed=seed,
            max_tokens=200,
            response_format=response_format,
        )
        assert done.choices[0].finish_reason == "stop"
        return done.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(one, range(100)))
    for reply in replies:
        jsonschema.validate(json.loads(reply), SCHEMA)
    assert len(set(replies)) > 50, "drawn, and not all the same"


@pytest.mark.slow
def test_json_objects_regular_expressions_and_grammars(client: openai.OpenAI) -> None:
    def one(**response_format: str) -> str:
        done = client.chat.completions.create(
            model="gemma",
            messages=HI,
            temperature=0,
            max_tokens=200,
            response_format=response_format,
            extra_body={"repetition_penalty": 1.3},
        )
        return done.choices[0].message.content

    assert isinstance(json.loads(one(type="json_object")), dict)
    assert re.fullmatch("(Rome|Paris)!{2}", one(type="regex", regex="(Rome|Paris)!{2}"))
    assert one(type="lark", lark='start: "a" | "b" "c"') in ("a", "bc")


@pytest.mark.slow
def test_tools_are_called_when_they_must_be_and_only_in_their_form(client: openai.OpenAI) -> None:
    asked = {"model": "gemma", "messages": talk("How warm is Rome?"), "tools": [WEATHER], "max_tokens": 120}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        done = client.chat.completions.create(**asked, tool_choice=choice, seed=1).choices[0]
        assert done.finish_reason == "tool_calls" and done.message.content is None
        [call] = done.message.tool_calls
        assert call.function.name == "weather"
        jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
    pieces = list(client.chat.completions.create(**asked, tool_choice="required", seed=1, stream=True))
    [told] = [piece.choices[0].delta.tool_calls[0] for piece in pieces if piece.choices[0].delta.tool_calls]
    assert json.loads(told.function.arguments) == json.loads(call.function.arguments)
    assert pieces[-1].choices[0].finish_reason == "tool_calls"
    answered = [
        *asked["messages"],
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "31 degrees"},
    ]
    for choice in ("auto", "none"):
        done = client.chat.completions.create(**{**asked, "messages": answered}, tool_choice=choice, temperature=0)
        [reply] = done.choices
        assert bool(reply.message.tool_calls) == (reply.finish_reason == "tool_calls")
        assert reply.message.tool_calls or reply.message.content


@pytest.mark.slow
def test_embeddings_are_means_of_length_one(client: openai.OpenAI, url: str, generator: BatchedGenerator) -> None:
    texts = ["The cat sat on the mat.", "A cat was sitting on a mat.", "Interest rates rose by two percent."]
    done = client.embeddings.create(model="gemma", input=texts)  # the client asks for base64
    rows = np.array([each.embedding for each in done.data])
    ids = [generator.tokenizer.prompt(text) for text in texts]
    assert rows == pytest.approx(generator.embed(ids), abs=1e-6)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert rows[0] @ rows[1] > rows[0] @ rows[2]
    assert done.usage.prompt_tokens == sum(map(len, ids))
    raw = httpx.post(f"{url}/v1/embeddings", json={"input": texts[0], "encoding_format": "base64"}).json()
    packed = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
    assert packed == pytest.approx(rows[0], abs=1e-6)


@tool
def weather(city: str, unit: str) -> str:
    """The weather of a city."""
    return f"31 {unit} in {city}"


class Place(BaseModel):
    name: str
    is_large: bool


@pytest.mark.slow
def test_langchain_talks_streams_calls_tools_and_reads_structures(url: str) -> None:
    model = ChatOpenAI(model="gemma", base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=60, seed=1)
    said = [SystemMessage("Be brief."), HumanMessage("Name a city.")]
    reply = model.invoke(said)
    assert reply.content and reply.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in model.stream(said)) == reply.content
    assert [each.content for each in model.batch([said, said])] == [reply.content] * 2
    called = model.bind_tools([weather], tool_choice="weather").invoke("How warm is Rome?")
    assert called.tool_calls[0]["name"] == "weather" and set(called.tool_calls[0]["args"]) == {"city", "unit"}
    assert isinstance(model.with_structured_output(Place).invoke("Describe Rome."), Place)
    assert model.bind(logprobs=True).invoke("Hi").response_metadata["logprobs"]["content"]
    embeddings = OpenAIEmbeddings(model="gemma", base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False)
    assert len(embeddings.embed_query("Rome")) == 640


@pytest.mark.slow
def test_a_second_turn_reads_only_what_is_new(client: openai.OpenAI) -> None:
    first = talk("Tell me about rivers. " * 20)
    one = client.chat.completions.create(model="gemma", messages=first, temperature=0, max_tokens=8)
    again = [*first, {"role": "assistant", "content": one.choices[0].message.content}, *talk("And seas?")]
    two = client.chat.completions.create(model="gemma", messages=again, temperature=0, max_tokens=8)
    assert two.usage.prompt_tokens_details.cached_tokens >= one.usage.prompt_tokens - 5


# what follows needs no model


@pytest.fixture(scope="module")
def plain(serving: Callable[..., str]) -> str:
    return serving(ScriptedGenerator(lambda request: "Hello!"))


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b"null",
        b'{"messages": []}',
        b'{"messages": [{"role": "owner", "content": "Hi"}]}',
        b'{"messages": [{"role": "user", "content": 7}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
        b'{"messages": [{"role": "assistant", "content": "Hi"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        *(
            b'{"messages": [{"role": "user", "content": "Hi"}], %s}' % more
            for more in (
                b'"unknown": 1',
                b'"temperature": NaN',
                b'"temperature": -1',
                b'"top_p": 2',
                b'"n": 0',
                b'"n": 1000',
                b'"max_tokens": 0',
                b'"stop": [""]',
                b'"logit_bias": {"a": 1}',
                b'"top_logprobs": 3',
                b'"tool_choice": "required"',
                b'"response_format": {"type": "json_schema"}',
                b'"documents": true',
                b'"presence_penalty": 1',
                b'"tools": [{"type": "function", "function": {"name": "a", "parameters": {"$defs": []}}}]',
                b'"documents": true, "response_format": {"type": "json_object"}',
            )
        ),
    ],
)
def test_bad_bodies_get_a_400_in_openai_s_shape(plain: str, body: bytes) -> None:
    came = httpx.post(f"{plain}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    error = came.json()["error"]
    assert came.status_code == 400, came.text
    assert error["type"] == "invalid_request_error" and error["message"]
    assert "expected" in error["message"] and set(error) == {"message", "type", "param", "code"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}},
        {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "integer", "minimum": 3, "maximum": 2}},
        },
        {"type": "regex", "regex": "("},
        {"type": "lark", "lark": "begin: "},
    ],
    ids=str,
)
def test_an_impossible_schema_and_an_overlong_prompt_get_a_400(
    client: openai.OpenAI, response_format: dict[str, object]
) -> None:
    with pytest.raises(openai.BadRequestError, match="expected"):
        client.chat.completions.create(model="gemma", messages=HI, response_format=response_format)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gemma", messages=talk("word " * 2000))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="expected token ids in"):
        client.chat.completions.create(model="gemma", messages=HI, logit_bias={"999999999": 1})


@pytest.mark.slow
def test_a_client_that_goes_away_frees_its_slot(url: str, generator: BatchedGenerator) -> None:
    endless = {str(stop): -100 for stop in generator.tokenizer.stop_ids}
    asked = {"prompt": "Once upon a time", "max_tokens": 900, "temperature": 1, "seed": 1, "logit_bias": endless}
    with httpx.stream("POST", f"{url}/v1/completions", json={**asked, "stream": True}) as stream:
        pieces = stream.iter_bytes()
        assert b"error" not in next(pieces)
        assert httpx.get(f"{url}/health").json()["running"] == 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json=asked, timeout=0.5)
    for _ in range(500):  # 900 tokens would take longer
        if httpx.get(f"{url}/health").json()["running"] == 0:
            break
    cancelled = re.search(r'reason="cancelled"} (.*)', httpx.get(f"{url}/metrics").text)
    assert cancelled is not None and float(cancelled[1]) == 2
    assert len(generator._scheduler._free) == 4, "of the engine's slots too"


def test_deep_arguments_and_messages_as_openai_s_client_parsed_them_are_taken(plain: str) -> None:
    function = {"name": "a", "arguments": "[" * 50_000 + "]" * 50_000, "parsed_arguments": {"a": 1}}
    call = {"id": "1", "type": "function", "function": function}
    said = [*HI, {"role": "assistant", "tool_calls": [call], "parsed": None}, {"role": "tool", "content": "b"}]
    assert httpx.post(f"{plain}/v1/chat/completions", json={"messages": said}).status_code == 200


def test_more_choices_than_could_ever_run_are_refused_and_not_put_off(plain: str) -> None:
    came = httpx.post(f"{plain}/v1/completions", json={"prompt": ["Hi"] * 256, "n": 16})
    assert came.status_code == 400 and "at most 264 replies at once" in came.json()["error"]["message"]


def test_a_full_queue_says_when_to_come_back(serving: Callable[..., str]) -> None:
    goes_on = threading.Event()

    class Waiting(ScriptedGenerator):
        def stream(self, request: Request) -> Iterator[Token]:
            goes_on.wait(60)
            yield from super().stream(request)

    busy = serving(Waiting(lambda request: "Hello!"), num_active=1, max_waiting=0)
    asked = {"prompt": "Hi", "stream": True}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, f"{busy}/v1/completions", json=asked, timeout=60)
        while not goes_on.is_set():
            health = httpx.get(f"{busy}/health").json()
            if health["running"]:
                came = httpx.post(f"{busy}/v1/completions", json=asked)
                goes_on.set()
        assert came.status_code == 429 and int(came.headers["retry-after"]) >= 1
        assert came.json()["error"]["type"] == "rate_limit_error"
        assert first.result().text.endswith("data: [DONE]\n\n")


def test_other_models_paths_and_methods_are_refused(plain: str) -> None:
    other = httpx.post(f"{plain}/v1/completions", json={"model": "gpt-4", "prompt": "Hi"})
    assert other.status_code == 404 and "'gemma'" in other.json()["error"]["message"]
    assert httpx.get(f"{plain}/nowhere").json()["error"]["message"].startswith("expected a known path")
    assert httpx.get(f"{plain}/v1/completions").status_code == 405
    assert httpx.get(f"{plain}/page/..%2Fserver.py").status_code == 404
    assert httpx.get(f"{plain}/page/%2Fetc%2Fpasswd").status_code == 404
    assert httpx.get(f"{plain}/v1/models").json()["data"][0]["id"] == "gemma"
    assert httpx.get(f"{plain}/v1/models/gemma").json()["max_length"] == 8192


def test_metrics_and_health_tell_what_was_done(plain: str) -> None:
    before = httpx.get(f"{plain}/metrics").text
    for _ in range(3):
        httpx.post(f"{plain}/v1/completions", json={"prompt": "Hi"}).raise_for_status()
    after = httpx.get(f"{plain}/metrics").text

    def count(text: str) -> float:
        found = re.search(r'^gemmary_replies_total\{reason="stop"\} (.*)$', text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    assert count(after) == count(before) + 3
    assert httpx.get(f"{plain}/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_the_key_guards_all_but_health_and_the_page(serving: Callable[..., str]) -> None:
    guarded = serving(ScriptedGenerator(lambda request: "Hello!"), rules=Rules(api_key="schlüssel"))
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": b"Basic schl\xc3\xbcssel"}):
        came = httpx.get(f"{guarded}/v1/models", headers=headers)
        assert came.status_code == 401 and came.json()["error"]["type"] == "authentication_error"
    right = {"authorization": "Bearer schlüssel".encode()}
    assert httpx.get(f"{guarded}/v1/models", headers=right).status_code == 200
    assert httpx.get(f"{guarded}/health").status_code == 200
    assert httpx.get(guarded).status_code == 200
    assert httpx.post(f"{guarded}/page/markup", json={"text": "a"}).status_code == 401


def test_other_sites_and_names_are_refused_unless_allowed(serving: Callable[..., str]) -> None:
    rules = Rules(hosts=("127.0.0.1",), origins=("https://friend.example",))
    guarded = serving(ScriptedGenerator(lambda request: "Hello!"), rules=rules)
    ask = f"{guarded}/v1/models"
    assert httpx.get(ask, headers={"host": "evil.example"}).status_code == 400
    for name in ("[::1", "[zz]", "", "a/b"):
        assert httpx.get(ask, headers={"host": name}).status_code == 400
    for site in ("https://evil.example", "http://[", "null"):
        assert httpx.get(ask, headers={"origin": site}).status_code == 403
    assert httpx.get(ask, headers={"origin": guarded}).status_code == 200
    friend = httpx.get(ask, headers={"origin": "https://friend.example"})
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"
    wanted = "authorization,x-stainless-lang"
    headers = {"origin": "https://friend.example", "access-control-request-headers": wanted}
    asked = httpx.options(ask, headers={**headers, "access-control-request-method": "POST"})
    assert (asked.status_code, asked.headers["access-control-allow-headers"]) == (204, wanted)
    assert "access-control-allow-origin" not in httpx.get(ask).headers


def test_bodies_past_the_limit_are_refused_however_they_come(serving: Callable[..., str]) -> None:
    guarded = serving(ScriptedGenerator(lambda request: "Hello!"), rules=Rules(body_limits={"": 1000}))
    body = json.dumps({"prompt": "a" * 2000}).encode()
    json_type = {"content-type": "application/json"}
    assert httpx.post(f"{guarded}/v1/completions", content=body, headers=json_type).status_code == 413
    pieces = (body[at : at + 100] for at in range(0, len(body), 100))
    assert httpx.post(f"{guarded}/v1/completions", content=pieces, headers=json_type).status_code == 413
    assert httpx.post(f"{guarded}/v1/completions", json={"prompt": "a"}).status_code == 200


@pytest.mark.slow
def test_schemathesis_finds_no_5xx(serving: Callable[..., str]) -> None:
    with Library(Path(":memory:")) as library:
        address = serving(ScriptedGenerator(lambda request: "Hello!"), library=library)
        assert httpx.delete(f"{address}/documents/{2**64}").status_code == 400, "more than SQLite can count to"
        for result in schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations():
            operation, seen = result.ok(), set[int]()
            ask(operation.as_strategy(), address, seen)
            assert seen and max(seen) < 500, operation.label


def ask(cases: SearchStrategy[schemathesis.Case], url: str, seen: set[int]) -> None:
    """Send requests that a document allows, and ones that it does not, and note the statuses of their answers."""

    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(cases)
    def send(case: schemathesis.Case) -> None:
        seen.add(case.call(base_url=url).status_code)

    send()
