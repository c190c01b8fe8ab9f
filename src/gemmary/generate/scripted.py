# SPDX-License-Identifier: Apache-2.0
"""ScriptedGenerator: a Generator without a model, for tests of whatever stands on one.

    {"capital of France": "Paris"}      "What is the capital of France?"  ──►  "Paris"
    lambda request: ...                 any request                       ──►  what the function returns

Replies come token by token and obey max_tokens, stop strings and stop ids, as a model's do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import InputError
from gemmary.formats.sentencepiece import SPACE, Kind, Vocabulary
from gemmary.generate.generator import Stream
from gemmary.generate.reply import spell
from gemmary.generate.request import Completion, FinishReason, Request, Score, Usage
from gemmary.text.stream import Detokenizer
from gemmary.text.tokenizer import Tokenizer

Replies = Mapping[str, str] | Callable[[Request], str]


class ScriptedGenerator:
    """Answers from a mapping, by the key that stands last in the prompt, or from a function of the request.

    Without a tokenizer of its own every byte is a token (`byte_tokenizer`). All requests are kept in `requests`. Every
    token scores as if all were equally probable. Raises InputError for a prompt that no key is in.

    >>> generator = ScriptedGenerator({"France": "Paris.", "Spain": "Madrid."})
    >>> [one.text for one in generator.complete([Request("Capital of Spain?"), Request("France?", max_tokens=3)])]
    ['Madrid.', 'Par']
    >>> [token.text for token in generator.stream(Request("France", stop=("s",)))]
    ['P', 'a', 'r', 'i', '']
    >>> generator.score([[2, 80, 97]])[0].log_probs.round(2).tolist()
    [-5.57, -5.57]
    """

    def __init__(
        self, replies: Replies, *, tokenizer: Tokenizer | None = None, config: GemmaConfig | None = None
    ) -> None:
        self.requests: list[Request] = []
        self._replies = replies
        self._tokenizer = tokenizer or byte_tokenizer()
        self._config = config or GemmaConfig(
            vocab_size=self._tokenizer.vocab_size, num_layers=1, model_dim=8, num_heads=1, num_kv_heads=1, mlp_dim=8
        )

    @property
    def config(self) -> GemmaConfig:
        """The sizes a model would have."""
        return self._config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that replies are cut with."""
        return self._tokenizer

    @property
    def max_length(self) -> int:
        """The most tokens of a prompt and its reply together; longer ones are answered all the same."""
        return self._config.max_length

    def stream(self, request: Request) -> Stream:
        """The scripted reply, token by token."""
        self.requests.append(request)
        return self._spelled(request, self._reply(request))

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """The scripted replies, whole."""
        return [self._completion(request) for request in requests]

    def score(self, sequences: Sequence[Sequence[int]], contexts: Sequence[int] | None = None) -> list[Score]:
        """Equal probability for every token."""
        even = -math.log(self._config.vocab_size)
        given = [1] * len(sequences) if contexts is None else contexts
        lengths = [max(0, len(sequence) - count) for sequence, count in zip(sequences, given, strict=True)]
        return [Score(log_probs=np.full(n, even), is_greedy=np.zeros(n, np.bool_)) for n in lengths]

    def _completion(self, request: Request) -> Completion:
        tokens = list(self.stream(request))
        reason, usage = tokens[-1].finish_reason, tokens[-1].usage
        assert reason is not None and usage is not None
        text = "".join(token.text for token in tokens)
        return Completion(ids=tuple(token.id for token in tokens), text=text, finish_reason=reason, usage=usage)

    def _reply(self, request: Request) -> str:
        if callable(self._replies):
            return self._replies(request)
        text = request.prompt if isinstance(request.prompt, str) else self._tokenizer.decode(request.prompt)
        found = {text.rfind(key) + len(key): reply for key, reply in self._replies.items() if key in text}
        if not found:
            raise InputError(f"expected a prompt with one of {', '.join(map(repr, self._replies))}, got {text!r}")
        return found[max(found)]

    def _spelled(self, request: Request, reply: str) -> Stream:
        ids = [*self._tokenizer.encode(reply), self._tokenizer.eos_id][: request.max_tokens]
        detokenizer = Detokenizer(self._tokenizer, request.stop)
        for count, token_id in enumerate(ids, start=1):
            reason: FinishReason | None = "length" if count == request.max_tokens else None
            token = spell(detokenizer, token_id, "stop" if token_id == self._tokenizer.eos_id else reason)
            if request.alternatives is not None:  # what is scripted is certain
                token = replace(token, log_prob=0.0, alternatives=((token_id, 0.0),)[: request.alternatives])
            if token.finish_reason is not None:
                yield replace(token, usage=self._usage(request, count))
                return
            yield token

    def _usage(self, request: Request, count: int) -> Usage:
        prompt = request.prompt
        return Usage(
            prompt_tokens=len(self._tokenizer.prompt(prompt) if isinstance(prompt, str) else prompt),
            completion_tokens=count,
            cached_tokens=0,
            prefill_seconds=0.0,
            decode_seconds=0.0,
        )


def byte_tokenizer() -> Tokenizer:
    """A tokenizer whose vocabulary is Gemma's special pieces, the 256 bytes and the space: any text, no file.

    >>> byte_tokenizer().prompt("é")
    [2, 201, 175]
    """
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), SPACE]
    kinds = [Kind.CONTROL] * 3 + [Kind.UNKNOWN] + [Kind.CONTROL] * 2 + [Kind.BYTE] * 256 + [Kind.NORMAL]
    return Tokenizer(Vocabulary.from_rows(pieces, [0.0] * len(pieces), kinds))
