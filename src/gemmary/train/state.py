# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training: folders that are whole or not there, of which the newest few and the best are kept.

    checkpoints/step-000100/  state.safetensors    learned/..., moments/...: float32
                              state.json           step, held-back loss, the recipe's fingerprint

A folder is written under another name, flushed to the disk and renamed; a kill at any moment leaves the one before.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import FileError
from gemmary.formats.content import Entry
from gemmary.formats.safetensors import read_entries, write_entries
from gemmary.formats.storage import read_json, write_json, written_folder

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint on disk.

    >>> Saved(path=Path("step-000100"), step=100, loss=None).step
    100
    """

    path: Path
    step: int
    loss: float | None  # held-back, if it was measured


def save(folder: Path, state: Arrays, *, recipe: Mapping[str, Any], loss: float | None, keep: int) -> Path:
    """Write the state of a step, and remove all but the newest `keep` checkpoints and the one of the least loss.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     state = {"step": np.array(3, np.int32), "learned/x": np.float32([1, 2])}
    ...     save(Path(folder), state, recipe={}, loss=None, keep=2).name
    'step-000003'
    """
    step = int(state["step"])
    target = folder / f"step-{step:06}"
    entries = {
        path: Entry(shape=each.shape, read=partial(np.asarray, each)) for path, each in state.items() if each.ndim
    }
    for left in folder.glob(".step-*"):  # by a kill
        shutil.rmtree(left)
    if target.exists():  # the same step again
        _remove(target)
    with written_folder(target) as new:
        write_entries(new / "state.safetensors", entries, np.dtype(np.float32))
        write_json(new / "state.json", {"step": step, "loss": loss, "recipe": recipe})
    everything = saved(folder)
    best = min((each for each in everything if each.loss is not None), key=lambda each: each.loss or 0.0, default=None)
    for each in everything[: -max(1, keep)]:
        if each != best:
            _remove(each.path)
    return target


def saved(folder: Path) -> list[Saved]:
    """The checkpoints in a folder, the oldest first.

    >>> saved(Path("no-such-folder"))
    []
    """
    found = []
    for path in folder.glob("step-[0-9]*"):
        values = read_json(path / "state.json")
        found.append(Saved(path=path, step=int(values["step"]), loss=values["loss"]))
    return sorted(found, key=lambda each: each.step)


def restore(checkpoint: Saved, *, recipe: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The state of a checkpoint; raises FileError when it was saved by another recipe.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     state = {"step": np.array(3, np.int32), "learned/x": np.float32([1, 2])}
    ...     _ = save(Path(folder), state, recipe={"rank": 4}, loss=None, keep=2)
    ...     restored = restore(saved(Path(folder))[-1], recipe={"rank": 4})
    >>> int(restored["step"]), restored["learned/x"]
    (3, array([1., 2.], dtype=float32))
    """
    was = read_json(checkpoint.path / "state.json")["recipe"]
    now = json.loads(json.dumps(recipe))
    other = next((key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)), None)
    if other is not None:
        raise FileError(
            f"expected a checkpoint of the same recipe in {checkpoint.path}, got {other} = {was.get(other)!r} "
            f"where it is {now.get(other)!r} now: choose another output, or set it back"
        )
    arrays = {path: entry.read() for path, entry in read_entries(checkpoint.path / "state.safetensors").items()}
    return {"step": np.array(checkpoint.step, np.int32), **arrays}


def _remove(folder: Path) -> None:
    """Remove a checkpoint that is never seen in half."""
    gone = folder.with_name(f".{folder.name}.gone")
    folder.rename(gone)
    shutil.rmtree(gone)
