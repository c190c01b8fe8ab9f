# SPDX-License-Identifier: Apache-2.0
"""config.json, against the classes of transformers and the published files."""

import json
from typing import Any

import pytest
import transformers

from gemmary.base.config import PRESETS, GemmaConfig
from gemmary.base.errors import FileError, InputError
from gemmary.formats.hugging_face import config_from_json, config_to_json

CLASSES: dict[str, Any] = {
    "gemma": transformers.GemmaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
}


def test_published_configurations_are_read_as_the_presets() -> None:
    first = {  # google/gemma-2b, as published: hidden_act says gelu and means the tanh form
        "model_type": "gemma",
        "hidden_act": "gelu",
        "head_dim": 256,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": 256000,
    }
    assert config_from_json(first) == PRESETS["gemma-2b"]
    fourth = {  # google/gemma-3-4b-pt: most values are the class's own
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    }
    assert config_from_json(fourth) == PRESETS["gemma-3-4b-pt"].with_(vocab_size=262_208)


def test_every_preset_goes_into_config_json_and_back() -> None:
    for name, config in PRESETS.items():
        assert config_from_json(json.loads(json.dumps(config_to_json(config, "bfloat16")))) == config, name


@pytest.mark.parametrize("name", list(PRESETS))
def test_what_transformers_makes_of_it_means_the_same(name: str) -> None:
    values = config_to_json(PRESETS[name], "bfloat16")
    theirs = json.loads(CLASSES[values["model_type"]](**values).to_json_string(use_diff=False))
    assert config_from_json(theirs) == PRESETS[name]


@pytest.mark.parametrize("kind", CLASSES)
def test_what_a_file_does_not_say_is_what_transformers_takes(kind: str) -> None:
    said = {"num_hidden_layers": 12, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8}
    said |= {"num_key_value_heads": 4, "head_dim": 256}
    theirs = json.loads(CLASSES[kind](**said).to_json_string(use_diff=False))
    assert config_from_json({"model_type": kind, **said}) == config_from_json(theirs)


def test_the_multimodal_ones_have_their_text_model_inside() -> None:
    text = config_to_json(PRESETS["gemma-3-4b-it"], "bfloat16")
    assert config_from_json({"model_type": "gemma3", "text_config": text}) == PRESETS["gemma-3-4b-it"]


SMALL = GemmaConfig(num_layers=4, model_dim=64, num_heads=4, num_kv_heads=2, mlp_dim=96)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"qk_norm": True}, "expected post_norm wherever there is qk_norm"),
        ({"norm_plus_one": False}, "got norm_plus_one=False"),
        ({"query_scale": 0.5}, "got query_scale=0.5"),
        ({"window_pattern": (16, None)}, "got window_pattern="),
        ({"post_norm": True, "window_pattern": (16, 32)}, "got window_pattern="),
        ({"post_norm": True, "query_scale": 0.3}, "got query_scale=0.3"),
        ({"rope_scale": 2.0}, "got rope_scale=2.0"),
        ({"attn_softcap": 50.0}, "got attn_softcap=50.0"),
    ],
)
def test_what_transformers_would_compute_otherwise_is_refused(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        config_to_json(SMALL.with_(**changes), "float32")


@pytest.mark.parametrize("pattern", [(16, None), (None, 16), (16, 16, None), (None,), (16,), (16, None, None, 16)])
def test_any_order_of_windows_survives(pattern: tuple[int | None, ...]) -> None:
    config = SMALL.with_(post_norm=True, window_pattern=pattern)
    back = config_from_json(config_to_json(config, "float32"))
    assert back.windows == config.windows


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model_type": None}, "expected model_type"),
        ({"model_type": "gemma3"}, "expected model_type"),  # multimodal without a text model
        ({"rope_parameters": []}, "expected an object for rope_parameters"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "expected rope_type default or linear"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": -1}}}, "expected a number > 0 for rope_theta"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "expected a number > 0 for factor"),
        ({"sliding_window": 0}, "expected a whole number > 0 for sliding_window"),
        ({"sliding_window_pattern": 2**30}, "expected a sliding_window_pattern up to 1024"),
        ({"layer_types": ["full_attention", "other"]}, "expected layer_types of"),
        ({"layer_types": [["full_attention"]]}, "expected layer_types of"),
        ({"layer_types": "full_attention"}, "expected layer_types of"),
        ({"layer_types": []}, "expected layer_types of"),
        ({"final_logit_softcapping": "30"}, "expected a number > 0 for final_logit_softcapping"),
        ({"num_attention_heads": 3}, "expected num_kv_heads that divides num_heads=3"),
        ({"head_dim": 33}, "expected an even head_dim"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes: dict[str, Any], error: str) -> None:
    values = config_to_json(SMALL.with_(post_norm=True, qk_norm=True, window_pattern=(16, None)), "float32")
    with pytest.raises(FileError, match=error):
        config_from_json(values | changes)
