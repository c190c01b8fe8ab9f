# SPDX-License-Identifier: Apache-2.0
"""Endpoint: a model that answers behind an address, through the OpenAI protocol (vLLM, llama.cpp, OpenAI, ours).

conversations ─► chat     ─► POST {url}/chat/completions ─┐   again, after ever longer waits, for no connection, no
requests      ─► complete ─► POST {url}/completions ──────┴─► answer in time, 408, 409, 429 and 5xx ─► texts
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gemmary.base.errors import GemmaryError, InputError, MissingExtraError
from gemmary.generate.request import Request, Sampling
from gemmary.text.chat import Message

if TYPE_CHECKING:
    from openai import OpenAI

GREEDY = Sampling()
Talk = str | Sequence[Message]  # a text is one message by the user


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model's address, with the /v1 at its end. Texts come back in order; `parallel` requests are under way at once.

    The key is `api_key` or else that of OPENAI_API_KEY; no message shows it. What the protocol has no word for, as
    top_k and ignore_stop_ids, is refused rather than dropped. `chat` is a judge for `compare`.

    >>> endpoint = Endpoint(url="http://127.0.0.1:9/v1", model="gemma", retries=0)
    >>> endpoint.chat(["Hi!"])
    Traceback (most recent call last):
    gemmary.base.errors.GemmaryError: expected an answer of http://127.0.0.1:9/v1/chat/completions, got ...
    >>> endpoint.complete([])
    []

    Raises InputError for bad values, MissingExtraError without the openai client, GemmaryError for a server's failure.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0  # seconds for one try
    retries: int = 4
    parallel: int = 8

    def __post_init__(self) -> None:
        is_address = self.url.startswith(("http://", "https://"))
        if not is_address or self.timeout <= 0 or self.retries < 0 or self.parallel < 1:
            raise InputError(f"expected an http url, timeout > 0, retries >= 0, parallel >= 1, got {self}: give such")
        if find_spec("openai") is None:
            raise MissingExtraError.of("a model behind an address", "the openai client", "remote")

    def chat(
        self, talks: Sequence[Talk], *, max_tokens: int = 1024, sampling: Sampling = GREEDY, stop: Sequence[str] = ()
    ) -> list[str]:
        """What the model replies to each conversation; a text is one message by the user."""
        settings = _settings(sampling, max_tokens, stop)
        return self._ask("chat/completions", [{"messages": _messages(talk), **settings} for talk in talks])

    def complete(self, requests: Sequence[Request]) -> list[str]:
        """What the model goes on with after each prompt, of text or token ids, without a chat template around it."""
        if any(one.ignore_stop_ids for one in requests):
            raise InputError("expected requests that end where the model ends, got ignore_stop_ids: leave it out")
        bodies = [{"prompt": one.prompt, **_settings(one.sampling, one.max_tokens, one.stop)} for one in requests]
        return self._ask("completions", bodies)

    def _ask(self, path: str, bodies: list[dict[str, Any]]) -> list[str]:
        from openai import OpenAI

        key = (self.api_key or os.environ.get("OPENAI_API_KEY", "")).strip() or "no-key"  # one's own server takes any
        made = OpenAI(api_key=key, base_url=self.url, timeout=self.timeout, max_retries=self.retries)
        with made as client, ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda body: _text(client, path, {"model": self.model, **body}), bodies))


def _messages(talk: Talk) -> list[dict[str, str]]:
    spoken = [Message("user", talk)] if isinstance(talk, str) else talk
    return [{"role": "assistant" if each.role == "model" else each.role, "content": each.content} for each in spoken]


def _settings(sampling: Sampling, max_tokens: int, stop: Sequence[str]) -> dict[str, Any]:
    if (sampling.top_k, sampling.min_p, sampling.repetition_penalty) != (0, 0, 1):
        raise InputError(f"expected sampling by temperature and top_p, got {sampling}: the protocol has no more")
    drawn = {} if sampling.is_greedy else {"top_p": sampling.top_p, "seed": sampling.seed % 2**63}
    return {"max_tokens": max_tokens, "temperature": sampling.temperature, **drawn, **({"stop": stop} if stop else {})}


def _text(client: "OpenAI", path: str, body: dict[str, Any]) -> str:
    """The text of the one choice; null, as of a model that thought for too long, is an empty text."""
    from openai import APIConnectionError, APIStatusError

    answer = ""
    try:
        answer = client.post(f"/{path}", cast_to=str, body=body)
        choice = json.loads(answer)["choices"][0]
        said = choice["message"]["content"] if path == "chat/completions" else choice["text"]
        return "" + (said or "")  # a TypeError for what is no text
    except APIConnectionError as error:  # a time-out too
        came, remedy = str(error.__cause__ or error), "is it running, is this its address, and is the timeout enough?"
    except APIStatusError as error:
        came, remedy = str(error), "are url, model and api_key (or OPENAI_API_KEY) right?"
    except (ValueError, TypeError, LookupError) as error:
        came, remedy = answer or str(error), "is this the address of its /v1?"
    shown = " ".join(came.replace(client.api_key, "***").split())[:300]
    raise GemmaryError(f"expected an answer of {client.base_url}{path}, got {shown}: {remedy}")
