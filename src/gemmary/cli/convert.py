# SPDX-License-Identifier: Apache-2.0
"""gemmary convert: a checkpoint from one format into another."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmary.base.errors import InputError
from gemmary.cli import options
from gemmary.cli.progress import Progress
from gemmary.formats.names import Format, Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gemmary.formats.checkpoint import Checkpoint


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The model: a path or a name, as for --model elsewhere.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="The file or folder to write; it must not exist yet.")
    ],
    format: Annotated[
        Format | None,
        typer.Option(help="By default gguf for *.gguf, torch for *.ckpt, else safetensors."),
    ] = None,
    dtype: Annotated[Precision, typer.Option(help="The precision to write; q8_0 and q4_0 in gguf only.")] = "float32",
    adapter: options.Adapter = None,
) -> None:
    """Write a model in another format or precision.

    It is read and written tensor by tensor, so it may be larger than memory. The target appears when it is complete;
    after an error or Ctrl-C there is none. With --adapter the merged model is written.

    >>> convert("gemma-2-2c", Path("new.gguf"))
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected a path or the name of a model, got 'gemma-2-2c': did you mean ...
    """
    from gemmary.formats.locate import locate, locate_adapter

    require_new(target)  # before a model is fetched
    folder = None if adapter is None else locate_adapter(adapter)
    format = format or _BY_SUFFIX.get(target.suffix, "safetensors")
    write_new(locate(source), target, format=format, dtype=dtype, adapter=folder)


_BY_SUFFIX: dict[str, Format] = {".gguf": "gguf", ".ckpt": "torch"}


def write_new(
    source: Path,
    target: Path,
    *,
    format: Format,
    dtype: Precision,
    adapter: Path | None = None,
    importance: "Mapping[str, NDArray[np.float32]] | None" = None,
) -> None:
    """Write a checkpoint where there is none yet, show how far it is, and say what has come of it.

    `adapter` is the folder of one that is merged, `importance` is that of write_checkpoint. Raises InputError when the
    target is there, FileError and CheckpointError for a source or an adapter that cannot be read.

    >>> write_new(Path("no-such-file"), Path("."), format="gguf", dtype="q8_0")
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected a target that does not exist yet, got .: choose another name or remove it
    """
    from gemmary.formats.adapter import merged
    from gemmary.formats.checkpoint import open_checkpoint, write_checkpoint
    from gemmary.formats.peft_folder import read_adapter

    require_new(target)
    checkpoint = open_checkpoint(source)
    if adapter is not None:
        checkpoint = merged(checkpoint, read_adapter(adapter))
    progress = Progress(checkpoint.config.num_params)
    write_checkpoint(counted(checkpoint, progress), target, format=format, dtype=dtype, importance=importance)
    progress.finish(f"{target}: {options.size(options.disk_bytes(target))}")


def require_new(target: Path) -> None:
    """Raise InputError when there is something at the place to write to, but for an empty folder.

    >>> require_new(Path("no-such-file"))
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"expected a target that does not exist yet, got {target}: choose another name or remove it")


def counted(checkpoint: "Checkpoint", progress: Progress) -> "Checkpoint":
    """The same checkpoint, whose tensors count as done when they are read.

    >>> import numpy as np
    >>> from gemmary.base.config import PRESETS
    >>> from gemmary.formats.checkpoint import Checkpoint
    >>> progress = Progress(8)
    >>> one = Checkpoint(config=PRESETS["gemma-2b"], tensors={"final_norm": lambda: np.ones(4)}, vocabulary=None)
    >>> _ = counted(one, progress).tensors["final_norm"]()
    >>> progress.line().split()[0]
    '50%'
    """

    def counting(read: Callable[[], Any]) -> Callable[[], Any]:
        def read_and_count() -> Any:
            array = read()
            progress.add(array.size)
            return array

        return read_and_count

    return replace(checkpoint, tensors={path: counting(read) for path, read in checkpoint.tensors.items()})
