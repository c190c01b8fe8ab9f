# SPDX-License-Identifier: Apache-2.0
"""A pure function, compiled by the backend once for each set of shapes.

JAX          jit; what it compiles is kept on disk, so a second run compiles nothing
TensorFlow   a graph
PyTorch      traced to the operators below Keras, which are then called one by one: no compiler, no Keras between
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

Pure = Callable[..., Any]


def compile_pure(function: Pure, *, donate: bool = False) -> Pure:
    """The function, compiled; its first argument is a constant, the others are arrays or nests of them.

    With `donate` the second argument's memory is taken for the result: a function that PyTorch runs as it is, because
    there it writes in place.

    >>> from keras import ops
    >>> float(compile_pure(lambda power, x: x**power)(2, ops.array(3.0)))
    9.0
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function, static_argnums=0, donate_argnums=1 if donate else ())
    if backend == "tensorflow":
        import tensorflow

        return tensorflow.function(function, autograph=False)  # type: ignore[no-any-return]
    return function if donate else _Traced(function)


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


class _Traced:
    """PyTorch's: the operators that Keras calls, recorded for each constant and set of shapes that comes twice."""

    def __init__(self, function: Pure) -> None:
        self._function = function
        self._met: set[object] = set()
        self._traces: dict[object, Pure] = {}

    def __call__(self, constant: object, *arguments: Any) -> Any:
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        flat, spec = torch.utils._pytree.tree_flatten(arguments)
        key = (constant, spec, tuple((each.shape, each.dtype) for each in flat))
        with torch.inference_mode():
            if key not in self._met:
                self._met.add(key)
                return self._function(constant, *arguments)
            if key not in self._traces:
                self._traces[key] = make_fx(lambda *inner: self._function(constant, *inner))(*arguments)
            return self._traces[key](*arguments)
