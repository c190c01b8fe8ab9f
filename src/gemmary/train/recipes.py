# SPDX-License-Identifier: Apache-2.0
"""Recipes: everything a training is made of, as one frozen value, from a TOML file and key=value words."""

import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from gemmary.base.errors import FileError, InputError
from gemmary.formats.adapter import resolve_targets
from gemmary.train.optimizer import Adafactor, AdamW, Optimizer, Schedule
from gemmary.train.parameters import Full, LoRA, Parameters

_WRITTEN = ("output", "save_every", "keep", "curves")  # keys that change nothing of what is learned


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Supervised tuning of one model on some data.

    >>> recipe = Recipe(data=("chat.jsonl",), output="tuned", rank=8)
    >>> recipe.learn, recipe.parameters.rank, recipe.batch_tokens
    ('lora', 8, 2048)
    """

    data: tuple[str, ...]  # files, folders or hf://datasets/owner/name
    output: str  # the folder that everything is written to
    model: str | None = None  # a path or a name; the embedded default otherwise
    # what is learned
    learn: Literal["lora", "dora", "full"] = "lora"
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("all",)
    bits: Literal[4, 8] | None = None  # of the base's matrices (QLoRA); its precision otherwise
    # how
    epochs: float = 1.0
    batch_size: int = 4  # rows
    accumulate: int = 1  # batches of one step
    length: int = 512  # tokens of a row
    packed: bool = True
    cut: bool = False  # shorten rows that are too long instead of leaving them out
    held_back: int = 0  # examples that are judged and never learned
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    rate: float = 2e-4
    warmup: float = 0.05  # a share of the steps
    final_rate: float = 0.1  # a share of the rate
    weight_decay: float = 0.0
    max_norm: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations
    base_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of what is not learned
    remat: bool = True
    seed: int = 0
    # what is written
    save_every: int = 100  # steps
    keep: int = 2  # checkpoints, beside the best
    curves: bool = False  # events for TensorBoard and the loss as a PNG (the extra `curves`)

    def __post_init__(self) -> None:
        for name in ("rank", "batch_size", "accumulate", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} >= 1, got {getattr(self, name)}: use 1 or more")
        for name in ("epochs", "rate", "alpha", "max_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"expected {name} > 0, got {getattr(self, name)}: use a number above 0")
        if not self.data:
            raise InputError("expected data, got none: name a file, a folder or hf://datasets/owner/name")
        if self.bits and self.learn == "full":
            raise InputError(f"expected no bits when everything is learned, got {self.bits}: use learn = 'lora'")

    @property
    def parameters(self) -> Parameters:
        """What is learned, as the trainer takes it."""
        if self.learn == "full":
            return Full()
        targets, is_dora = resolve_targets(self.targets), self.learn == "dora"
        return LoRA(rank=self.rank, alpha=self.alpha, targets=targets, is_dora=is_dora, bits=self.bits)

    @property
    def optimizer_value(self) -> Optimizer:
        """The optimizer, as the trainer takes it.

        >>> Recipe(data=("a",), output="b", optimizer="adafactor").optimizer_value.weight_decay
        0.0
        """
        kind = AdamW if self.optimizer == "adamw" else Adafactor
        return kind(weight_decay=self.weight_decay)

    @property
    def batch_tokens(self) -> int:
        """Places for tokens in one step."""
        return self.batch_size * self.accumulate * self.length

    def schedule(self, steps: int) -> Schedule:
        """The learning rates of so many steps.

        >>> Recipe(data=("a",), output="b", rate=1.0, warmup=0.1).schedule(100).rate(9)
        1.0
        """
        return Schedule(peak=self.rate, steps=steps, warmup=round(self.warmup * steps), final=self.final_rate)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the training that goes on from it.

        >>> "keep" in Recipe(data=("a",), output="b").saved()
        False
        """
        return {key: value for key, value in asdict(self).items() if key not in _WRITTEN}


def read_recipe(path: Path, words: Sequence[str] = ()) -> Recipe:
    """The recipe of a TOML file, changed by words such as rank=8 or data=a.jsonl,b.jsonl.

    Raises FileError for a file that is no TOML, InputError for keys and values that a recipe does not have.

    >>> read_recipe(Path("no-such.toml"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a recipe in TOML, got no-such.toml: No such file or directory
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FileError(f"expected a recipe in TOML, got {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"expected a recipe in TOML, got {path}: {error}") from None
    return recipe_of({**values, **dict(_word(word) for word in words)})


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """A recipe from its values by name; texts are read as what the field holds.

    >>> recipe_of({"data": "a.jsonl", "output": "b", "rank": "8"}).rank
    8
    >>> recipe_of({"data": "a.jsonl", "output": "b", "rnak": 8})
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected a key of a recipe, got 'rnak': did you mean rank?
    """
    kinds = {field.name: field.type for field in fields(Recipe)}
    for key in values:
        if key not in kinds:
            close = get_close_matches(key, kinds, n=1)
            hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(kinds)}"
            raise InputError(f"expected a key of a recipe, got {key!r}: {hint}")
    missing = next((key for key in ("data", "output") if key not in values), None)
    if missing:
        raise InputError(f'expected {missing} in the recipe, got none: write {missing} = "...", or {missing}=...')
    return Recipe(**{key: _value(key, value, kinds[key]) for key, value in values.items()})


def _word(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise InputError(f"expected key=value, got {word!r}: write for example rank=8")
    return key, value


def _value(key: str, value: Any, kind: Any) -> Any:
    """A value as the field's type; a text is what was written on the command line."""
    if get_origin(kind) in (Union, types.UnionType):
        if value is None or value == "none":
            return None
        kind = next(each for each in get_args(kind) if each is not type(None))
    if get_origin(kind) is tuple:
        return tuple(value.split(",")) if isinstance(value, str) else tuple(map(str, value))
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    plain = type(choices[0]) if choices else kind
    try:
        found = _read(value, plain)
    except ValueError:
        found = None
    if found is None or (choices and found not in choices):
        expected = ", ".join(map(str, choices)) if choices else f"a {_NAMES[plain]}"
        raise InputError(f"expected {key} to be {'one of ' if choices else ''}{expected}, got {value!r}: change it")
    return found


def _read(value: Any, kind: type) -> Any:
    if kind is bool:
        return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).lower())
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        return None
    return kind(value) if isinstance(value, str | int | float) and (kind is not str or isinstance(value, str)) else None


_NAMES = {int: "whole number", float: "number", bool: "truth value (true or false)", str: "text"}
