# SPDX-License-Identifier: Apache-2.0
"""Weights in parts: low-rank adapters (LoRA, DoRA) over a base, and a base in 8 or 4 bits.

    x ─┬─► base ────────────┬─ + ─► (× magnitude / row norm, DoRA) ─► y
       └─► down ─► up ─► × s ┘

They stand in the mapping of weights where an array would, and `project` asks them for their product, so the forward
pass knows nothing of them. The base is never added up with the adapter: its gradient would cost as much as a pass.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from keras import ops
from numpy.typing import NDArray

from gemmary.model.layers import project

Array = Any

GROUP = 32  # columns that share a scale


class Quantized(NamedTuple):
    """A frozen matrix as integers: codes (out, in) int8, or (out, in / 2) uint8 with two of 4 bits in each.

    >>> small = quantized(np.eye(32, dtype=np.float32), bits=8)
    >>> tuple(small.codes.shape), tuple(small.scales.shape)
    ((32, 32), (32, 1))
    """

    codes: Array
    scales: Float[Array, "out groups"]

    def dense(self, dtype: Any) -> Float[Array, "out D"]:
        """The matrix in a floating-point precision.

        >>> float(quantized(np.eye(32, dtype=np.float32), bits=4).dense("float32")[3, 3])
        1.0
        """
        codes, out = self.codes, self.codes.shape[0]
        if self.scales.shape[1] * GROUP != codes.shape[1]:  # the first half of a row is in the lower four bits
            low, high = ops.bitwise_and(codes, 15), ops.right_shift(codes, 4)
            codes = ops.cast(ops.concatenate([low, high], axis=1), "int8") - 8
        groups = ops.reshape(
            ops.cast(codes, "float32"), (out, -1, GROUP)
        )  # float32: a scale has more bits than bfloat16
        return ops.cast(ops.reshape(groups * ops.expand_dims(self.scales, 2), (out, -1)), dtype)

    def project(self, x: Float[Array, "*rest D"]) -> Float[Array, "*rest out"]:
        """Its product with x.

        >>> small = quantized(np.eye(32, dtype=np.float32), bits=8)
        >>> float(small.project(ops.ones((1, 3, 32)))[0, 2, 5])
        1.0
        """
        return project(x, self.dense(x.dtype))


class LowRank(NamedTuple):
    """A frozen matrix and, beside it, what is learned; `up` is scaled already.

    >>> adapted = LowRank(ops.ones((4, 8)), ops.ones((2, 8)), ops.ones((4, 2)) * 0.5)
    >>> float(adapted.project(ops.ones((1, 1, 8)))[0, 0, 0])
    16.0
    """

    base: Any  # an array of the table's letters, or Quantized
    down: Float[Array, "R D"]
    up: Float[Array, "out R"]

    def project(self, x: Float[Array, "*rest D"]) -> Float[Array, "*rest out"]:
        """The product of x with base + up down.

        >>> tuple(LowRank(ops.ones((4, 8)), ops.ones((2, 8)), ops.ones((4, 2))).project(ops.ones((1, 3, 8))).shape)
        (1, 3, 4)
        """
        return project(x, self.base) + project(project(x, self.down), self.up)


class Decomposed(NamedTuple):
    """LowRank whose rows have the lengths of a learned magnitude: DoRA.

    >>> adapted = Decomposed(ops.ones((4, 8)), ops.ones((2, 8)), ops.zeros((4, 2)), ops.ones(4))
    >>> round(float(adapted.project(ops.ones((1, 1, 8)))[0, 0, 0]), 4)  # rows of length 1
    2.8284
    """

    base: Any
    down: Float[Array, "R D"]
    up: Float[Array, "out R"]
    magnitude: Float[Array, "out"]

    def project(self, x: Float[Array, "*rest D"]) -> Float[Array, "*rest out"]:
        """The product of x with base + up down, every row brought to its magnitude.

        >>> adapted = Decomposed(ops.ones((4, 8)), ops.ones((2, 8)), ops.zeros((4, 2)), ops.ones(4))
        >>> tuple(adapted.project(ops.ones((1, 3, 8))).shape)
        (1, 3, 4)
        """
        factor = self.magnitude / row_norms(self.base, self.down, self.up)
        return LowRank(self.base, self.down, self.up).project(x) * ops.cast(factor, x.dtype)


def row_norms(base: Any, down: Float[Array, "R D"], up: Float[Array, "out R"]) -> Float[Array, "out"]:
    """Lengths of the rows of base + up down, a constant for gradients (DoRA, arXiv 2402.09353, section 4.3).

    >>> [float(norm) for norm in row_norms(ops.ones((2, 4)), ops.ones((1, 4)), ops.ones((2, 1)))]
    [4.0, 4.0]
    """
    down, up = ops.stop_gradient(down), ops.stop_gradient(up)
    matrix = dense(base, "float32", columns=down.shape[1])
    cross = ops.sum(ops.matmul(matrix, ops.transpose(down)) * up, axis=1)
    own = ops.sum(ops.matmul(up, ops.matmul(down, ops.transpose(down))) * up, axis=1)
    return ops.sqrt(ops.sum(matrix * matrix, axis=1) + 2 * cross + own)


def dense(weight: Any, dtype: Any, *, columns: int) -> Float[Array, "out D"]:
    """A weight that is an array or Quantized, as a matrix.

    >>> tuple(dense(ops.ones((4, 2, 8)), "float32", columns=8).shape)
    (8, 8)
    """
    if isinstance(weight, Quantized):
        return weight.dense(dtype)
    return ops.reshape(ops.cast(weight, dtype), (-1, columns))


def quantized(matrix: NDArray[np.float32], *, bits: int) -> Quantized:
    """A matrix as integers of 8 or 4 bits with a float32 scale for every 32 columns, as NumPy arrays.

    >>> matrix = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
    >>> bool(abs(ops.convert_to_numpy(quantized(matrix, bits=8).dense("float32")) - matrix).max() < 1 / 127)
    True
    """
    most = 127 if bits == 8 else 7
    groups = matrix.reshape(len(matrix), -1, GROUP)
    scales = np.abs(groups).max(axis=2) / most
    codes = np.rint(groups / np.where(scales > 0, scales, 1)[:, :, None]).astype(np.int8).reshape(matrix.shape)
    if bits == 4:
        low, high = np.split((codes + 8).astype(np.uint8), 2, axis=1)
        return Quantized(low | high << 4, scales)
    return Quantized(codes, scales)
