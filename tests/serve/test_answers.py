# SPDX-License-Identifier: Apache-2.0
"""A stream says what the whole answer says: text, calls, reasons, probabilities and costs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gemmary.generate.request import Request, Token
from gemmary.generate.scripted import ScriptedGenerator, byte_tokenizer
from gemmary.serve.answers import ChatForm, Form, TextForm
from gemmary.serve.schema import Function, Tool
from gemmary.serve.tools import Tools

CALL = '{"name": "now", "parameters": {"zone": "é"}}'
TOOLS = Tools.of([Tool(type="function", function=Function(name="now"))], "auto")


def tokens_of(text: str, **more: Any) -> list[Token]:
    return list(ScriptedGenerator({"?": text}).stream(Request("?", alternatives=1, **more)))


def streamed(form: Form, replies: Sequence[Sequence[Token]]) -> list[dict[str, Any]]:
    pieces = [form.piece(index, token) for index, tokens in enumerate(replies) for token in tokens]
    return [
        *form.opening(),
        *(piece for piece in pieces if piece is not None),
        form.closing([tokens[-1:] for tokens in replies]),
    ]


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("more", [{}, {"max_tokens": 7}, {"stop": ("m",)}], ids=str)
@pytest.mark.parametrize("text", ["It is late: {", CALL, '{"name": "other"}', "é", ""])
def test_a_streamed_chat_is_the_whole_one(text: str, more: dict[str, Any], tools: Tools | None) -> None:
    replies = [tokens_of(text, **more), tokens_of("b")]
    settings = {"tools": tools, "with_logprobs": True, "num_choices": 2, "more": {"citations": []}}
    whole = ChatForm("gemma", byte_tokenizer(), **settings).whole(replies)
    pieces = streamed(ChatForm("gemma", byte_tokenizer(), **settings), replies)
    assert pieces[0]["citations"] == whole["citations"] == []
    assert (pieces[-1]["usage"], pieces[-1]["timings"]) == (whole["usage"], whole["timings"])
    for index, choice in enumerate(whole["choices"]):
        said = [one for piece in pieces for one in piece["choices"] if one["index"] == index]
        content = "".join(one["delta"].get("content") or "" for one in said)
        calls = [call["function"] for one in said for call in one["delta"].get("tool_calls", ())]
        message = choice["message"]
        assert content == (message["content"] or "")
        assert calls == [call["function"] for call in message.get("tool_calls", ())]
        assert [one["finish_reason"] for one in said if one["finish_reason"]] == [choice["finish_reason"]]
        assert [token for one in said if one["logprobs"] for token in one["logprobs"]["content"]] == (
            choice["logprobs"]["content"]
        )
    assert (whole["choices"][0]["finish_reason"] == "tool_calls") == (text == CALL and not more and tools is not None)


@pytest.mark.parametrize("text", ["abc", "é and ü", ""])
def test_a_streamed_completion_is_the_whole_one(text: str) -> None:
    tokens = tokens_of(text, stop=("nd",))
    whole = TextForm("gemma", byte_tokenizer(), with_logprobs=True).whole([tokens])["choices"][0]
    pieces = streamed(TextForm("gemma", byte_tokenizer(), with_logprobs=True), [tokens])
    said = [choice for piece in pieces for choice in piece["choices"]]
    assert "".join(one["text"] for one in said) == whole["text"]
    assert said[-1]["finish_reason"] == whole["finish_reason"] == "stop"
    for name, values in whole["logprobs"].items():
        assert [value for one in said for value in one["logprobs"][name]] == values
    offsets = whole["logprobs"]["text_offset"]
    assert offsets == sorted(offsets)


def test_tokens_spelled_alike_have_the_probability_of_the_best() -> None:
    token = replace(tokens_of("a")[0], alternatives=((6 + 0x80, -0.1), (6 + 0x81, -3.0)))
    found = TextForm("gemma", byte_tokenizer(), with_logprobs=True).whole([[token]])["choices"][0]["logprobs"]
    assert found["top_logprobs"] == [{"\ufffd": -0.1}]


def test_a_prompt_counts_once_for_all_of_its_choices() -> None:
    replies = [tokens_of("ab"), tokens_of("c"), tokens_of("d"), tokens_of("e")]
    found = TextForm("gemma", byte_tokenizer(), num_choices=2).whole(replies)["usage"]
    assert (found["prompt_tokens"], found["completion_tokens"]) == (4, 3 + 2 + 2 + 2)
