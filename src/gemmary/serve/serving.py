# SPDX-License-Identifier: Apache-2.0
"""From a body to an answer: what the routes of the OpenAI protocol do.

    body ─► prompt ids, grammar ─► Request for each choice ─► Stream ─► admission's turn ─► tokens ─► Form

What takes time is done in threads: the event loop only passes things on.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray

from gemmary.base.errors import GemmaryError, InputError
from gemmary.generate.generator import Embedder, Generator, Stream
from gemmary.generate.request import Grammar, Request, Token
from gemmary.generate.scripted import ScriptedGenerator
from gemmary.serve.admission import Admission
from gemmary.serve.answers import ChatForm, Form, Json, TextForm
from gemmary.serve.conversation import conversation
from gemmary.serve.doorway import error_body
from gemmary.serve.metrics import Metrics
from gemmary.serve.schema import ChatBody, CompletionBody, EmbeddingBody, Settings
from gemmary.serve.tools import Tools
from gemmary.text.chat import Message, prompt_ids

if TYPE_CHECKING:
    from gemmary.serve.documents import Library

NO_ANSWER = "The documents hold no answer to this."
_SHARE_OF_CONTEXT = 0.5  # that passages of documents may take
_DONE = b"data: [DONE]\n\n"


class Serving:
    """A generator and what stands around it while it is served.

    >>> admission = Admission(num_active=1, max_waiting=1)
    >>> Serving(ScriptedGenerator({}), "gemma", admission, Metrics(admission), None).name
    'gemma'
    """

    def __init__(
        self,
        generator: Generator,
        name: str,
        admission: Admission,
        metrics: Metrics,
        library: "Library | None",
    ) -> None:
        self.generator = generator
        self.name = name
        self.admission = admission
        self.metrics = metrics
        self.library = library

    async def chat(self, http: HttpRequest, body: ChatBody) -> Response:
        """POST /v1/chat/completions.

        >>> from starlette.testclient import TestClient
        >>> from gemmary.serve.server import create_app
        >>> client = TestClient(create_app(ScriptedGenerator({"Hi": "Hello!"}), name="gemma"))
        >>> said = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
        >>> said.json()["choices"][0]["message"]["content"]
        'Hello!'
        """
        self.admission.check_room(body.num_choices)  # before there is any work
        job = await asyncio.to_thread(self._chat_job, body)
        return await self._answer(http, job, body)

    async def complete(self, http: HttpRequest, body: CompletionBody) -> Response:
        """POST /v1/completions.

        >>> from starlette.testclient import TestClient
        >>> from gemmary.serve.server import create_app
        >>> client = TestClient(create_app(ScriptedGenerator({"Hi": "Hello!"}), name="gemma"))
        >>> client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 3}).json()["choices"][0]["text"]
        'Hel'
        """
        self.admission.check_room(len(body.prompts) * body.num_choices)
        job = await asyncio.to_thread(self._completion_job, body)
        return await self._answer(http, job, body)

    async def embed(self, http: HttpRequest, body: EmbeddingBody) -> Response:
        """POST /v1/embeddings.

        >>> from starlette.testclient import TestClient
        >>> from gemmary.serve.server import create_app
        >>> client = TestClient(create_app(ScriptedGenerator({"Hi": "Hello!"}), name="gemma"))
        >>> client.post("/v1/embeddings", json={"input": "Hi"}).json()["error"]["message"]
        'expected a model with hidden states, got one without: serve it with an engine of ours'
        """
        self.admission.check_room(1)
        return await _unless_gone(http, self._embedded(body, _client(http)))

    async def _embedded(self, body: EmbeddingBody, client: str) -> Response:
        """An input at a time, each in its turn: they compute as much alone as together."""
        tokenizer, generator = self.generator.tokenizer, self.generator
        if not isinstance(generator, Embedder):
            raise InputError("expected a model with hidden states, got one without: serve it with an engine of ours")
        data, count = [], 0
        for at, given in enumerate(body.inputs):

            def work(given: str | list[int] = given) -> tuple[int, NDArray[np.float32]]:
                ids = tokenizer.prompt(given) if isinstance(given, str) else given
                return len(ids), generator.embed([ids])[0]

            length, row = await self.admission.run(work, client)
            vector = _packed(row) if body.encoding_format == "base64" else row.tolist()
            data.append({"object": "embedding", "index": at, "embedding": vector})
            count += length
        usage = {"prompt_tokens": count, "total_tokens": count}
        return json_response({"object": "list", "data": data, "model": self.name, "usage": usage})

    def _chat_job(self, body: ChatBody) -> "Job":
        tools = Tools.of(body.tools, body.tool_choice)
        grammar = body.response_format.grammar() if body.response_format else None
        if tools and grammar:
            raise InputError("expected tools or a response_format, got both: send one, or tool_choice 'none'")
        if body.documents and (grammar or (tools and tools.is_forced)):
            raise InputError(
                "expected documents or a form of the reply, got both: there may be no answer to put into it"
            )
        messages = conversation(body.messages, tools)
        more, generator = {}, self.generator
        if body.documents:
            messages, citations = self._grounded(messages)
            more = {"citations": citations}
            if not citations:  # a small model would make something up
                generator = ScriptedGenerator(
                    lambda _: NO_ANSWER, tokenizer=generator.tokenizer, config=generator.config
                )
        form = ChatForm(
            self.name,
            self.generator.tokenizer,
            tools=tools,
            with_logprobs=bool(body.logprobs),
            num_choices=body.num_choices,
            more=more,
        )
        ids = prompt_ids(self.generator.tokenizer, messages)
        requests = _requests(
            body,
            [ids],
            max_tokens=body.max_completion_tokens or body.max_tokens,
            alternatives=body.alternatives,
            grammar=tools.grammar() if tools else grammar,
        )
        return Job(form, _streams(generator, requests))

    def _completion_job(self, body: CompletionBody) -> "Job":
        tokenizer = self.generator.tokenizer
        prompts = [tokenizer.prompt(each) if isinstance(each, str) else each for each in body.prompts]
        requests = _requests(
            body,
            prompts,
            max_tokens=body.max_tokens or 16,
            alternatives=body.logprobs,
            grammar=body.response_format.grammar() if body.response_format else None,
        )
        with_logprobs = body.logprobs is not None
        form = TextForm(self.name, tokenizer, with_logprobs=with_logprobs, num_choices=body.num_choices)
        return Job(form, _streams(self.generator, requests))

    def _grounded(self, messages: list[Message]) -> tuple[list[Message], list[Json]]:
        """The conversation with passages before its last question, and what they are."""
        if self.library is None:
            raise InputError("expected a server with documents, got one without: start it without --no-documents")
        from gemmary.serve.documents import context

        question = messages[-1].content
        found = self.library.search(question)
        if not found:
            return messages, []
        tokenizer = self.generator.tokenizer
        room = int(self.generator.max_length * _SHARE_OF_CONTEXT)
        text, used = context(question, found, room, lambda text: len(tokenizer.encode(text)))
        citations = [
            {"number": number, "passage": each.passage.id, **each.passage.described()}
            for number, each in enumerate(used, start=1)
        ]
        return [*messages[:-1], Message(messages[-1].role, text)], citations

    async def _answer(self, http: HttpRequest, job: "Job", body: Settings) -> Response:
        self.admission.check_room(len(job.streams))  # others may have come meanwhile
        if body.stream:
            events = self._events(job, _client(http), wants_usage=body.wants_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        return await _unless_gone(http, self._whole(job, _client(http)))

    async def _whole(self, job: "Job", client: str) -> Response:
        replies: list[list[Token]] = [[] for _ in job.streams]
        async with aclosing(self._merged(job.streams, client)) as tokens:
            async for index, token in tokens:
                replies[index].append(token)
        return await asyncio.to_thread(lambda: json_response(job.form.whole(replies)))

    async def _events(self, job: "Job", client: str, *, wants_usage: bool) -> AsyncGenerator[bytes, None]:
        last: list[list[Token]] = [[] for _ in job.streams]
        try:
            for piece in job.form.opening():
                yield _event(piece)
            async with aclosing(self._merged(job.streams, client)) as tokens:
                async for index, token in tokens:
                    last[index] = [token]
                    if said := job.form.piece(index, token):
                        yield _event(said)
            if wants_usage:
                yield _event(job.form.closing(last))
        except GemmaryError as error:
            yield b"data: " + error_body(400, str(error)) + b"\n\n"
        yield _DONE

    async def _merged(self, streams: Sequence[Stream], client: str) -> AsyncGenerator[tuple[int, Token], None]:
        """The tokens of all streams as they come, each with the place of its stream."""
        came: asyncio.Queue[tuple[int, Token] | None] = asyncio.Queue()

        async def put(index: int, stream: Stream) -> None:
            async with (
                aclosing(self.admission.tokens(stream, client)) as tokens,
                aclosing(self.metrics.watched(tokens)) as watched,
            ):
                async for token in watched:
                    came.put_nowait((index, token))

        async def put_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for index, stream in enumerate(streams):
                        group.create_task(put(index, stream))
            finally:
                came.put_nowait(None)

        work = asyncio.ensure_future(put_all())
        try:
            while (item := await came.get()) is not None:
                yield item
            await work
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            work.cancel()


class Job(NamedTuple):
    """What is to be answered: the streams of all choices, and the form of the answer.

    >>> Job._fields
    ('form', 'streams')
    """

    form: Form
    streams: list[Stream]


def json_response(content: Json) -> Response:
    """An answer in ASCII: what a model or client said may be no valid text.

    >>> json_response({"a": "\\ud800"}).body
    b'{"a": "\\\\ud800"}'
    """
    return Response(json.dumps(content), media_type="application/json")


def _requests(
    body: Settings,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int | None,
    alternatives: int | None,
    grammar: Grammar | None,
) -> list[Request]:
    return [
        body.request(ids, max_tokens=max_tokens, seed=seed, alternatives=alternatives, grammar=grammar)
        for ids in prompts
        for seed in body.seeds()
    ]


def _streams(generator: Generator, requests: Sequence[Request]) -> list[Stream]:
    """A stream for each, all checked; none runs yet."""
    return [generator.stream(request) for request in requests]


def _event(content: Json) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _client(http: HttpRequest) -> str:
    return http.client.host if http.client else ""


def _packed(row: NDArray[np.float32]) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


async def _unless_gone(http: HttpRequest, answer: Coroutine[Any, Any, Response]) -> Response:
    """The answer, unless its client goes away, which ends what makes it."""
    whole, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await whole if whole.done() else Response(status_code=499)  # nobody reads it
    finally:
        whole.cancel()
        gone.cancel()


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
