# SPDX-License-Identifier: Apache-2.0
"""gemmary evaluate memorization: what a model has by heart of its sources."""

from pathlib import Path
from typing import Annotated

import typer

from gemmary.cli import options
from gemmary.cli.progress import Progress


def memorization(
    sources: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder, or a .jsonl or .txt file in it, for each source.")
    ],
    model: options.Model = None,
    adapter: options.Adapter = None,
    documents: Annotated[int, typer.Option(metavar="N", min=1, help="The most documents of a source.")] = 1000,
    seed: options.Seed = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where memorization.json, .md and .png go.")] = Path(
        "evaluation"
    ),
    engine: options.Engine = "auto",
    backend: options.KerasBackend = None,
    dtype: options.Precision = "float32",
) -> None:
    """Measure what a model has by heart: documents' first 50 tokens are given, the next 50 compared.

    Prints a table of exact and approximate memorisation, and of personal data in it, with 95% intervals.

    >>> memorization(Path("no-such-folder"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a folder ...
    """
    from gemmary.api import load
    from gemmary.corpus.sources import read_sources
    from gemmary.evaluate.memorization import draw, measure
    from gemmary.formats.storage import write_json, written_whole

    texts = read_sources(sources)
    generator = load(model, adapter=adapter, engine=engine, backend=backend, dtype=dtype, max_length=256, num_slots=8)
    total = sum(min(documents, len(each)) for each in texts.values())
    progress = Progress(total, unit="documents", scale=1)
    result = measure(generator, texts, num_documents=documents, seed=seed, tick=progress.add)
    write_json(out / "memorization.json", result.to_dict())
    with written_whole(out / "memorization.md") as file:
        file.write(f"{result.table()}\n".encode())
    draw(result, out / "memorization.png")
    count = sum(source.num_documents for source in result.sources)
    progress.finish(f"{out / 'memorization.png'}: {count} documents")
    print(result.table())
