# SPDX-License-Identifier: Apache-2.0
"""The public face: every public name has a docstring with an example, and every parameter has a type.

Public is what stands in a module of ours without a leading underscore, and the public methods and properties of its
classes. A docstring shows a `>>>` example; the examples themselves run as doctests. Three things need a docstring but
no example of their own: Protocols and what implements or overrides a documented method (the first docstring speaks for
all), and methods whose class shows them by name in its own example.
"""

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import gemmary

PACKAGE = Path(__file__).parents[1] / "src" / "gemmary"


@cache
def modules() -> list[ModuleType]:
    """Every module of the package but __main__, which runs when imported; the C library beside them is none."""
    found = (path.relative_to(PACKAGE.parent).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py")))
    names = (".".join(parts).removesuffix(".__init__") for parts in found if parts[-1] != "__main__")
    return [importlib.import_module(name) for name in names]


def public_names(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The functions and classes that a module defines for others."""
    for name, value in vars(module).items():
        is_ours = inspect.isfunction(value) or inspect.isclass(value)
        if is_ours and value.__module__ == module.__name__ and not name.startswith("_"):
            yield name, value


def is_protocol(kind: object) -> bool:
    return inspect.isclass(kind) and getattr(kind, "_is_protocol", False)


def public_members(kind: type) -> dict[str, object]:
    """The methods and properties that a class itself defines for others, as functions."""
    plain = {
        name: getattr(value, "fget", None) or getattr(value, "__func__", value) for name, value in vars(kind).items()
    }
    return {name: inspect.unwrap(f) for name, f in plain.items() if inspect.isfunction(f) and not name.startswith("_")}


@cache
def protocols() -> list[set[str]]:
    kinds = (kind for module in modules() for _, kind in public_names(module) if is_protocol(kind))
    return [set(public_members(kind)) for kind in kinds]


def documented_elsewhere(kind: type, name: str) -> bool:
    """Whether a base class has the method, or the class implements a Protocol that has it."""
    inherited = any(name in vars(base) for base in kind.__mro__[1:])
    return inherited or any(name in names and all(hasattr(kind, other) for other in names) for names in protocols())


def undocumented() -> Iterator[str]:
    for module in modules():
        for name, value in public_names(module):
            text = inspect.getdoc(value) or ""
            if not (vars(value).get("__doc__") if inspect.isclass(value) else text):
                yield f"{module.__name__}.{name} has no docstring"
            elif ">>>" not in text and not is_protocol(value):
                yield f"{module.__name__}.{name} shows no example"
            if inspect.isclass(value):
                yield from undocumented_members(value, text)


def undocumented_members(kind: type, class_text: str) -> Iterator[str]:
    for name, function in public_members(kind).items():
        where, text = f"{kind.__module__}.{kind.__name__}.{name}", function.__doc__ or ""
        if documented_elsewhere(kind, name):
            continue
        if not text:
            yield f"{where} has no docstring"
        elif ">>>" not in text and f".{name}" not in class_text and not is_protocol(kind):
            yield f"{where} shows no example"


def test_all_is_sorted_and_importable() -> None:
    assert list(gemmary.__all__) == sorted(gemmary.__all__)
    for name in gemmary.__all__:
        assert getattr(gemmary, name) is not None


def test_every_module_says_what_it_is() -> None:
    found = [module.__name__ for module in modules() if not module.__doc__]
    assert not found, "\n".join(found)


def test_every_public_name_has_a_docstring_with_an_example() -> None:
    found = list(undocumented())
    assert not found, "\n".join(found)


def test_every_parameter_and_result_is_annotated() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            own = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            bare = [a.arg for a in own if a is not None and a.annotation is None and a.arg not in ("self", "cls")]
            if bare or node.returns is None:
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}({', '.join(bare)})")
    assert not found, "\n".join(found)


def test_every_extra_an_error_recommends_exists() -> None:
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    source = "".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    named = set(re.findall(r"gemmary\[(\w+)\]'", source))
    named |= set(re.findall(r'MissingExtraError\.of\([^)]*"(\w+)"\s*,?\s*\)', source))
    assert {"demo", "jax"} <= named <= project["optional-dependencies"].keys()
