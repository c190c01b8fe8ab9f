# SPDX-License-Identifier: Apache-2.0
"""A pure function, compiled by the backend once for each set of shapes.

JAX          jit; what it compiles is kept on disk, so a second run compiles nothing
TensorFlow   a graph
PyTorch      as it is; what is called for every token is traced to the operators below Keras, which are then called one
             by one: no compiler, no Keras between
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

Pure = Callable[..., Any]


def compile_pure(function: Pure, *, donate: bool = False, often: bool = False) -> Pure:
    """The function, compiled; its first argument is a constant, the others are arrays, of NumPy too, or nests of them.

    With `donate` the second argument's memory is taken for the result. `often` says that it runs for every token, and
    writes nothing in place: PyTorch's trace takes seconds, and saves Keras's 20 ms or so a call. On JAX products of
    float32 are float32 on every device, where its default on a GPU or TPU is less.

    >>> from keras import ops
    >>> float(compile_pure(lambda power, x: x**power)(2, ops.array(3.0)))
    9.0
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        run = jax.jit(function, static_argnums=0, donate_argnums=1 if donate else ())

        def exact(*arguments: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return run(*arguments)

        return exact
    if backend == "tensorflow":
        import tensorflow

        return tensorflow.function(function, autograph=False)  # type: ignore[no-any-return]
    return _Traced(function) if often else _Direct(function)


def keep_compiled(folder: Path) -> None:
    """Keep what JAX compiles in a folder, unless the user has chosen one; other backends compile nothing worth it.

    >>> from gemmary.formats.locate import cache_folder
    >>> keep_compiled(cache_folder() / "jax")
    """
    if keras.backend.backend() != "jax":
        return
    import jax

    settings: Any = jax.config  # without types
    if settings.jax_compilation_cache_dir is None:
        settings.update("jax_compilation_cache_dir", str(folder))
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        settings.update("jax_persistent_cache_min_entry_size_bytes", -1)


class _Direct:
    """PyTorch's, as it is."""

    def __init__(self, function: Pure) -> None:
        self._function = function

    def __call__(self, constant: object, *arguments: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self._function(constant, *_tensors(arguments))


class _Traced:
    """PyTorch's: the operators that Keras calls, recorded for each constant and set of shapes that comes twice."""

    def __init__(self, function: Pure) -> None:
        self._function = _Direct(function)
        self._met: set[object] = set()
        self._traces: dict[object, Pure] = {}

    def __call__(self, constant: object, *arguments: Any) -> Any:
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        arguments = _tensors(arguments)
        flat, spec = torch.utils._pytree.tree_flatten(arguments)
        key = (constant, spec, tuple((each.shape, each.dtype) for each in flat))
        if key not in self._met:
            self._met.add(key)
            return self._function(constant, *arguments)
        with torch.inference_mode():
            if key not in self._traces:
                self._traces[key] = _shortened(make_fx(lambda *inner: self._function(constant, *inner))(*arguments))
            return self._traces[key](*arguments)


def _shortened(trace: Any) -> Any:
    """A trace without the operators that change nothing, half of all: calling one takes longer than a small product.

    Nothing in a trace writes in place, so a tensor may stand for its copy.
    """
    import torch

    aten = torch.ops.aten
    idle = (aten.alias, aten.expand, aten.permute, aten.slice, aten.transpose, aten.view, aten._to_copy)

    def layout(node: Any) -> Any:
        value = node.meta["val"]
        steps = [step for size, step in zip(value.shape, value.stride(), strict=True) if size > 1]
        return value.shape, steps, value.dtype

    for node in trace.graph.nodes:
        if getattr(node.target, "overloadpacket", None) not in idle:
            continue
        source = node.args[0]
        if layout(source) == layout(node):
            node.replace_all_uses_with(source)
        elif node.target == source.target == aten.view.default:
            node.replace_input_with(source, source.args[0])
    trace.graph.eliminate_dead_code()
    trace.recompile()
    return trace


def _tensors(arguments: Any) -> Any:
    """Arrays of NumPy as tensors on the device that Keras runs on; all else as it is."""
    import torch

    def tensor(each: Any) -> Any:
        return keras.ops.convert_to_tensor(torch.from_numpy(each)) if isinstance(each, np.ndarray) else each

    return torch.utils._pytree.tree_map(tensor, arguments)
