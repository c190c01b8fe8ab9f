# SPDX-License-Identifier: Apache-2.0
"""Checkpoint: what every format holds; and the step all readers share, from the file's tensors to ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from re import Pattern
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import CheckpointError
from gemmary.formats.sentencepiece import Vocabulary
from gemmary.formats.tensors import Stored, Weight, weights


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model on disk; `tensors` maps our paths to functions that read one array in our layout when called.

    An array comes in the file's own precision (float32, float16 or ml_dtypes.bfloat16); block formats come as the
    float32 values they mean. Norm scales are the w of (1 + w), whatever the file holds.

    >>> from gemmary.base.config import PRESETS
    >>> Checkpoint(config=PRESETS["gemma-2b"], tensors={}, vocabulary=None).config.num_layers
    18
    """

    config: GemmaConfig
    tensors: Mapping[str, Callable[[], NDArray[Any]]]
    vocabulary: Vocabulary | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor as a file lists it: its shape, and the function that reads it.

    >>> Entry(shape=(2,), read=lambda: np.zeros(2)).read()
    array([0., 0.])
    """

    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]


def bind(
    config: GemmaConfig,
    entries: Mapping[str, Entry],
    name_of: Callable[[Weight, int | None], tuple[str, Stored]],
    ignored: Pattern[str],
) -> dict[str, Callable[[], NDArray[Any]]]:
    """Our paths to functions that read one array in our layout; `name_of` gives a row's name and layout in the file.

    Rows that share a name lie one after the other along the file's first axis. Raises CheckpointError for tensors that
    are missing, of a wrong shape, or not known and not `ignored`.

    >>> import re
    >>> from gemmary.base.config import PRESETS
    >>> bind(PRESETS["gemma-2b"], {}, lambda row, layer: (row.gguf.at(layer), row.gguf), re.compile("x"))
    Traceback (most recent call last):
    gemmary.base.errors.CheckpointError: expected the tensor token_embd.weight, got 0 others: ...
    """
    taken: dict[str, int] = {}  # rows of each tensor that are given out
    tensors: dict[str, Callable[[], NDArray[Any]]] = {}
    for path, row, layer in weights(config):
        name, stored = name_of(row, layer)
        if name not in entries:
            raise CheckpointError(
                f"expected the tensor {name}, got {len(entries)} others: the file is incomplete or not of this family"
            )
        shape, start = stored.shape(config), taken.get(name, 0)
        taken[name] = start + shape[0]
        if len(shape) != len(entries[name].shape) or shape[1:] != entries[name].shape[1:]:
            raise _wrong_shape(name, shape, entries[name].shape)
        tensors[path] = partial(_read, entries[name], slice(start, start + shape[0]), stored, config, name)
    for name, entry in entries.items():
        if name not in taken and not ignored.match(name):
            raise CheckpointError(
                f"expected no other tensors than a Gemma's, got {name}: see docs/design.md for what is read"
            )
        if name in taken and taken[name] != entry.shape[0]:
            raise _wrong_shape(name, (taken[name], *entry.shape[1:]), entry.shape)
    return tensors


def _wrong_shape(name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(f"expected {name} of shape {expected}, got {got}: the file and its configuration disagree")


def _read(entry: Entry, part: slice, stored: Stored, config: GemmaConfig, name: str) -> NDArray[Any]:
    array = entry.read()
    if part != slice(0, len(array)):
        array = array[part]
    check_finite(array, name)
    return stored.unfold(array, config)


def check_finite(array: NDArray[Any], name: str) -> None:
    """Raise CheckpointError when an array holds NaN or infinity.

    >>> check_finite(np.float32([1, np.inf]), "final_norm")
    Traceback (most recent call last):
    gemmary.base.errors.CheckpointError: expected finite values in final_norm, got NaN or infinity: ...
    """
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.sum(part, dtype=np.float32)  # one pass without a temporary; finite sums have finite terms
        if not np.isfinite(total) and not np.isfinite(part.astype(np.float64)).all():
            raise CheckpointError(f"expected finite values in {name}, got NaN or infinity: fetch the file again")


_CHUNK = 1 << 20
