# SPDX-License-Identifier: Apache-2.0
"""The one thing that differs between backends in training: how a gradient is taken, and how a step is compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from gemmary.model.compiled import compile_pure

Array = Any
Arrays = dict[str, Array]
Loss = Callable[[Arrays], tuple[Array, Any]]  # of what is learned: a scalar, and what else is wanted of the pass


def value_and_gradient(loss: Loss, learned: Arrays) -> tuple[tuple[Array, Any], Arrays]:
    """A scalar function's value with all else that it returns, and its gradient by each array.

    >>> from keras import ops
    >>> (value, x), slopes = value_and_gradient(lambda each: (each["x"] ** 2, each["x"]), {"x": ops.array(3.0)})
    >>> float(value), float(x), float(slopes["x"])
    (9.0, 3.0, 6.0)
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.value_and_grad(loss, has_aux=True)(learned)
    if backend == "tensorflow":
        import tensorflow

        with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(learned)
            value, aux = loss(learned)
        return (value, aux), tape.gradient(value, learned)
    import torch

    leaves = {path: each.detach().requires_grad_() for path, each in learned.items()}
    with torch.enable_grad():
        value, aux = loss(leaves)
    slopes = torch.autograd.grad(value, list(leaves.values()))
    value, aux = keras.tree.map_structure(lambda each: each.detach(), (value, aux))
    return (value, aux), dict(zip(leaves, slopes, strict=True))


def again(block: Callable[..., Array]) -> Callable[..., Array]:
    """A function of arrays whose backward pass keeps its arguments alone and computes the rest again.

    XLA's optimizer for CPUs sees through `jax.checkpoint`: it finds both computations alike and keeps the first one's
    results, copies of weights in another precision among them. So what goes into the second waits for the gradient:
    to every argument zero times one number of it is added.

    >>> from keras import ops
    >>> float(again(lambda x, y: x * y)(ops.array(2.0), ops.array(3.0)))
    6.0
    """
    if keras.backend.backend() != "jax":
        return keras.remat(block)  # type: ignore[no-any-return]
    import jax

    def forward(*arguments: Array) -> tuple[Array, tuple[Array, ...]]:
        return block(*arguments), arguments

    def backward(arguments: tuple[Array, ...], slope: Array) -> tuple[Array, ...]:
        zero = 0.0 * slope.reshape(-1)[0]
        waiting = [each + zero.astype(each.dtype) for each in arguments]
        return jax.vjp(block, *waiting)[1](slope)  # type: ignore[no-any-return]

    wrapped = jax.custom_vjp(block)
    wrapped.defvjp(forward, backward)
    return wrapped


def compiled(step: Callable[..., Any], *, lean: bool = False) -> Callable[..., Any]:
    """A step compiled for each set of shapes; the memory of its first argument, a dictionary, may become its result's.

    PyTorch runs it as it is. `lean` is that of `compile_pure`: worth it for frozen weights, which are held in another
    precision than is computed in. Where all is learned, nothing is copied, and gradients would lie about for longer.

    >>> from keras import ops
    >>> float(compiled(lambda state, y: state["x"] + y)({"x": ops.array(1.0)}, ops.array(2.0)))
    3.0
    """
    if keras.backend.backend() == "torch":  # a pass for replies has no gradients there
        return step

    def copied(_: None, first: Any, *others: Any) -> Any:  # TensorFlow allows no change of an argument
        return step(dict(first), *others)

    return partial(compile_pure(copied, donate=True, lean=lean), None)
