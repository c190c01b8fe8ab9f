# SPDX-License-Identifier: Apache-2.0
"""The house stands: imports go downward only, siblings never meet, and frameworks stay in their rooms."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "gemmary"
FLOORS = (  # from the ground up; the rooms of one floor are siblings
    {"base"},
    {"formats"},
    {"native"},
    {"text", "model"},
    {"generate"},
    {"train", "evaluate", "corpus"},
    {"safety"},
    {"serve"},
    {"api"},
    {"tune"},
    {"cli"},
    {"__init__", "__main__"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FRAMEWORKS = {"keras", "jax", "jaxlib", "torch", "tensorflow"}
FRAMEWORK_ROOMS = ("model/", "train/", "generate/keras_engine.py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module a file imports, at any depth: inside functions and for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """The room of a dotted name; what stands in none of them, such as gemmary.__version__, is the roof's.

    A room that has no floor yet is a KeyError: give it one above.
    """
    second = module.split(".")[1] if "." in module else "__init__"
    is_room = (PACKAGE / second).is_dir() or (PACKAGE / f"{second}.py").is_file()
    return second if is_room else "__init__"


def violations(path: Path, source: str) -> list[str]:
    """What one file, at its path inside the package, imports and may not."""
    room, wrong = path.parts[0].removesuffix(".py"), []
    for module in imported(ast.parse(source)):
        top = module.split(".")[0]
        if top in FRAMEWORKS and not path.as_posix().startswith(FRAMEWORK_ROOMS):
            wrong.append(f"{path} imports {module}: frameworks belong in {', '.join(FRAMEWORK_ROOMS)}")
        if top == "gemmary" and room_of(module) != room and FLOOR_OF[room_of(module)] >= FLOOR_OF[room]:
            wrong.append(f"{path} imports {module}, which is not below {room}")
    return wrong


def test_imports_go_downward_and_frameworks_stay_in_their_rooms() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    found = [line for file in files for line in violations(file.relative_to(PACKAGE), file.read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_an_upward_a_sideways_and_a_framework_import_are_found() -> None:
    cases = {
        "base/config.py": "from gemmary.formats.tensors import TABLE",
        "text/chat.py": "def f():\n    import gemmary.model.gemma",
        "native/pieces.py": "from gemmary.text.tokenizer import Tokenizer",
        "generate/sampling.py": "if True:\n    from torch import nn",
        "cli/main.py": "from gemmary import load",
    }
    for path, source in cases.items():
        assert len(violations(Path(path), source)) == 1, path
    assert violations(Path("generate/keras_engine.py"), "import keras\nfrom gemmary.model import gemma") == []


def test_importing_gemmary_loads_no_framework() -> None:
    code = "import json, sys, gemmary; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy = FRAMEWORKS | {"transformers", "tokenizers", "h5py", "typer"}
    assert heavy.isdisjoint(json.loads(output))
