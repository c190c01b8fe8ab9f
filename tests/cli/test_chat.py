# SPDX-License-Identifier: Apache-2.0
"""gemmary chat: turns that remember, Ctrl-C that stops a reply and not the chat, a context that can fill up."""

import errno
import io
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gemmary.base.errors import ContextError
from gemmary.cli.chat import Conversation
from gemmary.generate.request import Request, Sampling, Token
from gemmary.generate.scripted import ScriptedGenerator
from gemmary.text.chat import Message, prompt_ids

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(command: Command, scripted: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Pipe lines into a chat with a generator."""

    def call(generator: ScriptedGenerator, lines: str, *options: str) -> tuple[int, str, str]:
        scripted(generator)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        return command("chat", "--model", "gemma-x-it", *options)

    return call


def spoken(generator: ScriptedGenerator) -> list[str]:
    """The prompts the model has seen, as text."""
    return [generator.tokenizer.decode(request.prompt) for request in generator.requests]


def test_each_turn_sees_the_turns_before_it(say: Callable) -> None:
    generator = ScriptedGenerator({"one": "uno", "two": "due", "three": "tre"})
    assert say(generator, "one\n\ntwo\n") == (0, "uno\ndue\n", "")
    assert spoken(generator) == ["user\none\nmodel\n", "user\none\nmodel\nuno\nuser\ntwo\nmodel\n"]
    first, second = (request.prompt for request in generator.requests)
    assert second[: len(first)] == first, "the cache of the first turn can be gone on from"


def test_the_system_text_stands_before_the_first_message_also_after_clear(say: Callable) -> None:
    generator = ScriptedGenerator({"one": "uno", "two": "due"})
    assert say(generator, "one\n/clear\ntwo\n/exit\none\n", "--system", "terse") == (0, "uno\ndue\n", "")
    assert spoken(generator) == ["user\nterse\n\none\nmodel\n", "user\nterse\n\ntwo\nmodel\n"]


def test_sampling_is_that_of_the_published_generation_config_unless_told(say: Callable) -> None:
    generator = ScriptedGenerator({"one": "uno"})
    say(generator, "one\n")
    say(generator, "one\n", "--temperature", "0", "--seed", "3")
    published, told = (request.sampling for request in generator.requests)
    assert published == Sampling(temperature=1.0, top_k=64, top_p=0.95)
    assert told == Sampling(temperature=0.0, top_k=64, top_p=0.95, seed=3)


def test_an_unknown_command_is_not_sent_to_the_model(say: Callable) -> None:
    generator = ScriptedGenerator({})
    status, out, err = say(generator, "/cler\n")
    assert (status, out, generator.requests) == (0, "", [])
    assert (
        err == "expected /clear or /exit, got /cler: /clear begins anew, /exit or Ctrl-D ends, Ctrl-C stops a reply\n"
    )


def test_the_model_and_its_adapter_are_said(
    command: Command, scripted: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ScriptedGenerator({"one": "uno"})
    scripted(asked)
    for arguments, expected in (
        ([], "gemma-3-270m with the chat adapter of this package: small, often wrong; --model names another\n"),
        (["--model", "gemma-3-270m"], "hint: gemma-3-270m has no -it in its name; a model that was pretrained"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n")))
        status, out, err = command("chat", *arguments)
        assert (status, out) == (0, "uno\n")
        assert err.startswith(expected) and err.count("\n") == 1
    ours, published = (request.sampling for request in asked.requests)
    assert ours == Sampling(temperature=0.7, top_k=64, top_p=0.95, repetition_penalty=1.1)
    assert published == Sampling(temperature=1.0, top_k=64, top_p=0.95)


@pytest.mark.slow
def test_the_package_s_own_chat_answers_and_ends(
    command: Command, default_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What is the capital of Italy?\n")))
    status, out, err = command("chat", "--temperature", "0")
    assert (status, out) == (0, "The capital of Italy is Rome.\n")
    assert err.count("\n") == 1, "nothing about a reply that was cut"


def test_a_reply_cut_by_its_limit_and_one_cut_by_the_context_say_so(say: Callable) -> None:
    class Full(ScriptedGenerator):
        def stream(self, request: Request) -> Iterator[Token]:
            yield Token(id=70, text="u", finish_reason="length")

    generator = ScriptedGenerator({"one": "unountil"})
    assert say(generator, "one\n", "-n", "3") == (
        0,
        "uno\n",
        "(the reply was cut after 3 tokens: --max-tokens allows more)\n",
    )
    assert say(Full({}), "one\n") == (0, "u\n", "(the context is full: /clear begins anew, --max-length allows more)\n")


def test_a_full_context_ends_a_pipe_with_status_2(say: Callable) -> None:
    class Full(ScriptedGenerator):
        def stream(self, request: Request) -> Iterator[Token]:
            raise ContextError("expected at most 7 tokens, got 8: shorten the prompt")

    assert say(Full({}), "one\n") == (2, "", "gemmary: expected at most 7 tokens, got 8: shorten the prompt\n")


def test_a_stopped_reply_stays_as_far_as_it_came_and_a_question_without_one_is_forgotten() -> None:
    conversation = Conversation(ScriptedGenerator({"one": "uno", "two": ""}), None, Sampling(), 64)
    reply = conversation.ask("one")
    assert next(reply) + next(reply) == "un"
    reply.close()
    assert conversation.messages == [Message("user", "one"), Message("model", "un")]
    assert list(conversation.ask("two")) == []
    assert conversation.messages == [Message("user", "one"), Message("model", "un")]


SLOW = """
import fcntl, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed at this terminal reaches this process
import gemmary.api
from gemmary.base.errors import ContextError
from gemmary.cli.main import main
from gemmary.generate.scripted import ScriptedGenerator

class Slow(ScriptedGenerator):
    def stream(self, request):
        text = self.tokenizer.decode(request.prompt)
        if "overflow" in text:
            raise ContextError("expected less")
        for token in super().stream(request):
            yield token
            time.sleep(0.02 if "forever" in text.split("model")[-2] else 0)

generator = Slow({"forever": "abc" * 1000, "again": "done"})
gemmary.api.load = lambda name, **settings: generator
main()
"""


class Terminal:
    """A chat in a real terminal: what is typed, what is seen."""

    def __init__(self) -> None:
        self._screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLOW, "chat", "--model", "slow-it"],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(inside)

    def see(self, text: str) -> str:
        """Wait until the text is on the screen, and give what came up to then."""
        seen, end = "", time.monotonic() + 30
        while text not in seen:
            is_there, _, _ = select.select([self._screen], [], [], max(0, end - time.monotonic()))
            assert is_there, f"no {text!r} in {seen!r}"
            seen += os.read(self._screen, 1).decode("ascii", "replace")
        return seen

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def end(self) -> int:
        """Read to the end and give the exit status."""
        try:
            while os.read(self._screen, 1024):
                pass
        except OSError as error:
            assert error.errno == errno.EIO  # Linux says so when the other side is closed
        os.close(self._screen)
        return self.process.wait(30)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_stops_the_reply_and_not_the_chat() -> None:
    terminal = Terminal()
    terminal.see(">>> ")
    terminal.type("go on forever\r")
    terminal.see("abcabc")
    terminal.type("\x03")
    assert len(terminal.see(">>> ")) < 2500
    time.sleep(0.5)  # readline does not see a signal that comes between its prompt and its waiting for a key
    terminal.type("\x03")  # nothing is running: only a hint
    assert "/exit" in terminal.see(">>> ")
    terminal.type("overflow\r")
    assert "gemmary: expected less; /clear begins anew" in terminal.see(">>> ")
    terminal.type("again\r")
    assert "done" in terminal.see(">>> ")
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.slow
def test_the_second_turn_goes_on_from_the_cache_of_the_first(default_checkpoint: Path) -> None:
    pytest.importorskip("gemmary.generate.keras_engine")
    from gemmary.api import load

    generator = load(engine="keras", num_slots=1, max_length=256)
    conversation = Conversation(generator, "Answer briefly.", Sampling(), 12)
    assert "".join(conversation.ask("Name a colour."))
    ids = prompt_ids(generator.tokenizer, [*conversation.messages, Message("user", "Another.")])
    [reply] = generator.complete([Request(ids, max_tokens=2)])
    assert reply.usage.cached_tokens > len(prompt_ids(generator.tokenizer, conversation.messages[:2]))
