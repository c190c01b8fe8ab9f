# SPDX-License-Identifier: Apache-2.0
"""Gemmary: run, read and convert Gemma models. Start with `load`; a name is imported when it is first used.

>>> import gemmary
>>> gemmary.Request("The capital of France is", max_tokens=8).max_tokens
8
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemmary.api import load, load_tokenizer
    from gemmary.base.config import PRESETS, GemmaConfig
    from gemmary.base.errors import GemmaryError
    from gemmary.formats.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
    from gemmary.formats.locate import locate
    from gemmary.generate.generator import Generator
    from gemmary.generate.request import Completion, Request, Sampling, Score, Token, Usage
    from gemmary.generate.scripted import ScriptedGenerator
    from gemmary.text.chat import Message, prompt_ids
    from gemmary.text.tokenizer import Tokenizer

    __version__: str

__all__ = [  # noqa: RUF022 - in the order of sorted(), which a test can check
    "Checkpoint",
    "Completion",
    "GemmaConfig",
    "GemmaryError",
    "Generator",
    "Message",
    "PRESETS",
    "Request",
    "Sampling",
    "Score",
    "ScriptedGenerator",
    "Token",
    "Tokenizer",
    "Usage",
    "__version__",
    "load",
    "load_tokenizer",
    "locate",
    "open_checkpoint",
    "prompt_ids",
    "write_checkpoint",
]

_NAMES_IN = {
    "gemmary.api": ("load", "load_tokenizer"),
    "gemmary.base.config": ("PRESETS", "GemmaConfig"),
    "gemmary.base.errors": ("GemmaryError",),
    "gemmary.formats.checkpoint": ("Checkpoint", "open_checkpoint", "write_checkpoint"),
    "gemmary.formats.locate": ("locate",),
    "gemmary.generate.generator": ("Generator",),
    "gemmary.generate.request": ("Completion", "Request", "Sampling", "Score", "Token", "Usage"),
    "gemmary.generate.scripted": ("ScriptedGenerator",),
    "gemmary.text.chat": ("Message", "prompt_ids"),
    "gemmary.text.tokenizer": ("Tokenizer",),
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("gemmary")
    home = next((module for module, names in _NAMES_IN.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'gemmary' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
