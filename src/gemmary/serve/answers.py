# SPDX-License-Identifier: Apache-2.0
"""What clients get: tokens in the shapes of OpenAI's completions and chats, whole or piece by piece.

tokens of choice 0, 1, ... ─► whole(): one object          │ Form: what the two have in common
                           ─► piece(): one object a token  │ TextForm, ChatForm: text_completion, chat.completion
"""

import secrets
import time
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from gemmary.generate.request import Token
from gemmary.serve.tools import Tools
from gemmary.text.tokenizer import Tokenizer

Json = dict[str, Any]


def usage(replies: Sequence[Sequence[Token]], choices: int = 1) -> Json:
    """What replies cost together, by their last tokens; a prompt's choices, one after the other, count it once.

    >>> usage([])["total_tokens"]
    0
    """
    costs = [tokens[-1].usage for tokens in replies if tokens]
    found = [cost for cost in costs if cost is not None]
    prompt, reply = (
        sum(cost.prompt_tokens for cost in found[::choices]),
        sum(cost.completion_tokens for cost in found),
    )
    return {
        "prompt_tokens": prompt,
        "completion_tokens": reply,
        "total_tokens": prompt + reply,
        "prompt_tokens_details": {"cached_tokens": sum(cost.cached_tokens for cost in found[::choices])},
    }


def timings(replies: Sequence[Sequence[Token]]) -> Json:
    """Seconds from when the first prompt began to run to its first token, and from there to the last one.

    >>> timings([])
    {'prefill_seconds': 0, 'decode_seconds': 0}
    """
    costs = [tokens[-1].usage for tokens in replies if tokens]
    found = [cost for cost in costs if cost is not None]
    return {
        "prefill_seconds": max((cost.prefill_seconds for cost in found), default=0),
        "decode_seconds": max((cost.decode_seconds for cost in found), default=0),
    }


class Form:
    """The object's frame: an id, a time, the model's name; subclasses say what a choice looks like.

    >>> from gemmary.generate.scripted import byte_tokenizer
    >>> Form("cmpl", "text_completion", "gemma", byte_tokenizer()).frame([], "text_completion")["model"]
    'gemma'
    """

    def __init__(self, prefix: str, kind: str, model: str, tokenizer: Tokenizer, num_choices: int = 1) -> None:
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._kind = kind
        self._tokenizer = tokenizer
        self._num_choices = num_choices  # of each prompt

    def cost(self, replies: Sequence[Sequence[Token]]) -> Json:
        """The fields that say what all replies cost.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> list(Form("cmpl", "text_completion", "gemma", byte_tokenizer()).cost([]))
        ['usage', 'timings']
        """
        return {"usage": usage(replies, self._num_choices), "timings": timings(replies)}

    def frame(self, choices: list[Json], kind: str, **more: Any) -> Json:
        """An object of this answer around its choices.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> Form("cmpl", "text_completion", "gemma", byte_tokenizer()).frame([], "list", usage=None)["usage"] is None
        True
        """
        return {**self._head, "object": kind, "choices": choices, **more}

    def spelled(self, token_id: int) -> tuple[str, list[int]]:
        """A token as text and as bytes; one without any, such as an end of turn, by its name.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> form = Form("cmpl", "text_completion", "gemma", byte_tokenizer())
        >>> form.spelled(6 + 97), form.spelled(1)
        (('a', [97]), ('<eos>', []))
        """
        found = self._tokenizer.token_bytes(token_id)
        return (found.decode(errors="replace") if found else self._tokenizer.pieces[token_id]), list(found)

    def is_shown(self, token: Token) -> bool:
        """Whether a token is a part of the reply and not only its end.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> Form("cmpl", "text_completion", "gemma", byte_tokenizer()).is_shown(Token(id=1, text=""))
        False
        """
        return token.id not in self._tokenizer.stop_ids


