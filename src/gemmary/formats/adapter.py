# SPDX-License-Identifier: Apache-2.0
"""Adapter: what LoRA and DoRA learn beside a model, and the checkpoint in which it is merged with that model.

    LoRA   W + s · up @ down                           up (out, R), down (R, in), s = alpha / R
    DoRA   m · (W + s · up @ down) / its rows' norms   m (out,), one for each row

A matrix's letters are those of the weight table: `in` is the product of the contracted ones, `out` that of the others.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import CheckpointError, InputError
from gemmary.formats.content import Blocks, Checkpoint, check_finite
from gemmary.formats.quantize import BlockType, dequantize
from gemmary.formats.storage import shown
from gemmary.formats.tensors import TABLE, Weight, weights

_LAYER = "layers.{i}."
_ROWS: Mapping[str, Weight] = {row.path.removeprefix(_LAYER): row for row in TABLE if row.per_layer and not row.is_norm}
TARGETS = tuple(_ROWS)  # what can be adapted: the matrices of a layer
MODULES: Mapping[str, str] = {  # their names in a layer of Hugging Face's
    target: row.hf.name.removeprefix(_LAYER).removesuffix(".weight") for target, row in _ROWS.items()
}
_PATH = re.compile(rf"(layers\.[0-9]{{1,4}}\.({'|'.join(map(re.escape, TARGETS))}))\.(down|up|magnitude)")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The low-rank change of some matrices of a model; `tensors` are float32 by the weight's path and the part.

    >>> path, ones = "layers.0.mlp.down", np.ones((8, 2), np.float32)
    >>> tensors = {f"{path}.down": ones.T, f"{path}.up": ones}
    >>> one = Adapter(rank=2, alpha=8.0, targets=("mlp.down",), is_dora=False, base="", tensors=tensors)
    >>> one.scale, one.weights, one.num_params
    (4.0, ('layers.0.mlp.down',), 32)

    Raises CheckpointError for tensors that are missing, unknown, of a wrong shape or not finite.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]  # of TARGETS
    is_dora: bool
    base: str  # the `fingerprint` of the model it was learnt on; "" if that is unknown
    tensors: Mapping[str, NDArray[np.float32]]  # "layers.0.attention.query" + ".down", ".up", and ".magnitude" in DoRA

    def __post_init__(self) -> None:
        if self.rank < 1 or not (isfinite(self.alpha) and self.alpha > 0):
            raise CheckpointError(f"expected rank and alpha > 0, got {self.rank} and {self.alpha}: save it again")
        found = {match[2] for path in self.tensors if (match := _PATH.fullmatch(path))}
        if not self.targets or found != set(self.targets):
            raise CheckpointError(
                f"expected tensors for the targets {', '.join(self.targets) or 'of an adapter'}, "
                f"got some for {', '.join(sorted(found)) or 'none'}: the adapter is incomplete or was changed"
            )
        parts = ("down", "up", *(("magnitude",) if self.is_dora else ()))
        expected = {f"{weight}.{part}" for weight in self.weights for part in parts}
        if wrong := sorted(expected.symmetric_difference(self.tensors)):
            raise CheckpointError(
                f"expected {' and '.join(parts)} of every adapted matrix and nothing else, got "
                f"{'no ' if wrong[0] in expected else ''}{shown(wrong[0])}: the adapter is incomplete or was changed"
            )
        for path, array in self.tensors.items():
            self._check(path, array)

    def _check(self, path: str, array: NDArray[np.float32]) -> None:
        weight, _, part = path.rpartition(".")
        rows = self.tensors[f"{weight}.up"].shape[:1]
        shapes = {"down": (self.rank, *array.shape[-1:]), "up": (*rows, self.rank), "magnitude": rows}
        if array.shape != shapes[part]:
            raise CheckpointError(
                f"expected {path} of shape {shapes[part]} for the rank {self.rank}, got {shown(array.shape)}: "
                "the adapter is incomplete or was changed"
            )
        check_finite(array, path)

    @property
    def scale(self) -> float:
        """What the product of up and down is multiplied by."""
        return self.alpha / self.rank

    @property
    def weights(self) -> tuple[str, ...]:
        """The paths of the adapted matrices."""
        matches = (_PATH.fullmatch(path) for path in self.tensors)
        return tuple(dict.fromkeys(match[1] for match in matches if match))

    @property
    def num_params(self) -> int:
        """How many numbers were learnt."""
        return sum(array.size for array in self.tensors.values())


def resolve_targets(names: Iterable[str]) -> tuple[str, ...]:
    """Names of matrices as those of TARGETS, in their order: ours, Hugging Face's, or "all"; raises InputError.

    >>> resolve_targets(["v_proj", "attention.query"])
    ('attention.query', 'attention.value')
    >>> resolve_targets(["all"]) == TARGETS
    True
    """
    known = {name: target for target, module in MODULES.items() for name in (target, module, module.split(".")[-1])}
    wanted = list(names)
    unknown = [name for name in wanted if name != "all" and name not in known]
    if unknown or not wanted:
        short = ", ".join(module.split(".")[-1] for module in MODULES.values())
        got = repr(shown(unknown[0])) if unknown else "none"
        raise InputError(f"expected targets of {', '.join(TARGETS)}, of {short}, or all, got {got}: use some of these")
    return TARGETS if "all" in wanted else tuple(each for each in TARGETS if each in {known[name] for name in wanted})


def fingerprint(checkpoint: Checkpoint) -> str:
    """Which model this is: 16 hexadecimal digits that are the same in every format and block precision of it.

    They come from the model's sizes and from the scales of its norms in steps of 2**-10. Norms stay float32 where
    matrices become blocks, and tuning a whole model changes them.

    >>> from gemmary.base.config import PRESETS
    >>> config = PRESETS["gemma-2b"].with_(num_layers=1, model_dim=8)
    >>> zeros = {path: lambda row=row: np.zeros(row.shape(config)) for path, row, _ in weights(config) if row.is_norm}
    >>> fingerprint(Checkpoint(config=config, tensors=zeros, vocabulary=None))
    '594806cb979de9de'
    """
    config, span = checkpoint.config, np.iinfo(np.int32)
    digest = hashlib.sha256(" ".join(f"{letter}={size}" for letter, size in config.sizes.items()).encode())
    for path, row, _ in weights(config):
        if row.is_norm:
            steps = np.rint(checkpoint.tensors[path]().astype(np.float64) * 1024)
            digest.update(steps.clip(span.min, span.max).astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def merged(checkpoint: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The model with its adapter: adapted matrices are float32, merged when they are read; all else is as before.

    Raises CheckpointError when the adapter is not for this model.

    >>> from gemmary.base.config import PRESETS
    >>> empty = Checkpoint(config=PRESETS["gemma-2b"], tensors={}, vocabulary=None)
    >>> parts = {"layers.0.mlp.up.down": np.ones((1, 4)), "layers.0.mlp.up.up": np.ones((8, 1))}
    >>> merged(empty, Adapter(rank=1, alpha=1.0, targets=("mlp.up",), is_dora=False, base="", tensors=parts))
    Traceback (most recent call last):
    gemmary.base.errors.CheckpointError: expected layers.0.mlp.up.down of shape (1, 2048), got (1, 4): the adapter ...
    """
    if adapter.base and (found := fingerprint(checkpoint)) != adapter.base:
        raise _another(f"the model {shown(adapter.base)} that the adapter was learnt on", f"the model {found}")
    rows = {path: row for path, row, _ in weights(checkpoint.config)}
    tensors, blocks = dict(checkpoint.tensors), dict(checkpoint.blocks)
    for path in adapter.weights:
        if path not in rows:
            raise _another(f"{path} in the model", f"{checkpoint.config.num_layers} layers")
        out, into = rows[path].hf.shape(checkpoint.config)
        _require_shape(adapter, f"{path}.down", (adapter.rank, into))
        _require_shape(adapter, f"{path}.up", (out, adapter.rank))
        tensors[path] = partial(_merged_array, checkpoint.tensors[path], adapter, path)
        if path in blocks:
            read = partial(_merged_rows, checkpoint.blocks[path], adapter, path)
            blocks[path] = Blocks(kind=BlockType.F32, shape=(out, into), read=read)
    return replace(checkpoint, tensors=tensors, blocks=blocks)


