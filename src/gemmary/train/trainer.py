# SPDX-License-Identifier: Apache-2.0
"""The trainer: one step, a pure function of (state, frozen weights, batch, rate), the same for every objective.

    batch ─► [ objective ─► gradient ] × micro-batches ─► mean over what is learned ─► clip ─► optimizer ─► state
                                                                        not finite: the state as it was ┘

    state    {"step": int32, "learned": {path: float32}, "moments": {path: {name: float32}}}

It holds no model and no loop over data: who calls `step` decides what comes next, when to save and when to stop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from gemmary.base.errors import InputError
from gemmary.formats.content import Checkpoint
from gemmary.model.gemma import forward
from gemmary.model.weights import backend_array, numpy_array
from gemmary.train.gradient import compiled, value_and_gradient
from gemmary.train.objective import Learner, Objective, next_token
from gemmary.train.optimizer import AdamW, Optimizer
from gemmary.train.parameters import LoRA, Parameters

Array = Any
State = dict[str, Any]
NumpyBatch = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a step says: the mean loss in nats, the gradient's norm before clipping, and how many tokens were learned.

    >>> Metrics(loss=2.5, norm=0.7, learned=300, is_finite=True).loss
    2.5
    """

    loss: float
    norm: float
    learned: float
    is_finite: bool  # otherwise the step was left out


