# SPDX-License-Identifier: Apache-2.0
"""A pure function, compiled by the backend once for each set of shapes; what is compiled is kept on disk.

JAX          jit, of a whole pass
TensorFlow   a graph of a whole pass, made anew by every process
PyTorch      a pass as it is, but for parts that run for every token: these as a trace, the operators below Keras called
             one by one, or, on a CPU, as a library of what PyTorch makes of the trace in C++
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optree

from gemmary.base.errors import FileError
from gemmary.formats.storage import written_whole

Pure = Callable[..., Any]

_log = logging.getLogger(__name__)

# for PyTorch's compiler, of the parts of a token: what a product reads is computed before it, not inside its loop, once
# again for each column; a whole chunk bears it, a training step would take 4% longer
FOR_ROWS = {"realize_opcount_threshold": 2}
_XLA_SETTINGS = {"xla_cpu_prefer_vector_width": 512}  # 256 unless told; where there are no such vectors, what there is


def compile_pure(function: Pure, *, donate: bool = False) -> Pure:
    """The function, compiled; its first argument is a constant, the others are arrays, of NumPy too, or nests.

    Nests hold arrays of the backend alone. With `donate` the second argument's memory is taken for the result. On JAX
    products of float32 are float32 on every device, where its default on a GPU or TPU is less.

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

    JAX and TensorFlow compile it with the pass. PyTorch traces it when it meets new shapes, which takes a fraction of a
    second and saves Keras's 20 us an operator; with a folder for libraries it compiles one, or takes it from there.
    That takes 10 s or so, which is said before; `settings` are for PyTorch's compiler.

    >>> from keras import ops
    >>> float(compile_part(lambda power, x: x**power)(2, ops.array(3.0)))
    9.0
    """
    return _Part(function, folder, dict(settings or {})) if keras.backend.backend() == "torch" else function


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
            return self._function(constant, *map(_tensor, arguments))


class _Part:
    """PyTorch's: a trace or a library for each constant and set of layouts."""

    def __init__(self, function: Pure, folder: Path | None, settings: dict[str, Any]) -> None:
        self._function, self._folder, self._settings = function, folder, settings
        self._made: list[tuple[object, Any, Pure, Any]] = []  # what for, a check of layouts, what runs, its results

    def __call__(self, constant: object, *arguments: Any) -> Any:
        tree: Any = arguments
        flat, spec = optree.tree_flatten(tree)
        wanted = constant, spec
        for known, layouts, run, results in self._made:
            if known == wanted and layouts.check(*flat):
                return optree.tree_unflatten(results, run(flat))
        run, results = self._make(constant, flat, spec)
        self._made.append((wanted, _layouts(flat), run, results))
        return optree.tree_unflatten(results, run(flat))

    def _make(self, constant: object, flat: list[Any], spec: Any) -> tuple[Pure, Any]:
        from torch.fx.experimental.proxy_tensor import make_fx

        flat, results = [each.detach() for each in flat], list[Any]()

        def flatly(*arrays: Any) -> list[Any]:
            found, structure = optree.tree_flatten(self._function(constant, *optree.tree_unflatten(spec, arrays)))
            results.append(structure)
            return found

        trace = _shortened(make_fx(flatly)(*flat))
        library = self._folder and _library(trace, flat, self._folder, self._settings)
        if library is None:
            self._folder = None  # nor for other shapes
        return library or (lambda arrays: trace(*arrays)), results[0]


def _layouts(flat: Sequence[Any]) -> Any:
    """What checks, in C++, that tensors have the shapes, strides, precisions and devices of these."""
    from torch._C._dynamo.guards import TensorGuards

    sizes: Any = [list(each.shape) for each in flat]
    strides: Any = [list(each.stride()) for each in flat]
    return TensorGuards(*flat, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)


def _layout(array: Any) -> object:
    return array.shape, array.stride(), array.dtype, array.device


def _library(trace: Any, flat: Sequence[Any], folder: Path, settings: dict[str, Any]) -> Pure | None:
    """What a trace computes, in C++ compiled for this processor; None on a GPU, or where it cannot be compiled.

    A library is for the layouts and the number of threads that it was compiled with. Its name says all that it is for.
    """
    import torch

    if any(each.device.type != "cpu" for each in flat):
        return None
    constants = {name: each.tolist() for name, each in trace.state_dict().items()}
    machine = (torch.__version__, torch.get_num_threads(), torch.cpu.get_capabilities(), settings)
    told = repr((trace.code, constants, list(map(_layout, flat)), machine))
    path = folder / f"{hashlib.sha256(told.encode()).hexdigest()}.pt2"
    return _loaded(path) or (_loaded(path) if _compile(trace, flat, path, settings) else None)


def _loaded(path: Path) -> Pure | None:
    """The library in a file, None where there is none or it is damaged."""
    import torch

    if not path.exists():
        return None
    try:
        loader = torch._inductor.aoti_load_package(path, run_single_threaded=True).loader
    except RuntimeError:
        return None
    return lambda arrays: loader.boxed_run(list(arrays))


def _compile(trace: Any, flat: Sequence[Any], path: Path, settings: dict[str, Any]) -> bool:
    """Whether a trace could be compiled into a file, for which PyTorch wants a C++ compiler, and the file a place."""
    import torch
    from torch._inductor.exc import InductorError

    _log.warning("PyTorch compiles a part of the model for this processor, once: 10 s or so")
    try:
        with warnings.catch_warnings(), written_whole(path) as file:
            warnings.simplefilter("ignore")  # of PyTorch about itself
            exported = torch.export.export(trace, tuple(flat))
            configs = {**settings}  # a copy: it adds to them
            torch._inductor.aoti_compile_and_package(exported, package_path=file, inductor_configs=configs)
    except (InductorError, FileError) as error:
        why = str(error).strip().splitlines()[0]
        warnings.warn(f"PyTorch takes half as long again: expected to compile C++, but {why}", stacklevel=2)
        return False
    return True


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


def _tensor(argument: Any) -> Any:
    """An array of NumPy as a tensor on the device that Keras runs on; all else as it is."""
    import torch

    if isinstance(argument, np.ndarray):
        return keras.ops.convert_to_tensor(torch.from_numpy(argument))
    return argument
