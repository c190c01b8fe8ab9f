# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's config.json and GemmaConfig, one into the other.

    model_type     features                            says of RoPE and windows
    gemma          neither norm                        rope_theta
    gemma2         post_norm                           rope_theta, sliding_window in every second layer
    gemma3_text    post_norm, qk_norm                  two bases, rope_scaling, sliding_window but in every sixth layer
    gemma3         the same, under "text_config"

Read: the keys of the published files and those of transformers 5 (`rope_parameters`, `layer_types`). Written: both, so
that older readers understand. `hidden_act` is not read: the published Gemma 1 says "gelu" and means the tanh form.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import FileError, InputError
from gemmary.formats.content import Fields, check_fits
from gemmary.formats.storage import shown

_WHERE = "config.json"


@dataclass(frozen=True, kw_only=True)
class _Family:
    """What transformers' class of a model_type takes for granted when its config.json does not say."""

    architecture: str
    post_norm: bool
    qk_norm: bool
    defaults: Mapping[str, Any]
    period: int  # every such layer attends to everything
    rope_base: float = 10_000.0


_FAMILIES: Mapping[str, _Family] = {
    "gemma": _Family(
        architecture="GemmaForCausalLM",
        post_norm=False,
        qk_norm=False,
        period=1,
        defaults={"vocab_size": 256_000, "max_position_embeddings": 8192},
    ),
    "gemma2": _Family(
        architecture="Gemma2ForCausalLM",
        post_norm=True,
        qk_norm=False,
        period=2,
        defaults={
            "vocab_size": 256_000,
            "max_position_embeddings": 8192,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3_text": _Family(
        architecture="Gemma3ForCausalLM",
        post_norm=True,
        qk_norm=True,
        period=6,
        rope_base=1_000_000.0,
        defaults={
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
        },
    ),
}


def config_from_json(values: Mapping[str, Any]) -> GemmaConfig:
    """Read a config.json; raises FileError for another model_type and for values that are missing or make no sense.

    >>> config_from_json({"model_type": "llama"})
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected model_type gemma, gemma2, gemma3_text or gemma3 in config.json, got ...
    """
    kind = values.get("model_type")
    if kind == "gemma3" and isinstance(values.get("text_config"), dict):
        kind, values = "gemma3_text", values["text_config"]
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise FileError(
            f"expected model_type gemma, gemma2, gemma3_text or gemma3 in {_WHERE}, got {shown(kind)}: "
            "give a Gemma 1 to 3"
        )
    family = _FAMILIES[kind]
    fields = Fields({**family.defaults, **values}, _WHERE)
    heads, head_dim = fields.size("num_attention_heads"), fields.size("head_dim", 256)
    query_dim = fields.real("query_pre_attn_scalar", head_dim)
    base, local, scale = _rope(family, values)
    try:
        return GemmaConfig(
            vocab_size=fields.size("vocab_size"),
            num_layers=fields.size("num_hidden_layers"),
            model_dim=fields.size("hidden_size"),
            num_heads=heads,
            num_kv_heads=fields.size("num_key_value_heads", heads),
            head_dim=head_dim,
            mlp_dim=fields.size("intermediate_size"),
            max_length=fields.size("max_position_embeddings"),
            norm_eps=fields.real("rms_norm_eps", 1e-6),
            query_scale=query_dim**-0.5,
            rope_base=base,
            rope_base_local=local,
            rope_scale=scale,
            window_pattern=_window_pattern(family, fields),
            attn_softcap=fields.optional("attn_logit_softcapping"),
            final_softcap=fields.optional("final_logit_softcapping"),
            post_norm=family.post_norm,
            qk_norm=family.qk_norm,
        )
    except InputError as error:
        raise FileError(f"{_WHERE}: {error}") from None


def _rope(family: _Family, values: Mapping[str, Any]) -> tuple[float, float, float]:
    """The two bases and the scale; a family without local layers of its own has one base."""
    parameters = _object(values, "rope_parameters")
    whole = _object(parameters, "full_attention") or parameters
    scaling = _object(values, "rope_scaling") or whole
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear", None):
        raise FileError(
            f"expected rope_type default or linear in {_WHERE}, got {shown(kind)}: no Gemma 1 to 3 has another"
        )
    base = Fields({**values, **whole}, _WHERE).real("rope_theta", family.rope_base)
    local_base = Fields(values, _WHERE).real("rope_local_base_freq", 10_000.0 if family.qk_norm else base)
    local = Fields(_object(parameters, "sliding_attention"), _WHERE).real("rope_theta", local_base)
    return base, local, Fields(scaling, _WHERE).real("factor", 1.0) if kind == "linear" else 1.0


def _object(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    if value is not None and not isinstance(value, dict):
        raise FileError(f"expected an object for {key} in {_WHERE}, got {shown(value)}: fetch the file again")
    return value or {}


def _window_pattern(family: _Family, fields: Fields) -> tuple[int | None, ...]:
    if family.period == 1:
        return (None,)
    window, period = fields.size("sliding_window"), fields.size("sliding_window_pattern", family.period)
    if period > 1024:
        raise FileError(f"expected a sliding_window_pattern up to 1024 in {_WHERE}, got {period}: fetch the file again")
    usual = (*(window,) * (period - 1), None)
    kinds = fields.values.get("layer_types")
    if kinds is None:
        return usual
    if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, str) and kind in _KINDS for kind in kinds):
        raise FileError(f"expected layer_types of {sorted(_KINDS)} in {_WHERE}, got {shown(kinds)}: fetch it again")
    windows = tuple(window if kind == _LOCAL else None for kind in kinds)
    return usual if windows == tuple(usual[at % period] for at in range(len(kinds))) else windows


