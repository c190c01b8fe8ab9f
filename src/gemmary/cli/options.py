# SPDX-License-Identifier: Apache-2.0
"""What several verbs share: options that mean the same everywhere, text that comes in, notes that go to stderr."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmary.api import Backend, Dtype, EngineName
from gemmary.base.errors import FileError, InputError

if TYPE_CHECKING:
    from gemmary.generate.request import Grammar, Sampling

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A path, a name such as gemma-2b-it, hf://owner/name or kaggle://...; by default the embedded model.",
    ),
]
Engine = Annotated[EngineName, typer.Option(help="What computes; auto is native where it is installed, else keras.")]
KerasBackend = Annotated[
    Backend | None, typer.Option(help="The backend of Keras; by default KERAS_BACKEND or the first that is installed.")
]
Precision = Annotated[Dtype, typer.Option(help="The precision of weights and activations.")]
MaxLength = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens of prompt and reply; by default the model's context, at most 8192."),
]
Draft = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="How tokens are guessed, for speed alone: lookup in the text so far, none, or a smaller model's name.",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A LoRA or DoRA adapter: a folder of ours or PEFT's, hf://..., or chat."),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", metavar="N", help="The most tokens of a reply.")]
Temperature = Annotated[float, typer.Option(metavar="T", help="How freely tokens are drawn; 0 is greedy.")]
TopK = Annotated[int, typer.Option(metavar="K", help="Draw from the K most probable tokens; 0 is all.")]
TopP = Annotated[float, typer.Option(metavar="P", help="Draw from the most probable that make up P; 1 is all.")]
MinP = Annotated[float, typer.Option(metavar="P", help="Leave out what has less than P of the best's probability.")]
RepetitionPenalty = Annotated[float, typer.Option(metavar="R", help="Make tokens rarer that were there; 1 is none.")]
Seed = Annotated[int, typer.Option(metavar="S", help="The same seed draws the same tokens.")]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End the reply before this text; may be given several times.")
]
JsonSchema = Annotated[
    str | None,
    typer.Option(metavar="SCHEMA", help="Reply in JSON that is valid by this schema: a file, or {...} as it stands."),
]
Regex = Annotated[
    str | None, typer.Option(metavar="PATTERN", help="Reply with a text that this regular expression matches whole.")
]
GrammarFile = Annotated[
    Path | None,
    typer.Option("--grammar", metavar="FILE", help="Reply by the grammar in this file, in llguidance's kind of Lark."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def sampling(
    temperature: float, top_k: int, top_p: float, min_p: float, repetition_penalty: float, seed: int
) -> "Sampling":
    """The options above as one value, in the order in which they stand there; raises InputError as Sampling does.

    >>> sampling(0.8, 40, 1.0, 0.0, 1.0, 7).top_k
    40
    """
    from gemmary.generate.request import Sampling

    return Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )


def grammar(json_schema: str | None, regex: str | None, file: Path | None) -> "Grammar | None":
    """What a reply must follow: one of the three, or nothing. Whether it is sound shows when the reply begins.

    Raises InputError for more than one, FileError for a file that cannot be read.

    >>> grammar(None, "yes|no", None).kind, grammar('{"type": "object"}', None, None).text
    ('regex', '{"type": "object"}')
    """
    from gemmary.generate.request import Grammar

    three = {"--json-schema": json_schema, "--regex": regex, "--grammar": file}
    given = [name for name, value in three.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"expected one thing for the reply to follow, got {' and '.join(given)}: leave out the others")
    if regex is not None:
        return Grammar(kind="regex", text=checked(regex))
    if file is not None:
        return Grammar(kind="lark", text=_content(file))
    if json_schema is None:
        return None
    is_text = json_schema.lstrip().startswith("{")
    return Grammar(kind="json_schema", text=checked(json_schema) if is_text else _content(Path(json_schema)))


def _content(path: Path) -> str:
    from gemmary.text.tokenizer import decode_utf8

    try:
        return decode_utf8(path.read_bytes())
    except OSError as error:
        raise FileError(f"expected a readable file, got {path}: {error.strerror}") from None


def conversing(model: str | None, adapter: str | None) -> str | None:
    """The adapter of a model that is to converse: without any name it is the embedded default, which needs its own.

    >>> conversing(None, None), conversing("gemma-2b-it", None)
    ('chat', None)
    """
    from gemmary.formats.locate import CHAT_ADAPTER

    return CHAT_ADAPTER if model is None and adapter is None else adapter


def checked(argument: str) -> str:
    """The argument itself; raises InputError when it came as bytes that are not UTF-8.

    >>> checked("The capital of France is")
    'The capital of France is'
    """
    from gemmary.text.tokenizer import require_utf8

    require_utf8(argument)
    return argument


def read_text(argument: str) -> str:
    """The text of an argument, which is that of stdin for "-"; one line end at the end of stdin is not part of it.

    Raises InputError for what is not UTF-8.

    >>> read_text("The capital of France is")
    'The capital of France is'
    """
    from gemmary.text.tokenizer import decode_utf8

    if argument != "-":
        return checked(argument)
    text = decode_utf8(sys.stdin.buffer.read())
    return text.removesuffix("\n").removesuffix("\r")


def numbers(text: str) -> list[int]:
    """Token ids written with commas or spaces between them; raises InputError for anything else.

    >>> numbers("2, 651 9")
    [2, 651, 9]
    """
    words = text.replace(",", " ").split()
    wrong = next((word for word in words if not word.isdecimal() or len(word) > 9), None)
    if wrong is not None or not words:
        raise InputError(f"expected token ids such as 2,651,9, got {text if wrong is None else wrong!r}: write numbers")
    return [int(word) for word in words]


def print_json(value: dict[str, Any]) -> None:
    """Print one object on one line.

    >>> print_json({"text": "café", "ids": [1, 2]})
    {"text": "café", "ids": [1, 2]}
    """
    print(json.dumps(value, ensure_ascii=False))


def note(text: str) -> None:
    """Tell the user something that is not the result: a line on stderr.

    >>> note("loading")
    """
    print(text, file=sys.stderr, flush=True)


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder.

    >>> disk_bytes(Path("no-such-folder"))
    0
    """
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def size(num_bytes: float) -> str:
    """Bytes for people, in powers of 1000.

    >>> size(253_112_960), size(999)
    ('253 MB', '999 bytes')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            value = num_bytes / scale
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"
