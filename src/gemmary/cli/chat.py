# SPDX-License-Identifier: Apache-2.0
"""gemmary chat: a conversation in the terminal, or line by line through a pipe.

Ctrl-C   stops the reply; what was said so far stays in the conversation
Ctrl-D   ends, as /exit does
/clear   begins a new conversation
"""

import sys
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from gemmary.base.errors import ContextError, GemmaryError
from gemmary.cli import options

if TYPE_CHECKING:
    from gemmary.generate.generator import Generator as Replier
    from gemmary.generate.request import FinishReason, Sampling
    from gemmary.text.chat import Message

Parts = Generator[str, None, None]
# temperature and repetition penalty: of the generation_config.json published with the gemma-3 -it models, whose top-k
# and top-p are the options' defaults, and of this package's adapter, whose replies end more often so
PUBLISHED, OURS = (1.0, 1.0), (0.7, 1.1)
Temperature = Annotated[
    float | None,
    typer.Option(metavar="T", help="How freely tokens are drawn; 0 is greedy. By default 1, without a model 0.7."),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(metavar="R", help="Make tokens rarer that were there; 1 is none. By default 1, without a model 1.1."),
]
HELP = "/clear begins anew, /exit or Ctrl-D ends, Ctrl-C stops a reply"


def chat(
    model: options.Model = None,
    adapter: options.Adapter = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the model is told before the first message.")
    ] = None,
    max_tokens: options.MaxTokens = 1024,
    temperature: Temperature = None,
    top_k: options.TopK = 64,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.0,
    repetition_penalty: RepetitionPenalty = None,
    seed: options.Seed = 0,
    engine: options.Engine = "auto",
    backend: options.KerasBackend = None,
    dtype: options.Precision = "float32",
    max_length: options.MaxLength = None,
    draft: options.Draft = "lookup",
) -> None:
    """Talk with a model, turn by turn; without a name with the embedded default and its chat adapter.

    Ctrl-C stops a reply, /clear begins anew, /exit or Ctrl-D ends. Without a terminal every line of stdin is a message.

    >>> chat("gemma-2-2c-it")
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected a path or the name of a model, got 'gemma-2-2c-it': did you ...
    """
    from gemmary.api import load
    from gemmary.formats.locate import DEFAULT

    is_ours = model is None and adapter is None
    adapter = options.conversing(model, adapter)
    usual_temperature, usual_penalty = OURS if is_ours else PUBLISHED
    temperature = usual_temperature if temperature is None else temperature
    penalty = usual_penalty if repetition_penalty is None else repetition_penalty
    sampling = options.sampling(temperature, top_k, top_p, min_p, penalty, seed)
    told = None if system is None else options.checked(system)
    if is_ours:
        options.note(f"{DEFAULT} with the chat adapter of this package: small, often wrong; --model names another")
    generator = load(
        model,
        adapter=adapter,
        engine=engine,
        backend=backend,
        dtype=dtype,
        max_length=max_length,
        num_slots=1,
        draft=draft,
    )
    name = model or DEFAULT
    if "-it" not in name and adapter is None:
        options.note(f"hint: {name} has no -it in its name; a model that was pretrained only rambles in a chat")
    talk(Conversation(generator, told, sampling, max_tokens), is_terminal=sys.stdin.isatty())


