# SPDX-License-Identifier: Apache-2.0
"""Gemmary's C library through ctypes: found, checked, and its functions declared as in gemmary.h and tokens.h."""

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gemmary.base.errors import GemmaryError

ABI = 5


@cache
def library() -> ctypes.CDLL:
    """The shared library, built when the package was installed.

    Raises GemmaryError when it is not there.

    >>> library().gemmary_kernels(999) is None
    True
    """
    names = {"darwin": "libgemmary.dylib", "win32": "libgemmary.dll"}
    path = _find(names.get(sys.platform, "libgemmary.so"))
    if path is None:
        raise GemmaryError(
            "expected Gemmary's C library beside gemmary/native, found none: install a C compiler and the package "
            "again (pip install --force-reinstall gemmary)"
        )
    loaded = ctypes.CDLL(str(path))
    if not hasattr(loaded, "gemmary_abi") or loaded.gemmary_abi() != ABI:
        raise GemmaryError(f"expected the library of this version, got another at {path}: install the package again")
    pointer, i32, i64, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t
    declarations = {
        "open": (i32, (pointer, pointer)),
        "declare": (i32, (pointer, i32, i32, i32, i64, i64)),
        "fill": (i32, (pointer, i32, i32, i64, i64, pointer, size)),
        "forward": (i32, (pointer, pointer, i32, pointer, pointer)),
        "candidates": (i32, (pointer, pointer, i32, pointer, pointer)),
        "score": (i32, (pointer, pointer, i32, pointer, pointer, pointer, pointer)),
        "embed": (i32, (pointer, pointer, i32, pointer, pointer)),
        "close": (None, (pointer,)),
        "weight_bytes": (size, (pointer,)),
        "screened_bytes": (size, (pointer,)),
        "cache_bytes": (size, (pointer,)),
        "kernels_used": (ctypes.c_char_p, (pointer,)),
        "kernels": (ctypes.c_char_p, (i32,)),
        "vocabulary_open": (i32, (pointer, pointer)),
        "vocabulary_close": (None, (pointer,)),
        "encoder_open": (i32, (pointer, pointer)),
        "encoder_close": (None, (pointer,)),
        "encode": (i32, (pointer, pointer, size, pointer, size, pointer)),
    }
    for name, (result, arguments) in declarations.items():
        function = getattr(loaded, f"gemmary_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


def address(array: NDArray[Any]) -> int:
    """Where the numbers of an array begin.

    >>> import numpy as np
    >>> address(np.zeros(3, np.int32)) % 4
    0
    """
    return int(array.ctypes.data)


def _find(name: str) -> Path | None:
    """The library beside this file, or where an editable install has put it; in a folder, so as to be no module."""
    folders = [Path(__file__).parents[2], *map(Path, sys.path)]
    paths = (folder / "gemmary" / "native" / "lib" / name for folder in folders)
    return next((path for path in paths if path.is_file()), None)
