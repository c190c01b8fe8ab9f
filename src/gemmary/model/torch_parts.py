# SPDX-License-Identifier: Apache-2.0
"""A part of a pass on PyTorch: a pure function of tensors as a trace, or, on a CPU, as a library compiled in C++.

    called ─► layouts known? ─► what was made for them
                └► no ─► record ─► library of that name ─► loaded
                                     └► none yet ─► trace ─► compiled, kept, loaded
                                                      └► no compiler, no place, a GPU ─► the trace itself

A trace is the operators below Keras, called one by one. A record says the same as text and takes a tenth of the time.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import optree
import torch
from torch._C._aoti import AOTIModelPackageLoader
from torch._C._dynamo.guards import TensorGuards
from torch._inductor.exc import InductorError
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from gemmary.base.errors import FileError
from gemmary.formats.storage import written_whole

Flat = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]

_log = logging.getLogger(__name__)


class Part:
    """A function of a constant and of nests of tensors; a trace or a library for each constant and set of layouts.

    Raises ValueError where a tensor is given twice: the check of layouts knows no such arguments again.

    >>> float(Part(lambda power, x: x**power, None, {})(2, torch.tensor(3.0)))
    9.0
    """

    def __init__(self, function: Callable[..., Any], folder: Path | None, settings: dict[str, Any]) -> None:
        self._function, self._folder, self._settings = function, folder, settings
        self._made: list[tuple[object, TensorGuards, Flat, Any]] = []  # what for, which layouts, what runs, its results

    def __call__(self, constant: object, *arguments: Any) -> Any:
        tree: Any = arguments
        flat, spec = optree.tree_flatten(tree)
        wanted = constant, spec
        for known, layouts, run, results in self._made:
            if known == wanted and layouts.check(*flat):
                return optree.tree_unflatten(results, run(flat))
        run, results = self._make(constant, flat, spec)
        self._made.append((wanted, _guards(flat), run, results))
        return optree.tree_unflatten(results, run(flat))

    def _make(self, constant: object, flat: list[torch.Tensor], spec: Any) -> tuple[Flat, Any]:
        flat, results = [each.detach() for each in flat], list[Any]()

        def flatly(*arrays: torch.Tensor) -> list[torch.Tensor]:
            found, structure = optree.tree_flatten(self._function(constant, *optree.tree_unflatten(spec, arrays)))
            results.append(structure)
            return found

        library = self._folder and _library(flatly, flat, self._folder, self._settings)
        if library is None:
            self._folder = None  # nor for other shapes
        run = library or _called(_trace(flatly, flat))
        return run, results[0]


class _Record(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """All that a function does to some tensors, operator by operator; of a tensor that comes from elsewhere its values.

    Functions with equal records compute the same of all tensors with those layouts.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        numbers: Any = WeakTensorKeyDictionary()  # without types
        self._numbers, self._next = numbers, count()
        self.lines: list[object] = []
        self._number(tensors)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: Any = args, kwargs or {}
        told = optree.tree_map(self._told, given, none_is_leaf=True)
        results = operator(*args, **(kwargs or {}))
        self._number(results)
        self.lines.append((str(operator), told, optree.tree_map(self._told, results, none_is_leaf=True)))
        return results

    def told(self, results: Sequence[torch.Tensor]) -> str:
        """The record of a function with these results."""
        return repr((self.lines, list(map(self._told, results))))

    def _number(self, tensors: Any) -> None:
        for each in optree.tree_leaves(tensors):
            if isinstance(each, torch.Tensor) and each not in self._numbers:
                self._numbers[each] = f"%{next(self._next)}"

    def _told(self, value: Any) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        return self._numbers.get(value) or (_layout(value), value.tolist())


def _guards(flat: Sequence[torch.Tensor]) -> TensorGuards:
    """What checks, in C++, that tensors have the shapes, strides, precisions and devices of these."""
    sizes: Any = [list(each.shape) for each in flat]
    strides: Any = [list(each.stride()) for each in flat]
    guards = TensorGuards(*flat, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    if not guards.check(*flat):
        raise ValueError("expected tensors that are given once each, got one twice: give it once")
    return guards


def _layout(tensor: torch.Tensor) -> object:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _library(
    flatly: Callable[..., list[torch.Tensor]], flat: list[torch.Tensor], folder: Path, settings: dict[str, Any]
) -> Flat | None:
    """A function in C++ compiled for this processor; None on a GPU, or where it cannot be compiled.

    A library is for the layouts and the number of threads that it was compiled with. Its name says all that it is for.
    """
    if any(each.device.type != "cpu" for each in flat):
        return None
    record = _Record(flat)
    with record:
        results = flatly(*flat)
    machine = (torch.__version__, torch.get_num_threads(), torch.cpu.get_capabilities(), settings)
    name = repr((record.told(results), list(map(_layout, flat)), machine))
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()}.pt2"
    return _loaded(path) or (_loaded(path) if _compile(flatly, flat, path, settings) else None)


def _loaded(path: Path) -> Flat | None:
    """The library in a file, None where there is none or it is damaged.

    `aoti_load_package` would try for 2 s what vectors the processor has, which the library's name says.
    """
    if not path.exists():
        return None
    try:
        loader = AOTIModelPackageLoader(str(path), "model", True, 1, -1)  # on one thread at a time, one of it, the CPU
    except RuntimeError:
        return None
    return lambda arrays: loader.boxed_run(list(arrays))


def _compile(flatly: Callable[..., Any], flat: list[torch.Tensor], path: Path, settings: dict[str, Any]) -> bool:
    """Whether a function could be compiled into a file: PyTorch wants a C++ compiler for it, and the file a place."""
    _log.warning("PyTorch compiles a part of the model for this processor, once: up to half a minute")
    try:
        with warnings.catch_warnings(), written_whole(path) as file:
            warnings.simplefilter("ignore")  # of PyTorch about itself
            exported = torch.export.export(_trace(flatly, flat), tuple(flat))
            configs = {**settings}  # a copy: it adds to them
            torch._inductor.aoti_compile_and_package(exported, package_path=file, inductor_configs=configs)
    except (InductorError, FileError) as error:
        why = str(error).strip().splitlines()[0]
        warnings.warn(f"PyTorch takes half as long again: expected to compile C++, but {why}", stacklevel=2)
        return False
    return True


def _called(trace: Callable[..., list[torch.Tensor]]) -> Flat:
    return lambda arrays: trace(*arrays)


def _trace(flatly: Callable[..., Any], flat: list[torch.Tensor]) -> Any:
    """A trace without the operators that change nothing, half of all: calling one takes longer than a small product.

    Nothing in a trace writes in place, so a tensor may stand for its copy.
    """
    aten = torch.ops.aten
    idle = (aten.alias, aten.expand, aten.permute, aten.slice, aten.transpose, aten.view, aten._to_copy)

    def layout(node: Any) -> Any:
        value = node.meta["val"]
        steps = [step for size, step in zip(value.shape, value.stride(), strict=True) if size > 1]
        return value.shape, steps, value.dtype

    trace = make_fx(flatly)(*flat)
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
