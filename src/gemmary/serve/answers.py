# SPDX-License-Identifier: Apache-2.0
"""What clients get: tokens in the shapes of OpenAI's completions and chats, whole or piece by piece.

tokens of choice 0, 1, ... ─► whole(): one object          │ Form: what the two have in common
                           ─► piece(): one object a token  │ TextForm, ChatForm: text_completion, chat.completion
"""

import secrets
import time
from abc import ABC, abstractmethod
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from gemmary.generate.request import Token
from gemmary.serve.tools import Tools
from gemmary.text.tokenizer import Tokenizer

Json = dict[str, Any]


def cost(replies: Sequence[Sequence[Token]], choices: int = 1) -> Json:
    """What replies cost together, by their last tokens; a prompt's choices, one after the other, count it once.

    Seconds are from when the first prompt began to run to its first token, and from there to the last one.

    >>> cost([])["usage"]["total_tokens"], cost([])["timings"]
    (0, {'prefill_seconds': 0, 'decode_seconds': 0})
    """
    found = [usage for tokens in replies if tokens and (usage := tokens[-1].usage) is not None]
    prompt, reply = sum(each.prompt_tokens for each in found[::choices]), sum(each.completion_tokens for each in found)
    return {
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": reply,
            "total_tokens": prompt + reply,
            "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in found[::choices])},
        },
        "timings": {
            "prefill_seconds": max((each.prefill_seconds for each in found), default=0),
            "decode_seconds": max((each.decode_seconds for each in found), default=0),
        },
    }


class Form(ABC):
    """What the two have in common: a frame of id, time and model's name, its choices, and what they cost.

    `more` stands in the whole answer, and in a stream's first piece. Examples are at the two.

    >>> Form.__abstractmethods__ == {"piece", "_choice"}
    True
    """

    prefix: str
    kind: str  # of the whole answer
    piece_kind: str

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        *,
        with_logprobs: bool = False,
        num_choices: int = 1,  # of each prompt
        more: Json | None = None,
    ) -> None:
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._tokenizer = tokenizer
        self._with_logprobs = with_logprobs
        self._num_choices = num_choices
        self._more = more or {}

    @abstractmethod
    def _choice(self, index: int, tokens: Sequence[Token]) -> Json:
        """A choice with all of its tokens."""

    @abstractmethod
    def piece(self, index: int, token: Token) -> Json | None:
        """What a stream says for a token; None for nothing.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> forms = TextForm("gemma", byte_tokenizer()), ChatForm("gemma", byte_tokenizer())
        >>> [form.piece(0, Token(id=103, text="a"))["object"] for form in forms]
        ['text_completion', 'chat.completion.chunk']
        """

    def whole(self, replies: Sequence[Sequence[Token]]) -> Json:
        """The answer with every choice.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> list(TextForm("gemma", byte_tokenizer()).whole([]))
        ['id', 'created', 'model', 'object', 'choices', 'usage', 'timings']
        """
        choices = [self._choice(index, tokens) for index, tokens in enumerate(replies)]
        return self._frame(self.kind, choices, **cost(replies, self._num_choices), **self._more)

    def opening(self) -> list[Json]:
        """What a stream begins with.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> TextForm("gemma", byte_tokenizer()).opening()
        []
        """
        return []

    def closing(self, replies: Sequence[Sequence[Token]]) -> Json:
        """What a stream ends with where usage is wanted; each reply's last token is enough.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> ChatForm("gemma", byte_tokenizer()).closing([])["choices"]
        []
        """
        return self._frame(self.piece_kind, [], **cost(replies, self._num_choices))

    def _frame(self, kind: str, choices: list[Json], **more: Any) -> Json:
        return {**self._head, "object": kind, "choices": choices, **more}

    def _spelled(self, token_id: int) -> tuple[str, list[int]]:
        """A token as text and as bytes; one without any, such as an end of turn, by its name."""
        found = self._tokenizer.token_bytes(token_id)
        return (found.decode(errors="replace") if found else self._tokenizer.pieces[token_id]), list(found)

    def _shown(self, tokens: Sequence[Token]) -> list[Token]:
        """Those that are a part of the reply and not only its end."""
        return [token for token in tokens if token.id not in self._tokenizer.stop_ids]


