# SPDX-License-Identifier: Apache-2.0
"""The public fake behaves as a model's Generator does."""

import pytest

from gemmary.base.errors import InputError
from gemmary.generate.generator import Generator
from gemmary.generate.request import Request
from gemmary.generate.scripted import ScriptedGenerator
from gemmary.text.chat import Message, prompt_ids


def test_the_stream_is_the_completion_in_pieces() -> None:
    generator: Generator = ScriptedGenerator({"hi": "grüß dich"})
    tokens = list(generator.stream(Request("hi")))
    [whole] = generator.complete([Request("hi")])
    assert "".join(token.text for token in tokens) == whole.text == "grüß dich"
    assert tuple(token.id for token in tokens) == whole.ids
    assert (whole.finish_reason, whole.ids[-1]) == ("stop", generator.tokenizer.eos_id)
    assert [token.finish_reason for token in tokens][:-1] == [None] * (len(tokens) - 1)


def test_the_room_and_stop_strings_end_a_reply() -> None:
    generator = ScriptedGenerator(lambda request: "one, two, three")
    short, stopped = generator.complete([Request("count", max_tokens=5), Request("count", stop=("two",))])
    assert (short.text, short.finish_reason, len(short.ids)) == ("one, ", "length", 5)
    assert (stopped.text, stopped.finish_reason) == ("one, ", "stop")


def test_of_several_keys_the_one_that_stands_last_answers() -> None:
    generator = ScriptedGenerator({"sun": "day", "moon": "night"})
    turns = [Message("user", "sun"), Message("model", "day"), Message("user", "moon")]
    assert generator.complete([Request(prompt_ids(generator.tokenizer, turns))])[0].text == "night"


def test_a_prompt_without_a_key_is_an_error_that_names_the_keys() -> None:
    with pytest.raises(InputError, match="expected a prompt with one of 'sun', 'moon', got 'stars'"):
        ScriptedGenerator({"sun": "day", "moon": "night"}).stream(Request("stars"))


def test_requests_are_kept() -> None:
    generator, request = ScriptedGenerator({"": "x"}), Request("a", max_tokens=2)
    generator.complete([request])
    assert generator.requests == [request]


def test_usage_counts_the_prompt_with_bos() -> None:
    usage = ScriptedGenerator({"": "xyz"}).complete([Request("ab")])[0].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 4)