@dataclass
class Conversation:
    """The messages so far; `ask` adds one and its reply.

    >>> from gemmary.generate.request import Sampling
    >>> from gemmary.generate.scripted import ScriptedGenerator
    >>> conversation = Conversation(ScriptedGenerator({"Hi": "Hello!"}), "Be brief.", Sampling(), 64)
    >>> "".join(conversation.ask("Hi")), conversation.finish_reason
    ('Hello!', 'stop')
    >>> [message.role for message in conversation.messages]
    ['system', 'user', 'model']
    >>> conversation.clear()
    >>> [message.role for message in conversation.messages]
    ['system']
    """

    generator: "Replier"
    system: str | None
    sampling: "Sampling"
    max_tokens: int
    messages: "list[Message]" = field(init=False)
    finish_reason: "FinishReason | None" = None  # of the last reply
    num_tokens: int = 0  # of the last reply

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system text."""
        from gemmary.text.chat import Message

        self.messages = [] if self.system is None else [Message("system", self.system)]

    def ask(self, text: str) -> Parts:
        """The reply, as it becomes certain; close it to stop it. What was given stays; a question without any reply
        is forgotten."""
        from gemmary.generate.request import Request
        from gemmary.text.chat import Message, prompt_ids

        asked, said = [*self.messages, Message("user", text)], ""
        ids = prompt_ids(self.generator.tokenizer, asked)
        self.finish_reason, self.num_tokens = None, 0
        try:
            for token in self.generator.stream(Request(ids, max_tokens=self.max_tokens, sampling=self.sampling)):
                self.finish_reason, self.num_tokens = token.finish_reason, self.num_tokens + 1
                said += token.text
                if token.text:
                    yield token.text
        finally:
            if said:
                self.messages = [*asked, Message("model", said)]


def talk(conversation: Conversation, *, is_terminal: bool) -> None:
    """Read messages and print replies until the input ends.

    On a terminal an error of one turn is told and the conversation goes on; otherwise it is raised.

    >>> from gemmary.generate.request import Sampling
    >>> from gemmary.generate.scripted import ScriptedGenerator
    >>> import io, unittest.mock
    >>> generator = ScriptedGenerator({"Hi": "Hello!"})
    >>> with unittest.mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\\n/exit\\n"))):
    ...     talk(Conversation(generator, None, Sampling(), 64), is_terminal=False)
    Hello!
    """
    if is_terminal:
        _prepare_terminal()
        options.note(HELP)
    for text in _messages(is_terminal):
        if text == "/clear":
            conversation.clear()
        elif text.startswith("/") and " " not in text:
            options.note(f"expected /clear or /exit, got {text}: {HELP}")
        else:
            _turn(conversation, text, is_terminal)


def _turn(conversation: Conversation, text: str, is_terminal: bool) -> None:
    try:
        with closing(conversation.ask(text)) as parts:
            for part in parts:
                sys.stdout.write(part)
                sys.stdout.flush()
        print(flush=True)
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        print(flush=True)
    except GemmaryError as error:
        if not is_terminal:
            raise
        remedy = "; /clear begins anew" if isinstance(error, ContextError) else ""
        options.note(f"gemmary: {error}{remedy}")
    else:
        _say_why_it_ended(conversation)


def _say_why_it_ended(conversation: Conversation) -> None:
    if conversation.finish_reason == "stop" and conversation.num_tokens == 1:
        options.note("(the model ended its turn at once)")
    if conversation.finish_reason != "length":
        return
    if conversation.num_tokens == conversation.max_tokens:
        options.note(f"(the reply was cut after {conversation.max_tokens} tokens: --max-tokens allows more)")
    else:
        options.note("(the context is full: /clear begins anew, --max-length allows more)")


def _messages(is_terminal: bool) -> Iterator[str]:
    """What is typed or piped in, a message a line, blank lines left out."""
    while True:
        try:
            text = input(">>> ") if is_terminal else _piped_line()
        except EOFError:
            if is_terminal:
                print()
            return
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            options.note(f"\n{HELP}")
            continue
        if text.strip() in ("/exit", "/quit", "/bye"):
            return
        if text.strip():
            yield text.strip()


def _piped_line() -> str:
    from gemmary.text.tokenizer import decode_utf8

    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return decode_utf8(line)


def _prepare_terminal() -> None:
    """Line editing and history, where Python has them; what is no UTF-8 becomes an error of that turn."""
    with suppress(ImportError):
        import readline  # noqa: F401 - importing it is what does it
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
