# SPDX-License-Identifier: Apache-2.0
"""The pieces of the forward pass: norm, rotary positions, projection, soft cap; each cast with its reason.

Arrays are of whichever backend Keras runs on; letters are those of base/dims.py.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import keras
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
    mean_square = ops.sum(wide * wide, axis=-1, keepdims=True) * (1.0 / x.shape[-1])  # PyTorch's mean is slow
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


def sines(angles: Float[Array, "B T half"]) -> tuple[Float[Array, "B T 1 H"], Float[Array, "B T 1 H"]]:
    """What `rotate` multiplies a head by: sines, of either sign for the two halves, and cosines.

    >>> from keras import ops
    >>> tuple(sines(ops.zeros((1, 3, 2)))[0].shape)
    (1, 3, 1, 4)
    """
    sin, cos = ops.expand_dims(ops.sin(angles), 2), ops.expand_dims(ops.cos(angles), 2)
    return ops.concatenate([-sin, sin], axis=-1), ops.concatenate([cos, cos], axis=-1)


def rotate(
    x: Float[Array, "B T N H"], sin: Float[Array, "B T 1 H"], cos: Float[Array, "B T 1 H"]
) -> Float[Array, "B T N H"]:
    """Turn each pair (i, i + H/2) of every head by its angle, in float32, rounded once.

    >>> from keras import ops
    >>> x = ops.array([[[[1.0, 0.0]]]])
    >>> float(rotate(x, *sines(ops.full((1, 1, 1), 3.14159265 / 2)))[0, 0, 0, 1])
    1.0
    """
    wide = ops.cast(x, "float32")
    first, second = ops.split(wide, 2, axis=-1)
    return ops.cast(wide * cos + ops.concatenate([second, first], axis=-1) * sin, x.dtype)


def project(x: Float[Array, "*rest D"], weight: Any) -> Float[Array, "*rest outs"]:
    """Contract the last letter of x with the last of the weight; the weight's other letters become one axis.

    Every weight of the table keeps its contracted letters last, so this is the model's only matrix product. The weight
    is seen as a matrix, since compilers transpose one of three axes in every call, and cast to x's precision. A weight
    in parts (`model/lora.py`) knows its product.

    >>> from keras import ops
    >>> project(ops.ones((1, 3, 8)), ops.ones((4, 2, 8))).shape == (1, 3, 8)
    True
    """
    if isinstance(weight, tuple):
        return weight.project(x)  # type: ignore[attr-defined]  # LowRank, Decomposed or Quantized
    matrix = ops.reshape(ops.cast(weight, x.dtype), (-1, x.shape[-1]))
    if all(size == 1 for size in x.shape[:-1]):
        return _project_row(x, matrix)
    return product(x, ops.transpose(matrix), x.dtype)


def is_jax_on_cpu() -> bool:
    """Whether XLA compiles for a CPU, where bfloat16 wants care: most of what is done with it goes by way of float32.

    >>> is_jax_on_cpu() <= (keras.backend.backend() == "jax")
    True
    """
    if keras.backend.backend() != "jax":
        return False
    import jax

    return bool(jax.default_backend() == "cpu")


def product(a: Float[Array, "*rest M K"], b: Float[Array, "*some K N"], dtype: Any) -> Float[Array, "*rest M N"]:
    """The matrix product in `dtype`; b is a matrix, or has a's axes before its own two.

    Sums are float32, and rounded to the factors' precision first, but not by XLA on a CPU, which takes ten times as
    long for a product of bfloat16 that has to end in bfloat16. There it has a gradient, but no forward derivative.

    >>> from keras import ops
    >>> float(product(ops.ones((1, 300), "bfloat16"), ops.ones((300, 1), "bfloat16"), "float32")[0, 0])
    300.0
    """
    multiply = _wide_product() if is_jax_on_cpu() else ops.matmul
    return ops.cast(multiply(a, b), dtype)


def row_products(a: Float[Array, "*rest M K"], b: Float[Array, "*rest N K"], dtype: Any) -> Float[Array, "*rest M N"]:
    """The products of a's rows with b's, in `dtype`.

    For few rows of a it costs less to turn the result than b, but in PyTorch's float32, which reads b as it lies.

    >>> row_products(ops.ones((1, 3)), ops.ones((2, 3)), "float32").shape == (1, 2)
    True
    """
    is_turned_free = keras.backend.backend() == "torch" and keras.backend.standardize_dtype(b.dtype) == "float32"
    if a.shape[-2] < a.shape[-1] and not is_turned_free:
        return ops.swapaxes(product(b, ops.swapaxes(a, -2, -1), dtype), -2, -1)
    return product(a, ops.swapaxes(b, -2, -1), dtype)


@cache
def _wide_product() -> Callable[[Array, Array], Array]:
    """JAX's product with a float32 result; its gradient multiplies slopes rounded to the factors' precision."""
    import jax
    import jax.numpy as jnp

    def multiply(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, preferred_element_type="float32")

    def forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
        return multiply(a, b), (a, b)

    def backward(factors: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
        a, b = factors
        slope = slope.astype(a.dtype)
        by_a = multiply(slope, jnp.swapaxes(b, -1, -2)).astype(a.dtype)
        if b.ndim == 2:  # one for all of a's rows
            a, slope = (each.reshape(-1, each.shape[-1]) for each in (a, slope))
        return by_a, multiply(jnp.swapaxes(a, -1, -2), slope).astype(b.dtype)

    wide = jax.custom_vjp(multiply)
    wide.defvjp(forward, backward)
    return wide


def _project_row(x: Float[Array, "*rest D"], matrix: Float[Array, "out D"]) -> Float[Array, "*rest out"]:
    """One token's: what takes as long as reading the matrix does, in the words that each compiler understands."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    if is_jax_on_cpu() and (is_tall or keras.backend.standardize_dtype(matrix.dtype) == "bfloat16"):
        return product(x, ops.transpose(matrix), x.dtype)  # XLA makes one loop over rows of the two
    if keras.backend.backend() != "torch":
        return ops.einsum("...d,od->...o", x, matrix)
    # a batch of shares of the matrix: PyTorch puts all cores to a batch, one to a matrix
    shares = ops.reshape(matrix, (math.gcd(16, matrix.shape[0]), -1, matrix.shape[1]))
    rows = ops.broadcast_to(ops.reshape(x, (1, 1, -1)), (shares.shape[0], 1, x.shape[-1]))
    return ops.reshape(ops.matmul(rows, ops.swapaxes(shares, 1, 2)), (*x.shape[:-1], matrix.shape[0]))


def softcap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """Squeeze smoothly into (-cap, cap); None leaves x as it is.

    >>> from keras import ops
    >>> float(softcap(ops.array([1e9]), 30.0)[0])
    30.0
    """
    return x if cap is None else ops.tanh(x / cap) * cap
