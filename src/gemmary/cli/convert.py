# SPDX-License-Identifier: Apache-2.0
"""gemmary convert: a checkpoint from one format into another."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmary.base.errors import InputError
from gemmary.cli import options
from gemmary.formats.names import Format, Precision

if TYPE_CHECKING:
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
) -> None:
    """Write a model in another format or precision.

    It is read and written tensor by tensor, so it may be larger than memory. The target appears when it is complete;
    after an error or Ctrl-C there is none.

    >>> convert("gemma-2-2c", Path("new.gguf"))
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected a path or the name of a model, got 'gemma-2-2c': did you mean ...
    """
    from gemmary.formats.checkpoint import open_checkpoint, write_checkpoint
    from gemmary.formats.locate import locate

    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"expected a target that does not exist yet, got {target}: choose another name or remove it")
    checkpoint = open_checkpoint(locate(source))
    progress = Progress(checkpoint.config.num_params)
    chosen = format or _BY_SUFFIX.get(target.suffix, "safetensors")
    write_checkpoint(counted(checkpoint, progress), target, format=chosen, dtype=dtype)
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    progress.finish(f"{target}: {options.size(sum(path.stat().st_size for path in files))}")


_BY_SUFFIX: dict[str, Format] = {".gguf": "gguf", ".ckpt": "torch"}


class Progress:
    """How far, how fast, how long still: one line on a terminal's stderr, drawn anew ten times a second.

    >>> progress = Progress(2_000_000, clock=iter([0.0, 1.0, 2.0]).__next__)
    >>> progress.add(500_000)
    >>> progress.line()
    '25%  0.5 of 2 million parameters  0.2 a second  6 s left'
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._total, self._done, self._clock = total, 0, clock
        self._began = self._drawn = clock()

    def add(self, count: int) -> None:
        """So many more are done.

        >>> Progress(10).add(1)
        """
        self._done = min(self._done + count, self._total)
        now = self._clock()
        if sys.stderr.isatty() and now - self._drawn >= 0.1:
            self._drawn = now
            print(f"\r{self.line()}\033[K", end="", file=sys.stderr, flush=True)

    def line(self) -> str:
        """What is drawn.

        >>> Progress(1_000_000, clock=iter([0.0, 1.0]).__next__).line()
        '0%  0 of 1 million parameters'
        """
        seconds = self._clock() - self._began
        line = f"{self._done / self._total:.0%}  {self._done / 1e6:.3g} of {self._total / 1e6:.3g} million parameters"
        if not self._done or not seconds:
            return line
        rate = self._done / seconds
        return f"{line}  {rate / 1e6:.1g} a second  {(self._total - self._done) / rate:.0f} s left"

    def finish(self, what: str) -> None:
        """Say what has come of it.

        >>> Progress(10).finish("new.gguf: 1 MB")
        """
        start = "\r\033[K" if sys.stderr.isatty() else ""
        options.note(f"{start}{what} in {self._clock() - self._began:.1f} s")


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