_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_KINDS = {_LOCAL, _GLOBAL}


def config_to_json(config: GemmaConfig, dtype: str) -> dict[str, Any]:
    """The config.json that transformers loads; raises InputError for features that none of its classes has together.

    >>> from gemmary.base.config import PRESETS
    >>> config_to_json(PRESETS["gemma-3-270m"], "bfloat16")["model_type"]
    'gemma3_text'
    """
    kind = _kind(config)
    family = _FAMILIES[kind]
    values: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.model_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "torch_dtype": dtype,
    }
    if family.period == 1:
        return values
    values |= {
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "attn_logit_softcapping": config.attn_softcap,
        "final_logit_softcapping": config.final_softcap,
        "sliding_window": next((window for window in config.windows if window), config.max_length),
        "layer_types": [_LOCAL if window else _GLOBAL for window in config.windows],
    }
    if config.window_pattern[-1] is None and None not in config.window_pattern[:-1]:
        values["sliding_window_pattern"] = len(config.window_pattern)
    if config.qk_norm:
        values |= _two_ropes(config)
    return values


def _two_ropes(config: GemmaConfig) -> dict[str, Any]:
    scaling = {"rope_type": "linear", "factor": config.rope_scale} if config.rope_scale != 1 else None
    whole = {**(scaling or {"rope_type": "default"}), "rope_theta": config.rope_base}
    local = {"rope_type": "default", "rope_theta": config.rope_base_local}
    return {
        "rope_local_base_freq": config.rope_base_local,
        "rope_scaling": scaling,
        "rope_parameters": {_GLOBAL: whole, _LOCAL: local},
    }


def _kind(config: GemmaConfig) -> str:
    """The model_type whose class computes what this configuration says."""
    for kind, family in _FAMILIES.items():
        if (family.post_norm, family.qk_norm) == (config.post_norm, config.qk_norm):
            _check_fits(config, kind, family)
            return kind
    raise InputError("expected post_norm wherever there is qk_norm, got qk_norm alone: transformers has no such Gemma")


def _check_fits(config: GemmaConfig, kind: str, family: _Family) -> None:
    plain = family.period == 1
    has_windows = any(config.windows)
    query_dim = config.head_dim if plain else round(config.query_scale**-2)
    check_fits(
        config,
        f"transformers' {family.architecture} ({kind})",
        norm_plus_one=config.norm_plus_one,
        query_scale=abs(query_dim**-0.5 - config.query_scale) < 1e-12,
        window_pattern=len({window for window in config.windows if window}) <= (0 if plain else 1),
        attn_softcap=not plain or config.attn_softcap is None,
        final_softcap=not plain or config.final_softcap is None,
        rope_scale=config.qk_norm or config.rope_scale == 1,
        rope_base_local=config.qk_norm or not has_windows or config.rope_base_local == config.rope_base,
    )
