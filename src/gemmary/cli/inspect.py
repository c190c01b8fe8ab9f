# SPDX-License-Identifier: Apache-2.0
"""gemmary inspect: what a model is and what it needs, from its headers and norms alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmary.api import CHUNK_LENGTH
from gemmary.base.errors import InputError
from gemmary.cli import options

if TYPE_CHECKING:
    from gemmary.base.config import GemmaConfig

_ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def inspect(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="The model or adapter, as for --model elsewhere; by default the embedded model."
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(metavar="N", help="Count the memory for N tokens; by default the model's context.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what a model is and what it needs.

    Prints bytes on disk, parameters, memory, configuration, shapes and the fingerprint by which adapters know their
    model; the matrices themselves are not read. Of an adapter it prints rank, alpha, targets, size and the fingerprint
    of its model.

    >>> inspect("gemma-2-2c")
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected a path or the name of a model, got 'gemma-2-2c': did you mean ...
    """
    from gemmary.formats.adapter import fingerprint
    from gemmary.formats.checkpoint import open_checkpoint
    from gemmary.formats.locate import locate
    from gemmary.formats.peft_folder import is_adapter

    path = locate(name)
    if is_adapter(path):
        found = _adapter(path)
        options.print_json(found) if as_json else print("\n".join(_adapter_lines(found)))
        return
    checkpoint = open_checkpoint(path)
    config, vocabulary = checkpoint.config, checkpoint.vocabulary
    length = config.max_length if context is None else context
    if not 1 <= length <= config.max_length:
        raise InputError(f"expected --context in 1..{config.max_length}, the model's context, got {length}: choose one")
    found = {
        "path": str(path.resolve()),
        "parameters": {
            "total": config.num_params,
            "embedding": config.embedding_params,
            "non_embedding": config.non_embedding_params,
        },
        "vocabulary": None if vocabulary is None else vocabulary.size,
        "config": asdict(config),
        "shapes": _shapes(config),
        "disk": _disk(path),
        "memory": _memory(config, length),
        "fingerprint": fingerprint(checkpoint),
    }
    if as_json:
        options.print_json(found)
    else:
        print("\n".join(_lines(found)))


def _adapter(path: Path) -> dict[str, Any]:
    """What an adapter is."""
    from gemmary.formats.peft_folder import WEIGHTS, read_adapter

    adapter = read_adapter(path)
    return {
        "path": str(path.resolve()),
        "kind": "DoRA" if adapter.is_dora else "LoRA",
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "targets": list(adapter.targets),
        "matrices": len(adapter.weights),
        "parameters": adapter.num_params,
        "base": adapter.base or None,
        "bytes": (path / WEIGHTS).stat().st_size,
    }


def _adapter_lines(found: dict[str, Any]) -> Iterator[str]:
    """An adapter, for people."""
    yield f"path          {found['path']}"
    yield f"adapter       {found['kind']}, {options.size(found['bytes'])}"
    yield f"rank, alpha   {found['rank']}, {found['alpha']:g}"
    yield f"targets       {', '.join(found['targets'])}: {found['matrices']} matrices"
    yield f"parameters    {found['parameters']:,}"
    yield f"base          {found['base'] or 'unknown: the file does not say'}"


def _shapes(config: "GemmaConfig") -> list[dict[str, Any]]:
    """The rows of the weight table that the model has."""
    from gemmary.formats.tensors import rows

    return [
        {
            "weight": row.path,
            "dims": row.dims,
            "shape": list(row.shape(config)),
            "count": config.num_layers if row.per_layer else 1,
        }
        for row in rows(config)
    ]


def _disk(path: Path) -> dict[str, Any]:
    """The format, the bytes of the files with weights, and for GGUF the bytes of each precision."""
    from gemmary.formats.gguf_file import is_gguf, read_head

    path = path.parent if path.suffix == ".json" else path
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in _FORMATS]
    total = sum(file.stat().st_size for file in files)
    is_blocks = is_gguf(files[0])
    by_precision: Counter[str] = Counter()
    for tensor in read_head(files[0]).tensors.values() if is_blocks else ():
        by_precision[tensor.kind.name] += tensor.num_bytes
    format = "gguf" if is_blocks else _FORMATS.get(files[0].suffix, "torch")
    return {"format": format, "bytes": total, "by_precision": dict(by_precision.most_common())}


_FORMATS = {".gguf": "gguf", ".safetensors": "safetensors", ".h5": "keras"}


def _memory(config: "GemmaConfig", length: int) -> dict[str, Any]:
    """Bytes of the weights and of one sequence's cache, in each precision of the engine."""
    needs, chunk = {}, min(CHUNK_LENGTH, length)
    for dtype, itemsize in _ITEM_BYTES.items():
        weights, cache = config.num_params * itemsize, config.cache_bytes(length, chunk=chunk, itemsize=itemsize)
        needs[dtype] = {"weights": weights, "cache": cache, "total": weights + cache}
    return {"context": length, **needs}


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """What was found, for people."""
    counts, disk, memory = found["parameters"], found["disk"], found["memory"]
    parts = ", ".join(f"{kind} {options.size(count)}" for kind, count in disk["by_precision"].items())
    average = f"{disk['bytes'] / counts['total']:.2f} bytes a parameter"
    yield f"path          {found['path']}"
    yield f"format        {disk['format']}, {options.size(disk['bytes'])}: {parts or average}"
    yield f"parameters    {counts['total']:,}: embedding {counts['embedding']:,}, other {counts['non_embedding']:,}"
    yield f"fingerprint   {found['fingerprint']}"
    yield f"vocabulary    {'none' if found['vocabulary'] is None else format(found['vocabulary'], ',')}"
    for dtype in _ITEM_BYTES:
        weights, cache, total = (options.size(memory[dtype][part]) for part in ("weights", "cache", "total"))
        yield f"{dtype:<13} {total}: weights {weights}, cache of {memory['context']:,} tokens {cache}"
    yield from ("", "configuration")
    yield from (f"  {field:<18}{value}" for field, value in found["config"].items())
    yield from ("", f"weights, where {{i}} is a layer of {found['config']['num_layers']}")
    for row in found["shapes"]:
        yield f"  {row['weight']:<34}{row['dims']:<7}{' '.join(map(str, row['shape']))}"