class TextForm(Form):
    """POST /v1/completions.

    >>> from gemmary.generate.scripted import byte_tokenizer
    >>> form = TextForm("gemma", byte_tokenizer())
    >>> form.whole([[Token(id=103, text="a", finish_reason="length")]])["choices"]
    [{'index': 0, 'text': 'a', 'finish_reason': 'length', 'logprobs': None}]
    """

    prefix, kind, piece_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, tokenizer: Tokenizer, *, with_logprobs: bool = False, num_choices: int = 1) -> None:
        super().__init__(model, tokenizer, with_logprobs=with_logprobs, num_choices=num_choices)
        self._offsets: dict[int, int] = {}  # of each choice: characters so far, those of a stop string included
        self._decoders: dict[int, IncrementalDecoder] = {}

    def piece(self, index: int, token: Token) -> Json | None:
        """What a stream says for a token; None for nothing.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> form = TextForm("gemma", byte_tokenizer())
        >>> form.piece(0, Token(id=103, text="a"))["choices"][0]["text"], form.piece(0, Token(id=103, text=""))
        ('a', None)
        """
        if not token.text and token.finish_reason is None and not self._with_logprobs:
            return None
        return self._frame(self.piece_kind, [self._choice(index, [token])])

    def _choice(self, index: int, tokens: Sequence[Token]) -> Json:
        """A choice with all of its tokens, or with one of a stream."""
        return {
            "index": index,
            "text": "".join(token.text for token in tokens),
            "finish_reason": tokens[-1].finish_reason,
            "logprobs": self._logprobs(index, tokens) if self._with_logprobs else None,
        }

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> Json:
        shown = self._shown(tokens)
        offsets = []
        for token in shown:
            offsets.append(self._offsets.get(index, 0))
            decoder = self._decoders.setdefault(index, getincrementaldecoder("utf-8")(errors="replace"))
            self._offsets[index] = offsets[-1] + len(decoder.decode(self._tokenizer.token_bytes(token.id)))
        return {
            "tokens": [self._spelled(token.id)[0] for token in shown],
            "token_logprobs": [token.log_prob for token in shown],
            # of several tokens that are spelled alike, such as parts of a character, the most probable counts
            "top_logprobs": [
                {self._spelled(at)[0]: value for at, value in reversed(token.alternatives)} for token in shown
            ],
            "text_offset": offsets,
        }


class ChatForm(Form):
    """POST /v1/chat/completions.

    >>> from gemmary.generate.scripted import byte_tokenizer
    >>> form = ChatForm("gemma", byte_tokenizer())
    >>> form.whole([[Token(id=103, text="a", finish_reason="stop")]])["choices"][0]["message"]
    {'role': 'assistant', 'content': 'a', 'refusal': None}
    """

    prefix, kind, piece_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        *,
        tools: Tools | None = None,
        with_logprobs: bool = False,
        num_choices: int = 1,
        more: Json | None = None,
    ) -> None:
        super().__init__(model, tokenizer, with_logprobs=with_logprobs, num_choices=num_choices, more=more)
        self._tools = tools
        self._held: dict[int, list[Token] | None] = {}  # of each choice that may be a call, all of it so far

    def opening(self) -> list[Json]:
        """What a stream begins with: who speaks.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> ChatForm("gemma", byte_tokenizer()).opening()[0]["choices"][0]["delta"]
        {'role': 'assistant', 'content': ''}
        """
        delta: Json = {"role": "assistant", "content": ""}
        choices = [self._delta(index, delta, None, ()) for index in range(self._num_choices)]
        return [self._frame(self.piece_kind, [each], **({} if at else self._more)) for at, each in enumerate(choices)]

    def piece(self, index: int, token: Token) -> Json | None:
        """What a stream says for a token; None for nothing. What may be a call is said when it is whole.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> ChatForm("gemma", byte_tokenizer()).piece(0, Token(id=103, text="a"))["choices"][0]["delta"]
        {'content': 'a'}
        """
        held = self._held.get(index, []) if self._tools else None
        if held is None:
            tokens, text, call = [token], token.text, None
        else:
            tokens = [*held, token]
            begins = next((each.text[0] for each in tokens if each.text), "{")
            if begins == "{" and token.finish_reason is None:
                self._held[index] = tokens
                return None
            self._held[index] = None
            text, call = self._said(tokens)
        reason: str | None = "tool_calls" if call else token.finish_reason
        if not (text or call or reason or self._with_logprobs):
            return None
        delta = {"tool_calls": [{"index": 0, **call}]} if call else {"content": text} if text or not reason else {}
        return self._frame(self.piece_kind, [self._delta(index, delta, reason, tokens)])

    def _choice(self, index: int, tokens: Sequence[Token]) -> Json:
        """A choice with all of its tokens."""
        text, call = self._said(tokens)
        message: Json = {"role": "assistant", "content": None if call else text, "refusal": None}
        return {
            "index": index,
            "message": {**message, "tool_calls": [call]} if call else message,
            "finish_reason": "tool_calls" if call else tokens[-1].finish_reason,
            "logprobs": self._logprobs(tokens),
        }

    def _said(self, tokens: Sequence[Token]) -> tuple[str, Json | None]:
        """The text of tokens, or the call that it is."""
        text = "".join(token.text for token in tokens)
        call = self._tools.called(text) if self._tools else None
        if call is None:
            return text, None
        function = {"name": call.name, "arguments": call.arguments}
        return "", {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}

    def _delta(self, index: int, delta: Json, reason: str | None, tokens: Sequence[Token]) -> Json:
        logprobs = self._logprobs(tokens) if tokens else None
        return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}

    def _logprobs(self, tokens: Sequence[Token]) -> Json | None:
        if not self._with_logprobs:
            return None

        def one(token_id: int, value: float | None) -> Json:
            text, found = self._spelled(token_id)
            return {"token": text, "logprob": value, "bytes": found}

        content = [
            {**one(token.id, token.log_prob), "top_logprobs": [one(at, value) for at, value in token.alternatives]}
            for token in self._shown(tokens)
        ]
        return {"content": content, "refusal": None}
