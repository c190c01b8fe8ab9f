# SPDX-License-Identifier: Apache-2.0
"""Optimizers as values: moments to begin with, and the update of one array, pure functions in float32.

Keras has optimizers, which hold variables; here the state is a tree of arrays that is sharded, saved and compared like
the weights, and a step is a function of it.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import Any, Protocol

from jaxtyping import Float, Int
from keras import ops

Array = Any
Moments = dict[str, Array]


class Optimizer(Protocol):
    """What the trainer needs of an optimizer."""

    def moments(self, array: Array) -> Moments:
        """What is remembered of an array before the first step."""
        ...

    def update(
        self, array: Array, gradient: Array, moments: Moments, step: Array, rate: Array
    ) -> tuple[Array, Moments]:
        """The array and its moments after one more step; `step` counts from 1."""
        ...


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101); what has one axis is not decayed.

    >>> adam = AdamW()
    >>> new, moments = adam.update(ops.ones(2), ops.ones(2), adam.moments(ops.ones(2)), ops.array(1), ops.array(0.5))
    >>> round(float(new[0]), 4), sorted(moments)
    (0.5, ['first', 'second'])
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def moments(self, array: Float[Array, "..."]) -> Moments:
        """Zeros.

        >>> sorted(AdamW().moments(ops.ones(2)))
        ['first', 'second']
        """
        return {"first": ops.zeros_like(array), "second": ops.zeros_like(array)}

    def update(
        self,
        array: Float[Array, "..."],
        gradient: Float[Array, "..."],
        moments: Moments,
        step: Int[Array, ""],
        rate: Float[Array, ""],
    ) -> tuple[Float[Array, "..."], Moments]:
        """One step.

        >>> adam, ones = AdamW(weight_decay=0.1), ops.ones((1, 2))
        >>> float(adam.update(ones, ones * 0, adam.moments(ones), ops.array(1), ops.array(0.5))[0][0, 0])
        0.949999988079071
        """
        count = ops.cast(step, "float32")
        first = self.beta1 * moments["first"] + (1.0 - self.beta1) * gradient
        second = self.beta2 * moments["second"] + (1.0 - self.beta2) * gradient * gradient
        mean = first / (1.0 - ops.power(self.beta1, count))
        spread = ops.sqrt(second / (1.0 - ops.power(self.beta2, count))) + self.eps
        decay = self.weight_decay if len(array.shape) > 1 else 0.0
        return array - rate * (mean / spread + decay * array), {"first": first, "second": second}


@dataclass(frozen=True, kw_only=True)
class Adafactor:
    """A second moment by rows and columns only, no first: next to no memory (arXiv 1804.04235, algorithm 4).

    >>> factor = Adafactor()
    >>> {name: tuple(each.shape) for name, each in factor.moments(ops.ones((4, 2, 8))).items()}
    {'rows': (4, 2), 'columns': (4, 8)}
    """

    decay: float = 0.8  # the exponent of 1 - step ** -decay
    eps: float = 1e-30
    clip: float = 1.0  # of an update's root mean square
    weight_decay: float = 0.0

    def moments(self, array: Float[Array, "..."]) -> Moments:
        """Zeros: of a matrix one for each row and one for each column.

        >>> sorted(Adafactor().moments(ops.ones(2)))
        ['second']
        """
        if len(array.shape) < 2:
            return {"second": ops.zeros_like(array)}
        shape = tuple(array.shape)
        return {"rows": ops.zeros(shape[:-1]), "columns": ops.zeros((*shape[:-2], shape[-1]))}

    def update(
        self,
        array: Float[Array, "..."],
        gradient: Float[Array, "..."],
        moments: Moments,
        step: Int[Array, ""],
        rate: Float[Array, ""],
    ) -> tuple[Float[Array, "..."], Moments]:
        """One step.

        >>> factor, ones = Adafactor(), ops.ones((2, 2))
        >>> float(factor.update(ones, ones, factor.moments(ones), ops.array(1), ops.array(0.5))[0][0, 0])
        0.5
        """
        keep = 1.0 - ops.power(ops.cast(step, "float32"), -self.decay)
        square = gradient * gradient + self.eps
        if "second" in moments:
            moments = {"second": keep * moments["second"] + (1.0 - keep) * square}
            change = gradient * ops.rsqrt(moments["second"])
        else:
            rows = keep * moments["rows"] + (1.0 - keep) * ops.mean(square, axis=-1)
            columns = keep * moments["columns"] + (1.0 - keep) * ops.mean(square, axis=-2)
            moments = {"rows": rows, "columns": columns}
            shares = ops.rsqrt(rows / ops.mean(rows, axis=-1, keepdims=True))
            change = gradient * ops.expand_dims(shares, -1) * ops.expand_dims(ops.rsqrt(columns), -2)
        size = ops.sqrt(ops.mean(change * change))
        change = change / ops.maximum(1.0, size / self.clip)
        decay = self.weight_decay if len(array.shape) > 1 else 0.0
        return array - rate * (change + decay * array), moments


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of a step: linear warm-up, then half a cosine down to a share of the peak.

    >>> schedule = Schedule(peak=1.0, steps=100, warmup=10, final=0.1)
    >>> [round(schedule.rate(step), 3) for step in (0, 9, 55, 100, 200)]
    [0.1, 1.0, 0.55, 0.1, 0.1]
    """

    peak: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def rate(self, step: int) -> float:
        """Of the step with that number, counted from 0.

        >>> Schedule(peak=2.0, steps=2).rate(0)
        2.0
        """
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.peak * (self.final + (1 - self.final) * (1 + cos(pi * done)) / 2)