class TextForm(Form):
    """POST /v1/completions.

    >>> from gemmary.generate.scripted import byte_tokenizer
    >>> form = TextForm("gemma", byte_tokenizer(), with_logprobs=False)
    >>> form.whole([[Token(id=103, text="a", finish_reason="length")]])["choices"]
    [{'index': 0, 'text': 'a', 'finish_reason': 'length', 'logprobs': None}]
    """

    def __init__(self, model: str, tokenizer: Tokenizer, *, with_logprobs: bool, num_choices: int = 1) -> None:
        super().__init__("cmpl", "text_completion", model, tokenizer, num_choices)
        self._with_logprobs = with_logprobs
        self._offsets: dict[int, int] = {}  # of each choice: characters so far, those of a stop string included
        self._decoders: dict[int, IncrementalDecoder] = {}

    def whole(self, replies: Sequence[Sequence[Token]]) -> Json:
        """The answer with every choice.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> TextForm("gemma", byte_tokenizer(), with_logprobs=False).whole([])["object"]
        'text_completion'
        """
        choices = [self._choice(index, tokens) for index, tokens in enumerate(replies)]
        return self.frame(choices, self._kind, **self.cost(replies))

    def opening(self) -> list[Json]:
        """What a stream begins with: nothing.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> TextForm("gemma", byte_tokenizer(), with_logprobs=False).opening()
        []
        """
        return []

    def piece(self, index: int, token: Token) -> Json | None:
        """What a stream says for a token; None for nothing.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> form = TextForm("gemma", byte_tokenizer(), with_logprobs=False)
        >>> form.piece(0, Token(id=103, text="a"))["choices"][0]["text"], form.piece(0, Token(id=103, text=""))
        ('a', None)
        """
        if not token.text and token.finish_reason is None and not self._with_logprobs:
            return None
        return self.frame([self._choice(index, [token])], self._kind)

    def closing(self, replies: Sequence[Sequence[Token]]) -> Json:
        """What a stream ends with where usage is wanted.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> TextForm("gemma", byte_tokenizer(), with_logprobs=False).closing([])["choices"]
        []
        """
        return self.frame([], self._kind, **self.cost(replies))

    def _choice(self, index: int, tokens: Sequence[Token]) -> Json:
        return {
            "index": index,
            "text": "".join(token.text for token in tokens),
            "finish_reason": tokens[-1].finish_reason,
            "logprobs": self._logprobs(index, tokens) if self._with_logprobs else None,
        }

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> Json:
        shown = [token for token in tokens if self.is_shown(token)]
        offsets = []
        for token in shown:
            offsets.append(self._offsets.get(index, 0))
            decoder = self._decoders.setdefault(index, getincrementaldecoder("utf-8")(errors="replace"))
            self._offsets[index] = offsets[-1] + len(decoder.decode(self._tokenizer.token_bytes(token.id)))
        return {
            "tokens": [self.spelled(token.id)[0] for token in shown],
            "token_logprobs": [token.log_prob for token in shown],
            # of several tokens that are spelled alike, such as parts of a character, the most probable counts
            "top_logprobs": [
                {self.spelled(at)[0]: value for at, value in reversed(token.alternatives)} for token in shown
            ],
            "text_offset": offsets,
        }


