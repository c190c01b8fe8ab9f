# SPDX-License-Identifier: Apache-2.0
"""The one thing that differs between backends in training: how a gradient is taken, and how a step is compiled."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import keras
import optree
from keras import ops

from gemmary.formats.locate import cache_folder
from gemmary.model.compiled import compile_part, compile_pure

Array = Any
Part = Callable[..., Array]  # of a constant, a nest of weights, an array, and more arrays
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


def again(part: Part) -> Part:
    """A part of a pass whose backward pass keeps its arguments alone and computes the rest again.

    Its arguments are a constant, a nest of weights, an array, and arrays that have no gradient.

    >>> from keras import ops
    >>> float(again(lambda _, weights, x: x * weights["w"])(None, {"w": ops.array(3.0)}, ops.array(2.0)))
    6.0
    """
    if keras.backend.backend() == "torch":
        return _again_on_torch(part)
    remat = _again_on_jax if keras.backend.backend() == "jax" else keras.remat

    def run(constant: Any, weights: Any, x: Array, *others: Array) -> Array:
        def block(x: Array, *arrays: Array) -> Array:
            return part(constant, keras.tree.pack_sequence_as(weights, arrays), x, *others)

        # as arguments: TensorFlow gives no gradient to what a closure holds
        return remat(block)(x, *(ops.convert_to_tensor(each) for each in keras.tree.flatten(weights)))

    return run


@cache
def _again_on_torch(part: Part) -> Part:
    """Both passes as compiled parts of their own: there is more to calling and to storing than to the sums."""
    import torch

    def slopes(known: Any, flat: Any, upstream: Array) -> list[Array]:
        constant, spec, is_wanted = known
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_(is_one) for each, is_one in zip(flat, is_wanted, strict=True)]
            result = part(constant, *optree.tree_unflatten(spec, leaves))
            return list(torch.autograd.grad(result, [each for each in leaves if each.requires_grad], upstream))

    folder = cache_folder() / "torch"
    once, back = compile_part(part, folder), compile_part(slopes, folder)

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, constant: Any, spec: Any, *flat: Array) -> Array:
            context.save_for_backward(*flat)
            context.told = constant, spec
            return once(constant, *optree.tree_unflatten(spec, flat))

        @staticmethod
        def backward(context: Any, upstream: Array) -> tuple[Array | None, ...]:
            is_wanted = context.needs_input_grad[2:]
            found = iter(back((*context.told, is_wanted), list(context.saved_tensors), upstream.contiguous()))
            return (None, None, *(next(found) if is_one else None for is_one in is_wanted))

    def run(constant: Any, *arguments: Any) -> Array:
        tree: Any = arguments
        flat, spec = optree.tree_flatten(tree)
        return Again.apply(constant, spec, *map(ops.convert_to_tensor, flat))  # type: ignore[no-untyped-call]

    return run


def _again_on_jax(block: Callable[..., Array]) -> Callable[..., Array]:
    """A function of arrays that keeps them alone.

    XLA's optimizer for CPUs sees through `jax.checkpoint`: it finds both computations alike and keeps the first one's
    results. So the second has an input that waits for the gradient: the first argument and zero times one number of it.
    Weights in another precision than float32 wait as well, the first time for the first argument: their copies would
    all be made before anything else, as they need nothing else.
    """
    import jax

    def once(x: Array, *others: Array) -> Array:
        return block(x, *(_waiting(each, x) for each in others))

    def forward(*arguments: Array) -> tuple[Array, tuple[Array, ...]]:
        return once(*arguments), arguments

    def backward(arguments: tuple[Array, ...], slope: Array) -> tuple[Array, ...]:
        x, *others = arguments
        waiting = x + (0.0 * slope.reshape(-1)[0]).astype(x.dtype)
        return jax.vjp(block, waiting, *(_waiting(each, slope) for each in others))[1](slope)  # type: ignore[no-any-return]

    wrapped = jax.custom_vjp(once)
    wrapped.defvjp(forward, backward)
    return wrapped


def _waiting(weight: Array, what: Array) -> Array:
    """A weight that is there only when something else is; one in float32 is not copied and need not wait."""
    return weight if weight.dtype == "float32" else weight + (0.0 * what.reshape(-1)[0]).astype(weight.dtype)


def compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step compiled for each set of shapes; the memory of its first argument, a dictionary, may become its result's.

    PyTorch runs it as it is.

    >>> from keras import ops
    >>> float(compiled(lambda state, y: state["x"] + y)({"x": ops.array(1.0)}, ops.array(2.0)))
    3.0
    """
    if keras.backend.backend() == "torch":  # a pass for replies has no gradients there
        return step

    def copied(_: None, first: Any, *others: Any) -> Any:  # TensorFlow allows no change of an argument
        return step(dict(first), *others)

    return partial(compile_pure(copied, donate=True), None)
