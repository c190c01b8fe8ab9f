# SPDX-License-Identifier: Apache-2.0
"""Checkpoint: what every format holds; and the step all readers share, from the file's tensors to ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from re import Pattern
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import CheckpointError, FileError, InputError
from gemmary.formats.quantize import BlockType
from gemmary.formats.sentencepiece import Vocabulary
from gemmary.formats.storage import shown
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
    blocks: Mapping[str, "Blocks"] = field(default_factory=dict)  # matrices as the file holds them, where that is rows


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A matrix as its file holds it: `read(first, count)` gives the raw bytes of some rows.

    >>> Blocks(kind=BlockType.F32, shape=(1, 2), read=lambda first, count: np.zeros(8, np.uint8)).shape
    (1, 2)
    """

    kind: BlockType
    shape: tuple[int, int]
    read: Callable[[int, int], NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor as a file lists it: its shape, and the function that reads it; what its columns matter when rounded.

    >>> Entry(shape=(2,), read=lambda: np.zeros(2)).read()
    array([0., 0.])
    """

    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]
    importance: NDArray[np.float32] | None = None  # as formats/quantize.py takes it


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
                f"expected no other tensors than a Gemma's, got {shown(name)}: see docs/design.md for what is read"
            )
        if name in taken and taken[name] != entry.shape[0]:
            raise _wrong_shape(name, (taken[name], *entry.shape[1:]), entry.shape)
    return tensors


def unbind(
    config: GemmaConfig,
    tensors: Mapping[str, Callable[[], NDArray[Any]]],
    name_of: Callable[[Weight, int | None], tuple[str, Stored]],
) -> dict[str, Entry]:
    """The inverse of `bind`: the tensors of a file, each made from ours when it is read.

    Raises CheckpointError for weights that are missing.

    >>> from gemmary.base.config import PRESETS
    >>> unbind(PRESETS["gemma-2b"], {}, lambda row, layer: (row.gguf.at(layer), row.gguf))
    Traceback (most recent call last):
    gemmary.base.errors.CheckpointError: expected the weight embedding, got 0 others: ...
    """
    parts: dict[str, list[tuple[str, Weight, Stored]]] = {}
    for path, row, layer in weights(config):
        if path not in tensors:
            raise CheckpointError(
                f"expected the weight {path}, got {len(tensors)} others: give all that the table lists"
            )
        name, stored = name_of(row, layer)
        parts.setdefault(name, []).append((path, row, stored))
    return {name: _made(config, tensors, found) for name, found in parts.items()}


def _made(
    config: GemmaConfig,
    tensors: Mapping[str, Callable[[], NDArray[Any]]],
    parts: list[tuple[str, Weight, Stored]],
) -> Entry:
    def read() -> NDArray[Any]:
        folded = []
        for path, row, stored in parts:
            array = np.asarray(tensors[path]())
            if array.shape != row.shape(config):
                raise _wrong_shape(path, row.shape(config), array.shape)
            check_finite(array, path)
            folded.append(stored.fold(array, config))
        return folded[0] if len(folded) == 1 else np.concatenate(folded)

    shapes = [stored.shape(config) for _, _, stored in parts]
    return Entry(shape=(sum(shape[0] for shape in shapes), *shapes[0][1:]), read=read)


def cast(array: NDArray[Any], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """The array in another precision; raises InputError when its values are beyond the range of that.

    >>> cast(np.float32([1e6]), np.dtype(np.float16), "final_norm")
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected values within float16 in final_norm, got larger ones: ...
    """
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(array, dtype)
    if dtype.itemsize < array.dtype.itemsize and not np.isfinite(out).all():
        raise InputError(f"expected values within {dtype} in {name}, got larger ones: use bfloat16 or float32")
    return out


def num_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of an array.

    >>> num_bytes((2, 3), np.dtype(np.float32))
    24
    """
    return prod(shape) * dtype.itemsize


def check_fits(config: GemmaConfig, who: str, **fits: bool) -> None:
    """Raise InputError when a field of the configuration is one that a foreign program would compute otherwise.

    >>> from gemmary.base.config import PRESETS
    >>> check_fits(PRESETS["gemma-2b"], "llama.cpp's gemma", rope_scale=False)
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected a configuration that llama.cpp's gemma computes, got rope_scale=1.0: ...
    """
    wrong = [field for field, is_fitting in fits.items() if not is_fitting]
    if wrong:
        raise InputError(
            f"expected a configuration that {who} computes, got {wrong[0]}={getattr(config, wrong[0])}: "
            "write another format"
        )


@dataclass(frozen=True)
class Fields:
    """Values of a file's configuration by name, each checked for its kind as it is taken.

    >>> Fields({"heads": "8"}, "config.json").size("heads")
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a whole number > 0 for heads in config.json, got '8': ...
    """

    values: Mapping[str, Any]
    where: str
    prefix: str = ""

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number > 0.

        >>> Fields({}, "config.json").size("heads", 8)
        8
        """
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise self._wrong("a whole number > 0", key, value)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number > 0.

        >>> Fields({"eps": 1e-6}, "config.json").real("eps")
        1e-06
        """
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self._wrong("a number > 0", key, value)
        return float(value)

    def optional(self, key: str, default: float | None = None) -> float | None:
        """A number > 0 or nothing.

        >>> Fields({"cap": None}, "config.json").optional("cap", 30.0)
        """
        return None if self.values.get(self.prefix + key, default) is None else self.real(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value.

        >>> Fields({"post_norm": True}, "config.json").flag("post_norm", False)
        True
        """
        value = self.values.get(self.prefix + key, default)
        if not isinstance(value, bool):
            raise self._wrong("true or false", key, value)
        return value

    def _get(self, key: str, default: float | None) -> Any:
        value = self.values.get(self.prefix + key)
        return default if value is None else value

    def _wrong(self, expected: str, key: str, value: Any) -> FileError:
        got = repr(value[:40]) if isinstance(value, str) else shown(value)
        return FileError(f"expected {expected} for {self.prefix}{key} in {self.where}, got {got}: fetch the file again")


def _wrong_shape(name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(
        f"expected {name} of shape {expected}, got {shown(got)}: the file and its configuration disagree"
    )


def _read(entry: Entry, part: slice, stored: Stored, config: GemmaConfig, name: str) -> NDArray[Any]:
    array = entry.read()
    if part != slice(0, len(array)):
        array = array[part].copy()  # a view would keep the other parts in memory
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
