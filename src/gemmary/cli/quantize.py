# SPDX-License-Identifier: Apache-2.0
"""gemmary quantize: a model in 8 or 4 bits, and what that costs in quality."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gemmary.base.errors import FileError, InputError
from gemmary.cli import options
from gemmary.cli.convert import require_new, write_new
from gemmary.cli.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CALIBRATION = 4096  # tokens


def quantize(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The model: a path or a name, as for --model elsewhere.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The GGUF file to write; it must not exist yet.")],
    dtype: Annotated[
        Literal["q8_0", "q4_0"], typer.Option(help="8 or 4 bits, in groups of 32 with a scale of 16 bits.")
    ] = "q4_0",
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Choose 4-bit scales for what this text makes the model compute."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure the perplexity of this text before and after.")
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", help="The first N tokens of that text.")] = 2048,
    engine: options.Engine = "auto",
    backend: options.KerasBackend = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a model in 8 or 4 bits a weight.

    The file is GGUF, which llama.cpp reads too; norms stay float32 and the embedding has 8 bits at least. Prints the
    sizes, and with --text the perplexity of the source and of the file in windows of 512 tokens. A text to calibrate
    with, of which 4096 tokens are read, makes 4 bits better; it should not be the one that is measured. No text comes
    with the package.

    >>> quantize("gemma-3-270m", Path("new.gguf"), tokens=0)
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected --tokens >= 1, got 0: 2048 are usual
    """
    from gemmary.api import runtime
    from gemmary.formats.locate import locate

    if tokens < 1:
        raise InputError(f"expected --tokens >= 1, got {tokens}: 2048 are usual")
    judged, shown = (None if file is None else _read(file) for file in (text, calibrate))
    require_new(target)
    runtime(engine, backend)
    path = locate(source)
    importance = _importance(path, shown) if dtype == "q4_0" else None
    write_new(path, target, format="gguf", dtype=dtype, importance=importance)
    files = {"source": path, dtype: target}
    found: dict[str, dict[str, Any]] = {name: {"bytes": options.disk_bytes(file)} for name, file in files.items()}
    if judged is None:
        options.note("perplexity is not measured without --text FILE")
    else:
        count, values = _perplexities(files, judged, tokens, engine=engine, backend=backend)
        found = {name: each | {"perplexity": values[name], "tokens": count} for name, each in found.items()}
    if as_json:
        options.print_json({"source": str(path), "target": str(target), "dtype": dtype, "before_and_after": found})
    else:
        print("\n".join(_lines(found)))


def _read(path: Path) -> str:
    from gemmary.text.tokenizer import decode_utf8

    try:
        text = decode_utf8(path.read_bytes())
    except OSError as error:
        raise FileError(f"expected a readable text, got {path}: {error.strerror}") from None
    if not text:
        raise InputError(f"expected a text of at least one token, got an empty one in {path}: give another")
    return text


def _importance(path: Path, text: str | None) -> "dict[str, NDArray[np.float32]]":
    """What an error in each column of the matrices matters; all alike without a text."""
    from gemmary.api import load_tokenizer
    from gemmary.formats.checkpoint import open_checkpoint
    from gemmary.generate.calibrate import alike, input_squares
    from gemmary.generate.perplexity import windows

    checkpoint = open_checkpoint(path)
    if text is None:
        return alike(checkpoint.config)
    tokenizer = load_tokenizer(str(path))
    progress = Progress(checkpoint.config.num_layers, unit="layers calibrated", scale=1)
    parts = windows(tokenizer.encode(text)[:_CALIBRATION], tokenizer.bos_id)
    found = input_squares(checkpoint, parts, tick=lambda: progress.add(1))
    progress.clear()
    return found


def _perplexities(files: dict[str, Path], text: str, tokens: int, **settings: Any) -> tuple[int, dict[str, float]]:
    """How many tokens were judged, and the perplexity of each model."""
    from gemmary.api import load, load_tokenizer
    from gemmary.generate.perplexity import WINDOW, perplexity

    ids = load_tokenizer(str(files["source"])).encode(text)[:tokens]
    progress = Progress(len(ids) * len(files), unit="tokens judged", scale=1)
    values = {}
    for name, path in files.items():
        generator = load(str(path), max_length=WINDOW, num_slots=1, **settings)
        values[name] = perplexity(generator, ids, tick=progress.add)
    progress.clear()
    return len(ids), values


def _lines(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    counts = {each.get("tokens") for each in found.values()} - {None}
    yield f"{'':<10}{'size':>10}" + "".join(f"   perplexity of {count:,} tokens" for count in counts)
    for name, each in found.items():
        value = f"{each['perplexity']:>13.3f}" if "perplexity" in each else ""
        yield f"{name:<10}{options.size(each['bytes']):>10}{value}"
