# SPDX-License-Identifier: Apache-2.0
"""gemmary tokenize: a text as token ids, and back."""

from typing import Annotated

import typer

from gemmary.base.errors import InputError
from gemmary.cli import options


def tokenize(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The text; - reads it from stdin.")] = None,
    ids: Annotated[str | None, typer.Option(metavar="IDS", help="Decode these instead, such as 2,651,9.")] = None,
    bos: Annotated[bool, typer.Option("--bos", help="Begin with BOS, as the model's prompts do.")] = False,
    model: options.Model = None,
    as_json: options.AsJson = False,
) -> None:
    """Turn a text into token ids, or ids into a text.

    Prints a line for each token, its id and its piece, then their number. Spaces inside a piece are written as ▁, as in
    the vocabulary. NAME may be a tokenizer.model or tokenizer.json file.

    >>> tokenize("one text", ids="2,651")
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected a text or --ids, got both: leave one out
    """
    from gemmary.api import load_tokenizer

    if text is not None and ids is not None:
        raise InputError("expected a text or --ids, got both: leave one out")
    if text is not None:
        given, tokenizer = options.read_text(text), load_tokenizer(model)
        found = tokenizer.prompt(given) if bos else tokenizer.encode(given)
        _print_tokens(found, [tokenizer.pieces[token_id] for token_id in found], as_json)
    elif ids is not None:
        wanted = options.numbers(ids)
        _print_text(load_tokenizer(model).decode(wanted), as_json)
    else:
        raise InputError("expected a text or --ids, got neither: give a text, or - for stdin")


def _print_text(text: str, as_json: bool) -> None:
    if as_json:
        options.print_json({"text": text})
    else:
        print(text)


def _print_tokens(ids: list[int], pieces: list[str], as_json: bool) -> None:
    if as_json:
        options.print_json({"ids": ids, "pieces": pieces, "count": len(ids)})
        return
    for token_id, piece in zip(ids, pieces, strict=True):
        visible = piece if piece.isprintable() else repr(piece)[1:-1]
        print(f"{token_id:>8}  {visible}")
    print(f"{len(ids)} token{'s' if len(ids) != 1 else ''}")
