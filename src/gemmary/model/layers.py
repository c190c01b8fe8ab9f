# SPDX-License-Identifier: Apache-2.0
"""The pieces of the forward pass: norm, rotary positions, projection, soft cap; each cast with its reason.

Arrays are of whichever backend Keras runs on; letters are those of base/dims.py.
"""

from typing import Any

from jaxtyping import Float, Int
from keras import ops

Array = Any  # a tensor of JAX, PyTorch or TensorFlow


def rms_norm(
    x: Float[Array, "*rest D"], scale: Float[Array, "D"], *, eps: float, plus_one: bool
) -> Float[Array, "*rest D"]:
    """Divide by the root mean square, multiply by (1 + scale).

    All of it is in float32 and rounded once at the end: rounding the normalised value first drifts from the reference
    implementation in bfloat16.

    >>> from keras import ops
    >>> [float(y) for y in rms_norm(ops.array([3.0, 4.0]), ops.zeros(2), eps=0.0, plus_one=True)]  # doctest: +ELLIPSIS
    [0.848..., 1.131...]
    """
    wide = ops.cast(x, "float32")
    factor = ops.cast(scale, "float32") + (1.0 if plus_one else 0.0)
    mean_square = ops.mean(ops.square(wide), axis=-1, keepdims=True)
    return ops.cast(wide * ops.rsqrt(mean_square + eps) * factor, x.dtype)


def rope_angles(positions: Int[Array, "B T"], head_dim: int, base: float, scale: float) -> Float[Array, "B T half"]:
    """The angle of each pair of a head's numbers: position / scale * base ** (-2 i / H).

    Positions are int32 and angles an element-wise float32 product, never a matrix product: bfloat16 and TF32 cannot
    tell position 8191 from 8192.

    >>> from keras import ops
    >>> float(rope_angles(ops.array([[0, 8191]], "int32"), 4, 10_000.0, 1.0)[0, 1, 0])
    8191.0
    """
    half = head_dim // 2
    exponents = ops.arange(half, dtype="float32") * (2.0 / head_dim)
    frequencies = ops.power(ops.cast(base, "float32"), -exponents) / scale
    return ops.expand_dims(ops.cast(positions, "float32"), -1) * frequencies


def rotate(
    x: Float[Array, "B T N H"], sin: Float[Array, "B T half"], cos: Float[Array, "B T half"]
) -> Float[Array, "B T N H"]:
    """Turn each pair (i, i + H/2) of every head by its angle, in float32, rounded once.

    >>> from keras import ops
    >>> x = ops.array([[[[1.0, 0.0]]]])
    >>> float(rotate(x, ops.ones((1, 1, 1)), ops.zeros((1, 1, 1)))[0, 0, 0, 1])
    1.0
    """
    first, second = ops.split(ops.cast(x, "float32"), 2, axis=-1)
    sin, cos = ops.expand_dims(sin, 2), ops.expand_dims(cos, 2)
    return ops.cast(ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1), x.dtype)


def project(x: Float[Array, "*rest D"], weight: Float[Array, "*out D"]) -> Float[Array, "*rest outs"]:
    """Contract the last letter of x with the last of the weight; the weight's other letters become one axis.

    Every weight of the table keeps its contracted letters last, so this is the model's only matrix product. The weight
    is seen as a matrix, which is free, since compilers transpose a weight of three axes in every call. It is cast to
    x's precision.

    >>> from keras import ops
    >>> project(ops.ones((1, 3, 8)), ops.ones((4, 2, 8))).shape == (1, 3, 8)
    True
    """
    matrix = ops.reshape(ops.cast(weight, x.dtype), (-1, x.shape[-1]))
    return ops.matmul(x, ops.transpose(matrix))


def softcap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """Squeeze smoothly into (-cap, cap); None leaves x as it is.

    >>> from keras import ops
    >>> float(softcap(ops.array([1e9]), 30.0)[0])
    30.0
    """
    return x if cap is None else ops.tanh(x / cap) * cap
