# SPDX-License-Identifier: Apache-2.0
"""Adapters on disk, as PEFT reads and writes them: adapter_config.json beside adapter_model.safetensors.

    down        base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight
    up          base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight
    magnitude   base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector

An adapter that PEFT computes otherwise is refused: several ranks or scales, biases, whole modules, embeddings.
Layout: PEFT 0.21, peft/utils/save_and_load.py and peft/tuners/lora/.
"""

import re
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import CheckpointError, FileError, InputError
from gemmary.formats.adapter import MODULES, TARGETS, Adapter
from gemmary.formats.content import Entry, Fields
from gemmary.formats.safetensors import PREFIXES, read_entries, read_metadata, write_entries
from gemmary.formats.storage import read_json, shown, write_json, written_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PARTS = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
_BASE = "gemmary.base"  # the base's fingerprint in the metadata of the .safetensors file
_KEY = re.compile(
    rf"base_model\.model\.(?:{'|'.join(map(re.escape, PREFIXES))})"
    rf"layers\.([0-9]{{1,4}})\.({'|'.join(map(re.escape, MODULES.values()))})"
    rf"\.({'|'.join(map(re.escape, _PARTS.values()))})"
)
_REFUSED = (  # what PEFT then computes is not base + scale * up @ down
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")  # others change the base model too


def is_adapter(path: Path) -> bool:
    """Whether this is the folder of an adapter.

    >>> is_adapter(Path("no-such-folder"))
    False
    """
    return (path / CONFIG).is_file()


def read_adapter(path: Path) -> Adapter:
    """Read the folder of a LoRA or DoRA adapter, ours or PEFT's.

    Raises FileError for what is missing, damaged or of a kind that cannot be merged, CheckpointError for tensors that
    do not fit together.

    >>> read_adapter(Path("no-such-folder"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected adapter_config.json in no-such-folder, got none: give the folder of a ...
    """
    if not is_adapter(path):
        raise FileError(f"expected {CONFIG} in {path}, got none: give the folder of a LoRA adapter")
    rank, alpha, is_dora = _settings(read_json(path / CONFIG))
    tensors: dict[str, NDArray[np.float32]] = {}
    for key, entry in read_entries(path / WEIGHTS).items():
        name = _name(key)
        if name in tensors:
            raise CheckpointError(f"expected every tensor once, got {shown(key)} twice: save the adapter again")
        tensors[name] = entry.read().astype(np.float32)
    return Adapter(
        rank=rank,
        alpha=alpha,
        targets=tuple(target for target in TARGETS if any(f".{target}." in name for name in tensors)),
        is_dora=is_dora,
        base=read_metadata(path / WEIGHTS).get(_BASE, ""),
        tensors=tensors,
    )


def _name(key: str) -> str:
    """Our name of a tensor of PEFT's."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise CheckpointError(
            f"expected adapters of {', '.join(MODULES.values())} alone, got {shown(key)}: "
            "merge this one with PEFT and give the merged model"
        )
    target = next(target for target, module in MODULES.items() if module == match[2])
    part = next(part for part, name in _PARTS.items() if name == match[3])
    return f"layers.{int(match[1])}.{target}.{part}"


def _settings(values: Mapping[str, Any]) -> tuple[int, float, bool]:
    """The rank, alpha, and whether it is DoRA, from adapter_config.json."""
    fields = Fields(values, CONFIG)
    if values.get("peft_type") != "LORA":
        raise FileError(f"expected the peft_type LORA in {CONFIG}, got {shown(values.get('peft_type'))}: give a LoRA")
    usual = {"bias": ("none", None), "init_lora_weights": _BEGINNINGS}
    wrong = [key for key in _REFUSED if values.get(key)]
    wrong += [key for key, known in usual.items() if values.get(key) not in known]
    if wrong:
        raise FileError(
            f"expected an adapter of plain matrices of one rank and scale, got {wrong[0]}={shown(values[wrong[0]])}: "
            "merge it with PEFT and give the merged model"
        )
    rank, alpha = fields.size("r"), fields.real("lora_alpha")
    return rank, alpha * sqrt(rank) if fields.flag("use_rslora", False) else alpha, fields.flag("use_dora", False)


def write_adapter(adapter: Adapter, path: Path, *, dtype: str = "float32") -> None:
    """Write the folder of an adapter, whole or not at all, that PEFT loads; `dtype` is float32 or bfloat16.

    Raises FileError when there are files at `path`.

    >>> parts = {"layers.0.mlp.up.down": np.ones((1, 4)), "layers.0.mlp.up.up": np.ones((8, 1))}
    >>> one = Adapter(rank=1, alpha=1.0, targets=("mlp.up",), is_dora=False, base="", tensors=parts)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_adapter(one, Path(folder, "new"))
    ...     read_adapter(Path(folder, "new")).targets
    ('mlp.up',)
    """
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"expected float32 or bfloat16 for an adapter, got {dtype!r}: use one of them")
    entries = {}
    for name, array in adapter.tensors.items():
        weight, _, part = name.rpartition(".")
        _, layer, target = weight.split(".", 2)
        key = f"base_model.model.{PREFIXES[0]}layers.{layer}.{MODULES[target]}.{_PARTS[part]}"
        entries[key] = Entry(shape=array.shape, read=lambda array=array: array)  # type: ignore[misc]
    metadata = {_BASE: adapter.base} if adapter.base else {}
    with written_folder(path) as folder:
        write_entries(folder / WEIGHTS, entries, np.dtype(dtype), metadata)
        write_json(folder / CONFIG, _config(adapter))


def _config(adapter: Adapter) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha,
        "target_modules": [MODULES[target].split(".")[-1] for target in adapter.targets],
        "use_dora": adapter.is_dora,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