class Trainer:
    """A checkpoint in training.

    `dtype` is the precision of activations, `base_dtype` that of weights that are not learned; what is learned, moments
    and sums are float32. Processors without bfloat16 arithmetic compute faster and no larger in float32.
    Gradients longer than `max_norm` are shortened to it. `remat` computes each layer again in the backward pass.
    A batch holds arrays as `corpus/pack.py` makes them, or, with one axis more in front, several that count as one.

    >>> from gemmary.train.objective import example_batch
    >>> from gemmary.train.parameters import example_checkpoint
    >>> trainer = Trainer(example_checkpoint(), parameters=LoRA(rank=2), dtype="float32")
    >>> batch = {name: numpy_array(each) for name, each in example_batch().items()}
    >>> losses = [trainer.step(batch, rate=0.01).loss for _ in range(3)]
    >>> losses[2] < losses[0], trainer.steps
    (True, 3)
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        parameters: Parameters | None = None,
        objective: Objective = next_token,
        optimizer: Optimizer | None = None,
        dtype: str = "float32",
        base_dtype: str = "bfloat16",
        max_norm: float = 1.0,
        remat: bool = True,
        seed: int = 0,
    ) -> None:
        for each in (dtype, base_dtype):
            if each not in ("float32", "bfloat16"):
                raise InputError(f"expected float32 or bfloat16, got {each}: float16 overflows in Gemma")
        self._config, self._dtype, self._max_norm, self._remat = checkpoint.config, dtype, max_norm, remat
        self._parameters, self._objective = parameters or LoRA(), objective
        self._optimizer = optimizer or AdamW()
        learned, self._frozen = self._parameters.load(checkpoint, base_dtype, seed)
        self._state = self._first_state(learned)
        self._step, self._judge = compiled(self._step_pass), compiled(self._judge_pass)

    @property
    def steps(self) -> int:
        """How many steps were taken, those left out included."""
        return int(self._state["step"])

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """All that changes, as NumPy arrays by path: "step", "learned/..." and "moments/.../first".

        >>> from gemmary.train.parameters import example_checkpoint
        >>> trainer = Trainer(example_checkpoint(), parameters=LoRA(rank=2, targets=("mlp.up",)))
        >>> sorted(trainer.state)[:2]
        ['learned/layers.0.mlp.up.down', 'learned/layers.0.mlp.up.up']
        """
        return {path: numpy_array(each) for path, each in _flat(self._state).items()}

    @state.setter
    def state(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        known = _flat(self._state)
        wrong = {path for path in known.keys() | arrays.keys() if _shape(known.get(path)) != _shape(arrays.get(path))}
        if wrong:
            raise InputError(
                f"expected a state of the same recipe, got another {min(wrong)}: resume with the recipe it was saved by"
            )
        self._state = _nested({path: backend_array(each, str(each.dtype)) for path, each in arrays.items()})

    def learned(self) -> dict[str, NDArray[np.float32]]:
        """What is learned, by path.

        >>> from gemmary.train.parameters import example_checkpoint
        >>> sorted(Trainer(example_checkpoint(), parameters=LoRA(rank=2, targets=("mlp.up",))).learned())
        ['layers.0.mlp.up.down', 'layers.0.mlp.up.up']
        """
        return {path: numpy_array(each) for path, each in self._state["learned"].items()}

    def step(self, batch: NumpyBatch, *, rate: float) -> Metrics:
        """Learn from a batch; a step whose loss or gradient is not finite changes nothing but the count."""
        state, self._state = self._state, {}  # its memory becomes the next state's
        self._state, (loss, norm, learned, is_finite) = self._step(
            state, self._frozen, _arrays(batch), np.float32(rate)
        )
        return Metrics(loss=float(loss), norm=float(norm), learned=float(learned), is_finite=bool(is_finite))

    def try_step(self, batch: NumpyBatch) -> None:
        """Take a step at rate 0 and forget its moments: what a step needs is known then, and no memory is taken twice.

        Raises InputError after the first step, when there are moments to lose.

        >>> from gemmary.train.objective import example_batch
        >>> from gemmary.train.parameters import example_checkpoint
        >>> trainer = Trainer(example_checkpoint(), parameters=LoRA(rank=2))
        >>> trainer.try_step({name: numpy_array(each) for name, each in example_batch().items()})
        >>> trainer.steps
        0
        """
        if self.steps:
            raise InputError(f"expected a trainer before its first step, got one after {self.steps}: try a step first")
        self.step(batch, rate=0.0)  # what is learned stays as it is
        learned, self._state["moments"] = self._state["learned"], {}
        self._state = self._first_state(learned)

    def _first_state(self, learned: dict[str, Array]) -> State:
        moments = {path: self._optimizer.moments(each) for path, each in learned.items()}
        return {"step": ops.zeros((), "int32"), "learned": learned, "moments": moments}

    def evaluate(self, batches: Sequence[NumpyBatch]) -> float:
        """The mean loss over batches, in nats a learned token.

        >>> from gemmary.train.parameters import example_checkpoint
        >>> Trainer(example_checkpoint(), parameters=LoRA(rank=2)).evaluate([])
        0.0
        """
        sums = [self._judge({}, self._state["learned"], self._frozen, _arrays(batch)) for batch in batches]
        return sum(float(loss) for loss, _ in sums) / max(1.0, sum(float(count) for _, count in sums))

    def first_fault(self, batch: NumpyBatch) -> str:
        """Where a batch's pass first gives a number that is not finite: a layer, the head, or the backward pass.

        >>> from gemmary.train.objective import example_batch
        >>> from gemmary.train.parameters import example_checkpoint
        >>> trainer = Trainer(example_checkpoint(), parameters=LoRA(rank=2))
        >>> trainer.first_fault({name: numpy_array(each) for name, each in example_batch().items()})
        'the backward pass'
        """
        weights = self._parameters.weights(self._state["learned"], self._frozen)
        arrays = _arrays(batch if batch["ids"].ndim == 2 else {name: each[0] for name, each in batch.items()})

        def is_finite(layers: int) -> bool:
            x = forward(
                self._config.with_(num_layers=layers),
                weights,
                arrays["ids"],
                segments=arrays["segments"],
                positions=arrays["positions"],
                dtype=self._dtype,
            )
            return bool(ops.all(ops.isfinite(x)))

        first = next((layer for layer in range(self._config.num_layers) if not is_finite(layer + 1)), None)
        if first is not None:
            return f"layer {first}"
        loss, _ = self._judge({}, self._state["learned"], self._frozen, arrays)
        return "the backward pass" if np.isfinite(float(loss)) else "the head"

    def _loss(self, learned: dict[str, Array], frozen: Mapping[str, Any], batch: Mapping[str, Array]) -> Any:
        learner = Learner(
            config=self._config,
            weights=self._parameters.weights(learned, frozen),
            dtype=self._dtype,
            learns_table=self._parameters.learns_table,
            remat=self._remat,
        )
        return self._objective(learner, batch)

    def _sums(self, learned: dict[str, Array], frozen: Mapping[str, Any], batch: Mapping[str, Array]) -> Any:
        """Sums of the loss, of its weights and of the gradients, over all micro-batches."""

        def one(micro: Mapping[str, Array]) -> Any:
            (loss, count), slopes = value_and_gradient(lambda each: self._loss(each, frozen, micro), learned)
            return loss, count, slopes

        if len(batch["ids"].shape) == 2:
            return one(batch)
        zeros = (ops.zeros(()), ops.zeros(()), {path: ops.zeros_like(each) for path, each in learned.items()})

        def add(total: Any, micro: Mapping[str, Array]) -> tuple[Any, None]:
            return keras.tree.map_structure(lambda a, b: a + b, total, one(micro)), None

        return ops.scan(add, zeros, dict(batch))[0]

    def _step_pass(self, state: State, frozen: Mapping[str, Any], batch: Mapping[str, Array], rate: Array) -> Any:
        learned, moments = dict(state["learned"]), dict(state["moments"])
        loss, count, slopes = self._sums(learned, frozen, batch)
        share = 1.0 / ops.maximum(count, 1.0)
        norm = share * ops.sqrt(sum(ops.sum(ops.square(each)) for each in slopes.values()))
        is_finite = ops.logical_and(ops.isfinite(norm), ops.isfinite(loss))
        share = share * ops.minimum(1.0, self._max_norm / (norm + 1e-6))
        step = state["step"] + 1
        state.clear()  # of each array the old one goes when the new one is there
        for path in list(learned):
            old = learned[path], moments[path]
            new = self._optimizer.update(old[0], slopes.pop(path) * share, old[1], step, rate)
            learned[path], moments[path] = keras.tree.map_structure(
                lambda after, before: ops.where(is_finite, after, before), new, old
            )
        return {"step": step, "learned": learned, "moments": moments}, (
            loss / ops.maximum(count, 1.0),
            norm,
            count,
            is_finite,
        )

    def _judge_pass(
        self, _: Any, learned: dict[str, Array], frozen: Mapping[str, Any], batch: Mapping[str, Array]
    ) -> Any:
        return self._loss(learned, frozen, batch)


def _arrays(batch: NumpyBatch) -> dict[str, Array]:
    return {name: ops.convert_to_tensor(each) for name, each in batch.items()}


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name, each in tree.items():
        found |= _flat(each, f"{above}{name}/") if isinstance(each, Mapping) else {above + name: each}
    return found


def _nested(flat: Mapping[str, Array]) -> State:
    tree: State = {}
    for path, each in flat.items():
        *folders, name = path.split("/")
        inside = tree
        for folder in folders:
            inside = inside.setdefault(folder, {})
        inside[name] = each
    return tree


def _shape(array: Any) -> tuple[int, ...] | None:
    return None if array is None else tuple(array.shape)