class ChatForm(Form):
    """POST /v1/chat/completions; `more` stands in the whole answer, and in a stream's first piece.

    >>> from gemmary.generate.scripted import byte_tokenizer
    >>> form = ChatForm("gemma", byte_tokenizer(), tools=None, with_logprobs=False)
    >>> form.whole([[Token(id=103, text="a", finish_reason="stop")]])["choices"][0]["message"]
    {'role': 'assistant', 'content': 'a', 'refusal': None}
    """

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        *,
        tools: Tools | None,
        with_logprobs: bool,
        num_choices: int = 1,
        more: Json | None = None,
    ) -> None:
        super().__init__("chatcmpl", "chat.completion", model, tokenizer, num_choices)
        self._tools = tools
        self._with_logprobs = with_logprobs
        self._more = more or {}
        self._held: dict[int, list[Token]] = {}  # of each choice, where it may be a call: all of it so far

    def whole(self, replies: Sequence[Sequence[Token]]) -> Json:
        """The answer with every choice.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> ChatForm("gemma", byte_tokenizer(), tools=None, with_logprobs=False).whole([])["object"]
        'chat.completion'
        """
        choices = [self._choice(index, tokens) for index, tokens in enumerate(replies)]
        return self.frame(choices, self._kind, **self.cost(replies), **self._more)

    def opening(self) -> list[Json]:
        """What a stream begins with: who speaks.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> form = ChatForm("gemma", byte_tokenizer(), tools=None, with_logprobs=False)
        >>> form.opening()[0]["choices"][0]["delta"]
        {'role': 'assistant', 'content': ''}
        """
        deltas = [self._delta(index, {"role": "assistant", "content": ""}) for index in range(self._num_choices)]
        return [
            self.frame([delta], f"{self._kind}.chunk", **({} if at else self._more)) for at, delta in enumerate(deltas)
        ]

    def piece(self, index: int, token: Token) -> Json | None:
        """What a stream says for a token; None for nothing. What may be a call is said when it is whole.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> form = ChatForm("gemma", byte_tokenizer(), tools=None, with_logprobs=False)
        >>> form.piece(0, Token(id=103, text="a"))["choices"][0]["delta"]
        {'content': 'a'}
        """
        shown, text, delta = [token], token.text, Json()
        reason: str | None = token.finish_reason
        if self._tools:
            held = self._held.setdefault(index, [])
            held.append(token)
            said = "".join(each.text for each in held)
            if said.startswith("{"):
                if reason is None:
                    return None
                call = self._tools.called(said)
                delta = {"tool_calls": [{"index": 0, **_tool_call(call.name, call.arguments)}]} if call else {}
                shown, text, reason = held, "" if call else said, "tool_calls" if call else reason
        if not text and not delta and reason is None and not self._with_logprobs:
            return None
        content = {"content": text} if text or not (delta or reason) else {}
        logprobs = self._logprobs(shown) if self._with_logprobs else None
        return self.frame([self._delta(index, {**content, **delta}, reason, logprobs)], f"{self._kind}.chunk")

    def closing(self, replies: Sequence[Sequence[Token]]) -> Json:
        """What a stream ends with where usage is wanted.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> ChatForm("gemma", byte_tokenizer(), tools=None, with_logprobs=False).closing([])["usage"]["total_tokens"]
        0
        """
        return self.frame([], f"{self._kind}.chunk", **self.cost(replies))

    def _choice(self, index: int, tokens: Sequence[Token]) -> Json:
        text = "".join(token.text for token in tokens)
        call = self._tools.called(text) if self._tools else None
        message: Json = {"role": "assistant", "content": None if call else text, "refusal": None}
        if call:
            message["tool_calls"] = [_tool_call(call.name, call.arguments)]
        return {
            "index": index,
            "message": message,
            "finish_reason": "tool_calls" if call else tokens[-1].finish_reason,
            "logprobs": self._logprobs(tokens) if self._with_logprobs else None,
        }

    def _delta(self, index: int, delta: Json, reason: str | None = None, logprobs: Json | None = None) -> Json:
        return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}

    def _logprobs(self, tokens: Sequence[Token]) -> Json:
        def one(token_id: int, value: float | None) -> Json:
            text, found = self.spelled(token_id)
            return {"token": text, "logprob": value, "bytes": found}

        shown = [token for token in tokens if self.is_shown(token)]
        content = [
            {**one(token.id, token.log_prob), "top_logprobs": [one(at, value) for at, value in token.alternatives]}
            for token in shown
        ]
        return {"content": content, "refusal": None}


def _tool_call(name: str, arguments: str) -> Json:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
