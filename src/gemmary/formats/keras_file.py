# SPDX-License-Identifier: Apache-2.0
"""KerasHub presets: config.json, the weights in .weights.h5 files, and the tokenizer's assets.

    class              features                                  says of RoPE and windows
    GemmaBackbone      Gemma 1, or with post norms Gemma 2       base 10,000; windows in every second layer
    Gemma3Backbone     post_norm, qk_norm                        bases 1,000,000 and 10,000; windows but in every sixth

GemmaBackbone counts both branches of the mlp in `intermediate_dim`, Gemma3Backbone one. Neither says how long a context
is: the published lengths are taken, and ours is noted in metadata.json. HDF5 files are read and written with h5py.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import CheckpointError, FileError, InputError, MissingExtraError
from gemmary.formats.content import Checkpoint, Entry, Fields, bind, cast, check_fits, unbind
from gemmary.formats.sentencepiece import read_sentencepiece, write_sentencepiece
from gemmary.formats.storage import listed_files, read_json, shown, write_json, written_folder, written_whole
from gemmary.formats.tensors import Stored, Weight

_ONE_FILE, _INDEX, _PIECES = "model.weights.h5", "model.weights.json", Path("assets", "tokenizer", "vocabulary.spm")
_FAMILIES = {"GemmaBackbone": "gemma", "Gemma3Backbone": "gemma3"}
_IGNORED = re.compile(r".*(vision|seed_generator|interleave_embeddings)")


def read_keras(path: Path) -> Checkpoint:
    """Open a preset folder as KerasHub saves it.

    Raises FileError for what is missing or damaged, CheckpointError for tensors that do not fit, MissingExtraError
    without h5py.

    >>> read_keras(Path("no-such-folder"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a readable file, got no-such-folder/config.json: No such file or directory
    """
    whole = read_json(path / "config.json")
    name, values = whole.get("class_name"), whole.get("config")
    if not isinstance(name, str) or name not in _FAMILIES or not isinstance(values, dict):
        raise FileError(
            f"expected a GemmaBackbone or Gemma3Backbone in config.json, got {shown(name)}: give a Gemma 1 to 3"
        )
    metadata = read_json(path / "metadata.json") if (path / "metadata.json").exists() else {}
    config = _config(_FAMILIES[name], Fields(values, "config.json"), Fields(metadata, "metadata.json"))
    entries: dict[str, Entry] = {}
    for file in _files(path):
        entries |= _entries(file)
    pieces = path / _PIECES
    return Checkpoint(
        config=config,
        tensors=bind(config, entries, partial(_name, _FAMILIES[name]), _IGNORED),
        vocabulary=read_sentencepiece(pieces) if pieces.exists() else None,
    )


def _name(family: str, row: Weight, layer: int | None) -> tuple[str, Stored]:
    name = row.keras.at(layer)
    return f"layers/{family}_{name}" if row.per_layer else f"layers/{name}", row.keras


def _files(folder: Path) -> list[Path]:
    if not (folder / _INDEX).exists():
        return [folder / _ONE_FILE]
    return listed_files(folder / _INDEX)


def _entries(path: Path) -> dict[str, Entry]:
    """The variables of one HDF5 file, by the path of their layer."""
    size = path.stat().st_size if path.exists() else 0
    shapes: dict[str, tuple[int, ...]] = {}
    with _opened(path) as file:
        for name in _layers(file, ""):
            shapes[name] = _checked(file, name, size).shape
    return {name: Entry(shape=shape, read=partial(_read, path, name, size)) for name, shape in shapes.items()}


def _layers(group: Any, prefix: str) -> Iterator[str]:
    """The paths of groups that hold variables; links out of the file are not followed."""
    for name in group:
        link = group.get(name, getlink=True)
        if type(link).__name__ == "ExternalLink":
            raise FileError(
                f"expected variables in the file itself, got a link away at {shown(prefix + name)}: do not trust it"
            )
        child = group[name]
        if type(child).__name__ != "Group":
            continue
        if name == "vars":
            if len(child):
                yield prefix.removesuffix("/")
        elif prefix.count("/") < 8:
            yield from _layers(child, f"{prefix}{name}/")


def _checked(file: Any, name: str, size: int) -> Any:
    """A layer's one variable, stored plainly: neither compressed nor elsewhere."""
    variables = file[name]["vars"]
    data = variables["0"] if list(variables) == ["0"] else None
    if type(data).__name__ != "Dataset" or data is None or data.shape is None:
        raise CheckpointError(
            f"expected one variable in {shown(name)}, got {shown(sorted(variables))}: give a plain Gemma"
        )
    if data.external or data.is_virtual or data.id.get_storage_size() != data.nbytes or data.nbytes > size:
        raise FileError(
            f"expected {shown(name)} stored plainly in the file, got it compressed, elsewhere or cut: save it again"
        )
    is_bfloat16 = data.dtype == np.dtype("V2") and data.attrs.get("dtype") == "bfloat16"
    if data.dtype not in (np.float32, np.float16) and not is_bfloat16:
        raise FileError(
            f"expected float32, float16 or bfloat16 for {shown(name)}, got {shown(str(data.dtype))}: convert it"
        )
    return data


def _read(path: Path, name: str, size: int) -> NDArray[Any]:
    with _opened(path) as file:
        data = _checked(file, name, size)
        array: NDArray[Any] = data[()]
        return array.view(ml_dtypes.bfloat16) if data.dtype.kind == "V" else array


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, OverflowError) as error:  # all of what h5py raises
        raise FileError(
            f"expected a readable HDF5 file, got {path.name}: {shown(str(error))}; fetch it again"
        ) from None


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingExtraError.of("reading and writing .weights.h5 files", "h5py", "keras") from None
    return h5py


def _config(family: str, fields: Fields, noted: Fields) -> GemmaConfig:
    heads, width = fields.size("num_query_heads"), fields.size("hidden_dim")
    is_third = family == "gemma3"
    head_dim, both = fields.size("head_dim"), fields.size("intermediate_dim")
    has_windows, window = (
        fields.flag("use_sliding_window_attention", is_third),
        fields.size("sliding_window_size", 4096),
    )
    scale = fields.real("global_rope_scaling_factor", 1.0) if is_third else 1.0
    post_norm = fields.flag("use_post_ffw_norm", is_third)
    if post_norm != fields.flag("use_post_attention_norm", is_third) or (is_third and not post_norm):
        raise FileError("expected both post norms or none in config.json, got one: give a Gemma 1 to 3")
    if fields.real("local_rope_scaling_factor", 1.0) != 1 or fields.flag("use_bidirectional_attention", False):
        raise FileError(
            "expected a Gemma that reads forwards with unscaled local positions, got another in config.json"
        )
    long = 131_072 if scale > 1 else 32_768
    try:
        return GemmaConfig(
            vocab_size=fields.size("vocabulary_size"),
            num_layers=fields.size("num_layers"),
            model_dim=width,
            num_heads=heads,
            num_kv_heads=fields.size("num_key_value_heads"),
            head_dim=head_dim,
            mlp_dim=both if is_third else both // 2,
            max_length=noted.size("max_length", long if is_third else 8192),
            norm_eps=fields.real("layer_norm_epsilon", 1e-6),
            query_scale=(head_dim if fields.flag("query_head_dim_normalize", True) else width // heads) ** -0.5,
            rope_base=1_000_000.0 if is_third else 10_000.0,
            rope_scale=scale,
            window_pattern=(*(window,) * (_PERIODS[family] - 1), None) if has_windows else (None,),
            attn_softcap=fields.optional("attention_logit_soft_cap"),
            final_softcap=fields.optional("final_logit_soft_cap"),
            post_norm=post_norm,
            qk_norm=fields.flag("use_query_key_norm", is_third),
        )
    except (InputError, ZeroDivisionError) as error:
        raise FileError(f"config.json: {error}") from None


_PERIODS = {"gemma": 2, "gemma3": 6}  # every such layer attends to everything


def write_keras(checkpoint: Checkpoint, path: Path, dtype: str) -> None:
    """Write a preset folder that KerasHub loads with `Backbone.from_preset`.

    Raises InputError for a configuration that no KerasHub class has, FileError when `path` is taken, MissingExtraError
    without h5py.

    >>> from gemmary.base.config import PRESETS
    >>> write_keras(Checkpoint(config=PRESETS["gemma-2b"], tensors={}, vocabulary=None), Path("new"), "float32")
    Traceback (most recent call last):
    gemmary.base.errors.CheckpointError: expected the weight embedding, got 0 others: ...
    """
    config, family = checkpoint.config, "gemma3" if checkpoint.config.qk_norm else "gemma"
    values = _to_json(config, family, dtype)
    entries = unbind(config, checkpoint.tensors, partial(_name, family))
    h5py, kind = _h5py(), np.dtype(dtype)
    with written_folder(path) as folder:
        with written_whole(folder / _ONE_FILE) as target, h5py.File(target, "w") as file:
            for name, entry in entries.items():
                array = cast(entry.read(), kind, name)
                variables = file.create_group(f"{name}/vars")
                data = variables.create_dataset("0", data=array.view("V2") if dtype == "bfloat16" else array)
                if dtype == "bfloat16":
                    data.attrs["dtype"] = dtype
        write_json(folder / "config.json", values)
        write_json(
            folder / "metadata.json",
            {**_VERSIONS, "parameter_count": config.num_params, "max_length": config.max_length},
        )
        if checkpoint.vocabulary is not None:
            write_sentencepiece(checkpoint.vocabulary, folder / _PIECES)
            own = {"has_vision_tokens": False} if family == "gemma3" else {}
            write_json(folder / "tokenizer.json", _serialized(family, "Tokenizer", "int32", {"proto": None, **own}))


_VERSIONS = {"keras_version": "3.15.1", "keras_hub_version": "0.32.0"}  # whose form this is


def _serialized(family: str, kind: str, dtype: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """An object as Keras writes it: `family` and `kind` make up its class and module."""
    name, module = f"{family.title()}{kind}", f"{family}_{kind.lower()}"
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": dtype}, "registered_name": None}
    return {
        "module": f"keras_hub.src.models.{family}.{module}",
        "class_name": name,
        "config": {"name": module, "trainable": True, "dtype": policy, **values},
        "registered_name": f"keras_hub>{name}",
    }


def _to_json(config: GemmaConfig, family: str, dtype: str) -> dict[str, Any]:
    is_third = family == "gemma3"
    window = config.window_pattern[0]
    by_width = (config.model_dim // config.num_heads) ** -0.5
    values: dict[str, Any] = {
        "vocabulary_size": config.vocab_size,
        "num_layers": config.num_layers,
        "num_query_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_dim": config.model_dim,
        "intermediate_dim": config.mlp_dim if is_third else 2 * config.mlp_dim,
        "head_dim": config.head_dim,
        "layer_norm_epsilon": config.norm_eps,
        "dropout": 0,
        "query_head_dim_normalize": config.query_scale == config.head_dim**-0.5,
        "use_post_ffw_norm": config.post_norm,
        "use_post_attention_norm": config.post_norm,
        "final_logit_soft_cap": config.final_softcap,
        "attention_logit_soft_cap": config.attn_softcap,
        "sliding_window_size": window or 4096,
        "use_sliding_window_attention": window is not None,
    }
    if is_third:
        values |= {
            "image_size": 896,
            "vision_encoder": None,
            "use_query_key_norm": True,
            "local_rope_scaling_factor": 1.0,
            "global_rope_scaling_factor": config.rope_scale,
        }
    check_fits(
        config,
        f"KerasHub's {family.title()}Backbone",
        norm_plus_one=config.norm_plus_one,
        post_norm=config.post_norm or not is_third,
        query_scale=config.query_scale in (config.head_dim**-0.5, by_width),
        window_pattern=config.window_pattern in ((None,), (*(window,) * (_PERIODS[family] - 1), None)),
        rope_base=config.rope_base == (1_000_000.0 if is_third else 10_000.0),
        rope_base_local=config.rope_base_local == 10_000.0,
        rope_scale=is_third or config.rope_scale == 1,
    )
    return _serialized(family, "Backbone", dtype, values)