def _merged_array(read: Callable[[], NDArray[Any]], adapter: Adapter, path: str) -> NDArray[np.float32]:
    base = read()
    rows = base.reshape(len(adapter.tensors[f"{path}.up"]), -1)
    return _merge(rows, adapter, path, slice(None)).reshape(base.shape)


def _merged_rows(base: Blocks, adapter: Adapter, path: str, first: int, count: int) -> NDArray[np.uint8]:
    """The bytes of some rows; so a matrix need not be in memory whole."""
    rows = dequantize(base.read(first, count), base.kind, (count, base.shape[1]))
    return _merge(rows, adapter, path, slice(first, first + count)).reshape(-1).view(np.uint8)


def _merge(base: NDArray[Any], adapter: Adapter, path: str, rows: slice) -> NDArray[np.float32]:
    up, down = adapter.tensors[f"{path}.up"][rows], adapter.tensors[f"{path}.down"]
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = np.multiply(up, adapter.scale, dtype=np.float32) @ down
        matrix += base
        if adapter.is_dora:
            norms = np.linalg.norm(matrix, axis=1).clip(np.finfo(np.float32).tiny)
            matrix *= (adapter.tensors[f"{path}.magnitude"][rows] / norms)[:, None]  # a row of zeros stays one
    check_finite(matrix, f"{path} with its adapter")
    return matrix


def _require_shape(adapter: Adapter, name: str, shape: tuple[int, ...]) -> None:
    if adapter.tensors[name].shape != shape:
        raise _another(f"{name} of shape {shape}", f"{adapter.tensors[name].shape}")


def _another(expected: str, got: str) -> CheckpointError:
    return CheckpointError(f"expected {expected}, got {got}: the adapter is for another model, give the one it is for")
