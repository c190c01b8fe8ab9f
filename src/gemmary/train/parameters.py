# SPDX-License-Identifier: Apache-2.0
"""What of a model is learned: all of it, or adapters beside a frozen base.

    checkpoint ─► learned (float32 masters)  ┐
               └► frozen (dtype, or integers) ┴─► the mapping of weights that the forward pass takes

`learned` is a flat dictionary of arrays, which is what optimizers, checkpoints and meshes see.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from keras import ops
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import InputError
from gemmary.formats.adapter import TARGETS
from gemmary.formats.content import Checkpoint
from gemmary.formats.tensors import Weight, weights
from gemmary.model.lora import GROUP, Decomposed, LowRank, quantized, row_norms
from gemmary.model.weights import backend_array, load_weights, precision

Array = Any
Arrays = dict[str, Array]


class Parameters(Protocol):
    """A choice of what is learned."""

    @property
    def learns_table(self) -> bool:
        """Whether the embedding is learned."""
        ...

    def load(self, checkpoint: Checkpoint, dtype: str, seed: int) -> tuple[Arrays, dict[str, Any]]:
        """What is learned, in float32, and what is frozen, of a checkpoint."""
        ...

    def weights(self, learned: Arrays, frozen: Mapping[str, Any]) -> dict[str, Any]:
        """The mapping from the table's paths that the forward pass takes."""
        ...


@dataclass(frozen=True)
class Full:
    """Every weight is learned.

    >>> Full().learns_table
    True
    """

    @property
    def learns_table(self) -> bool:
        """The embedding is learned.

        >>> Full().learns_table
        True
        """
        return True

    def load(self, checkpoint: Checkpoint, dtype: str, seed: int) -> tuple[Arrays, dict[str, Any]]:
        """All weights in float32, whatever the precision of activations.

        >>> Full().load(example_checkpoint(), "bfloat16", 0)[1]
        {}
        """
        return load_weights(checkpoint, "float32"), {}

    def weights(self, learned: Arrays, frozen: Mapping[str, Any]) -> dict[str, Any]:
        """What is learned.

        >>> Full().weights({"final_norm": 1}, {})
        {'final_norm': 1}
        """
        return dict(learned)


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters beside chosen matrices of every layer; DoRA with `is_dora`; QLoRA with a base of 8 or 4 bits.

    Targets are names of the weight table without their layer. Raises InputError for values that make no adapter.

    >>> LoRA(targets=("attention.qery",))
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected targets of attention.query, ..., got attention.qery: ...
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS
    is_dora: bool = False
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise InputError(f"expected rank >= 1 and alpha > 0, got {self.rank} and {self.alpha}: 16 and 32 are usual")
        wrong = [target for target in self.targets if target not in TARGETS]
        if wrong or not self.targets:
            raise InputError(
                f"expected targets of {', '.join(TARGETS)}, got {', '.join(wrong) or 'none'}: name at least one"
            )
        if self.bits not in (None, 8, 4):
            raise InputError(f"expected a base of 8 or 4 bits, got {self.bits}: leave it out for the usual precision")

    @property
    def learns_table(self) -> bool:
        """The embedding stays as it is, and tied to the head.

        >>> LoRA().learns_table
        False
        """
        return False

    def shapes(self, config: GemmaConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of what is learned, by path.

        >>> LoRA(rank=4, targets=("mlp.down",)).shapes(example_checkpoint().config)
        {'layers.0.mlp.down.down': (4, 4), 'layers.0.mlp.down.up': (4, 4)}
        """
        found: dict[str, tuple[int, ...]] = {}
        for path, row, _ in self._adapted(config):
            out, columns = row.hf.shape(config)
            found |= {f"{path}.down": (self.rank, columns), f"{path}.up": (out, self.rank)}
            if self.is_dora:
                found[f"{path}.magnitude"] = (out,)
        return found

    def load(self, checkpoint: Checkpoint, dtype: str, seed: int) -> tuple[Arrays, dict[str, Any]]:
        """Adapters that change nothing yet, drawn by the seed alike on every backend, and the base.

        >>> learned, frozen = LoRA(rank=2, targets=("mlp.up",)).load(example_checkpoint(), "bfloat16", 0)
        >>> sorted(learned), len(frozen)
        (['layers.0.mlp.up.down', 'layers.0.mlp.up.up'], 11)
        """
        config = checkpoint.config
        frozen = {
            path: self._frozen(checkpoint.tensors[path](), row, dtype, config) for path, row, _ in weights(config)
        }
        learned = {}
        for at, (path, shape) in enumerate(self.shapes(config).items()):
            if path.endswith(".down"):  # as PEFT draws it: uniform within 1 / sqrt(in)
                draw = np.random.Generator(np.random.Philox(key=[seed, at])).uniform(-1, 1, shape)
                learned[path] = backend_array(draw / shape[1] ** 0.5, "float32")
            elif path.endswith(".up"):
                learned[path] = ops.zeros(shape)
        for path, _, _ in self._adapted(config) if self.is_dora else ():
            learned[f"{path}.magnitude"] = row_norms(frozen[path], learned[f"{path}.down"], learned[f"{path}.up"])
        return learned, frozen

    def weights(self, learned: Arrays, frozen: Mapping[str, Any]) -> dict[str, Any]:
        """The base's mapping with adapters in the places of what they adapt.

        >>> LoRA(rank=2).weights({"final_norm.up": 1.0, "final_norm.down": 2.0}, {"final_norm": 3.0})["final_norm"].up
        16.0
        """
        mapping = dict(frozen)
        for path in [each.removesuffix(".down") for each in learned if each.endswith(".down")]:
            down, up = learned[f"{path}.down"], learned[f"{path}.up"] * (self.alpha / self.rank)
            magnitude = learned.get(f"{path}.magnitude")
            plain = LowRank(frozen[path], down, up)
            mapping[path] = plain if magnitude is None else Decomposed(*plain, magnitude)
        return mapping

    def _adapted(self, config: GemmaConfig) -> Iterator[tuple[str, Weight, int | None]]:
        for path, row, layer in weights(config):
            if row.path.removeprefix("layers.{i}.") in self.targets:
                yield path, row, layer

    def _frozen(self, array: NDArray[Any], row: Weight, dtype: str, config: GemmaConfig) -> Any:
        """A weight as it is held: in the precision given, or as integers if it is one of a layer's matrices."""
        rows, columns = row.hf.shape(config) if row.path in _MATRICES else (0, 0)
        if self.bits is None or not rows or columns % GROUP:
            return backend_array(array, precision(row, dtype))
        small = quantized(np.asarray(array, np.float32).reshape(rows, columns), bits=self.bits)
        return type(small)(*map(ops.convert_to_tensor, small))


_MATRICES = {f"layers.{{i}}.{target}" for target in TARGETS}


def example_checkpoint() -> Checkpoint:
    """A random model of one layer and four dimensions: for examples.

    >>> example_checkpoint().config.model_dim
    4
    """
    config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    draw = np.random.default_rng(0).standard_normal
    tensors = {path: partial(np.asarray, draw(row.shape(config)), np.float32) for path, row, _ in weights(config)}
    return Checkpoint(config=config, tensors=tensors, vocabulary=None)
