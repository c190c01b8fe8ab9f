# SPDX-License-Identifier: Apache-2.0
"""A pure function, compiled by the backend once for each set of shapes; what is compiled is kept on disk.

JAX          jit, of a whole pass
TensorFlow   a graph of a whole pass, made anew by every process
PyTorch      a pass as it is, but for parts that run again and again: these as `torch_parts`
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

Pure = Callable[..., Any]

# for PyTorch's compiler, of the parts of a token: what a product reads is computed before it, not inside its loop, once
# again for each column; a whole chunk bears it, a training step would take 4% longer
FOR_ROWS = {"realize_opcount_threshold": 2}
_XLA_SETTINGS = {"xla_cpu_prefer_vector_width": 512}  # 256 unless told; where there are no such vectors, what there is


def compile_pure(function: Pure, *, donate: bool = False) -> Pure:
    """The function, compiled; its first argument is a constant, the others are arrays of the backend or nests of them.

    With `donate` the second argument's memory is taken for the result. On JAX products of float32 are float32 on every
    device, where its default on a GPU or TPU is less.

    >>> from keras import ops
    >>> float(compile_pure(lambda power, x: x**power)(2, ops.array(3.0)))
    9.0
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        settings = _XLA_SETTINGS if jax.default_backend() == "cpu" else None
        donated = 1 if donate else ()
        run = jax.jit(function, static_argnums=0, donate_argnums=donated, compiler_options=settings)

        def exact(*arguments: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return run(*arguments)

        return exact
    if backend == "tensorflow":
        import tensorflow

        return tensorflow.function(function, autograph=False)  # type: ignore[no-any-return]
    return _Direct(function)


def compile_part(function: Pure, folder: Path | None = None, settings: Mapping[str, Any] | None = None) -> Pure:
    """A part of a pass that runs again and again and writes nothing in place; arguments as for `compile_pure`.

    JAX and TensorFlow compile it with the pass. PyTorch traces it when it meets new shapes, which saves Keras's 20 us
    an operator; with a folder for libraries it compiles one, or takes it from there. That may take half a minute, which
    is said before; `settings` are for PyTorch's compiler.

    >>> from keras import ops
    >>> float(compile_part(lambda power, x: x**power)(2, ops.array(3.0)))
    9.0
    """
    if keras.backend.backend() != "torch":
        return function
    from gemmary.model.torch_parts import Part

    return Part(function, folder, dict(settings or {}))


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
            return self._function(constant, *arguments)
