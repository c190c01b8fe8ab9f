# SPDX-License-Identifier: Apache-2.0
"""gemmary documents: the files that questions are answered from, and what is found in them."""

import builtins  # `list` is a verb here
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmary.cli import options

if TYPE_CHECKING:
    from gemmary.serve.documents import Library

documents_app = typer.Typer(no_args_is_help=True)

Place = Annotated[
    Path | None,
    typer.Option(
        "--library", metavar="FILE", help="Where documents are kept; by default documents.db in the user's data folder."
    ),
]


@documents_app.callback()
def documents() -> None:
    """Keep documents that questions are answered from, and search them.

    >>> documents()
    """


def add(
    paths: Annotated[
        builtins.list[Path],
        typer.Argument(metavar="PATH...", help="Files, and folders with all that is in them but hidden files."),
    ],
    library: Place = None,
    as_json: options.AsJson = False,
) -> None:
    """Add text, Markdown, HTML, PDF and source code, whole folders too.

    Prints each document with the number of its passages; what was there already stays, a changed file takes the place
    of what it was. Files of a folder that cannot be used are named on stderr and left out.

    >>> add([Path("no-such-file")], Path(":memory:"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a file or a folder, got none at no-such-file: check the path
    """
    with _opened(library) as opened:
        added = [opened.add(path) for path in paths]
    found = [document for each in added for document in each.documents]
    refused = [one for each in added for one in each.refused]
    for one in refused:
        options.note(f"left out {one.name}: {one.reason}")
    if as_json:
        options.print_json({"documents": [*map(asdict, found)], "refused": [*map(asdict, refused)]})
        return
    for document in found:
        print(f"{document.num_passages:>8}  {document.name}")
    left_out = f", {len(refused)} left out" if refused else ""
    print(f"{_count(len(found), 'document')}{left_out}")


def list(library: Place = None, as_json: options.AsJson = False) -> None:
    """List the documents.

    Prints a line for each, its passages, its size, its kind and its name, then their number.

    >>> list(Path(":memory:"))
    0 documents
    """
    with _opened(library) as opened:
        found = opened.documents()
    if as_json:
        options.print_json({"documents": [*map(asdict, found)]})
        return
    for each in found:
        print(f"{each.num_passages:>8}  {options.size(each.num_bytes):>9}  {each.kind:<8}  {each.name}")
    print(_count(len(found), "document"))


def remove(
    names: Annotated[
        builtins.list[str],
        typer.Argument(metavar="NAME...", help="Names as list shows them, or the last parts of their paths."),
    ],
    library: Place = None,
) -> None:
    """Remove documents from the library; the files they came from stay.

    >>> remove(["notes.md"], Path(":memory:"))
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected the name of one document, got 'notes.md', of none: list them
    """
    with _opened(library) as opened:
        for name in names:
            document = opened.find(name)
            opened.remove(document.id)
            print(f"removed {document.name}")


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A question in any words; - reads it from stdin.")],
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="The most passages.")] = 5,
    library: Place = None,
    as_json: options.AsJson = False,
) -> None:
    """Find the passages that answer a question.

    Prints each with its file, its lines and the headings it stands under, the best first; nothing where no passage
    covers a fair share of the question.

    >>> search("How are eggs boiled?", library=Path(":memory:"))
    """
    with _opened(library) as opened:
        found = opened.search(options.read_text(query), limit)
    if as_json:
        options.print_json({"found": [_row(each.passage, each.score) for each in found]})
        return
    if not found:
        options.note("no passage covers the question: the documents hold no answer")
    for number, each in enumerate(found, 1):
        passage = each.passage
        print(f"[{number}] {passage.source}{''.join(f' > {title}' for title in passage.headings)}\n")
        print(f"{passage.text}\n")


@contextmanager
def _opened(path: Path | None) -> "Iterator[Library]":
    from gemmary.serve.documents import Library

    with Library(path) as library:
        yield library


def _row(passage: Any, score: float) -> dict[str, Any]:
    return {"source": passage.source, "score": score, **asdict(passage)}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


for verb in (add, list, remove, search):
    documents_app.command(help=(verb.__doc__ or "").partition(">>>")[0])(verb)
