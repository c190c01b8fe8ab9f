# SPDX-License-Identifier: Apache-2.0
"""KerasHub presets, both ways against KerasHub, whose logits are compared with those of transformers; hostile files.

KerasHub runs in a process of its own, once for all of its tests: it imports three frameworks.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from gemmary.base.config import PRESETS
from gemmary.base.errors import CheckpointError, FileError, InputError, MissingExtraError
from gemmary.formats.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from gemmary.formats.content import Fields
from gemmary.formats.keras_file import _config, _to_json

IDS = [2, *range(300, 330)]  # longer than the window of 16
CHILD = """
import json, sys
from pathlib import Path
import keras, keras_hub, numpy as np
job = json.loads(sys.argv[1])
ids = np.asarray([job["ids"]])
inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}

def logits(backbone):
    return np.asarray(backbone.token_embedding(backbone(inputs), reverse=True)[0], np.float32)

for name, values in job["theirs"].items():  # made by them
    keras.utils.set_random_seed(1)
    third = name == "gemma3"
    kind = keras_hub.models.Gemma3Backbone if third else keras_hub.models.GemmaBackbone
    backbone = kind(**values, dtype="float32")
    for variable in backbone.weights:  # norms are zero at first
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.05))
    backbone.save_to_preset(f"{job['folder']}/theirs-{name}")
    np.save(f"{job['folder']}/theirs-{name}.npy", logits(backbone))
for name in job["ours"]:  # made by us
    third = name.startswith("gemma3")
    kind = keras_hub.models.Gemma3Backbone if third else keras_hub.models.GemmaBackbone
    backbone = kind.from_preset(f"{job['folder']}/ours-{name}", dtype="float32")
    np.save(f"{job['folder']}/ours-{name}.npy", logits(backbone))
    tokenizer = keras_hub.models.Gemma3Tokenizer if third else keras_hub.models.GemmaTokenizer
    tokens = tokenizer.from_preset(f"{job['folder']}/ours-{name}")("ta tsunu").tolist()
    Path(f"{job['folder']}/ours-{name}.json").write_text(json.dumps(tokens))
"""
SIZES = {"vocabulary_size": 512, "num_query_heads": 4, "hidden_dim": 64, "head_dim": 32}
POST = {"use_post_ffw_norm": True, "use_post_attention_norm": True, "use_sliding_window_attention": True}
THEIRS: dict[str, dict[str, Any]] = {
    "gemma1": {**SIZES, "num_layers": 3, "num_key_value_heads": 1, "intermediate_dim": 192},
    "gemma2": {
        **SIZES,
        **POST,
        "num_layers": 4,
        "num_key_value_heads": 2,
        "intermediate_dim": 192,
        "sliding_window_size": 16,
        "attention_logit_soft_cap": 50.0,
        "final_logit_soft_cap": 30.0,
    },
    "gemma3": {
        **SIZES,
        **POST,
        "image_size": 896,
        "num_layers": 7,
        "num_key_value_heads": 4,
        "intermediate_dim": 96,
        "sliding_window_size": 16,
        "global_rope_scaling_factor": 8.0,
    },
}


@pytest.fixture(scope="module")
def keras_hub(tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[..., Checkpoint]) -> Path:
    """A folder with presets of ours and of KerasHub's, and the logits that KerasHub computes from each."""
    folder = tmp_path_factory.mktemp("presets")
    ours = [f"{name}-{dtype}" for name in THEIRS for dtype in ("float32", "bfloat16")]
    dtype: Any
    for each in ours:
        name, dtype = each.split("-")
        write_checkpoint(make_tiny(name, dtype=dtype), folder / f"ours-{each}", format="keras", dtype=dtype)
    job = json.dumps({"folder": str(folder), "ids": IDS, "theirs": THEIRS, "ours": ours})
    variables = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", CHILD, job], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def in_transformers(checkpoint: Checkpoint, folder: Path) -> NDArray[np.float32]:
    """The logits that transformers computes from a checkpoint."""
    import torch
    import transformers

    write_checkpoint(checkpoint, folder, format="safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([IDS])).logits[0].numpy()
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", THEIRS)
def test_kerashub_computes_from_our_preset_what_transformers_computes(
    name: str, dtype: str, keras_hub: Path, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    tiny = make_tiny(name, dtype=dtype)
    got = np.load(keras_hub / f"ours-{name}-{dtype}.npy")
    np.testing.assert_allclose(got, in_transformers(tiny, tmp_path / "hf"), atol=2e-4)
    tokens = json.loads((keras_hub / f"ours-{name}-{dtype}.json").read_text())
    assert tiny.vocabulary is not None
    assert "".join(tiny.vocabulary.pieces[each] for each in tokens) == "ta▁tsunu"


@pytest.mark.slow
@pytest.mark.parametrize("name", THEIRS)
def test_we_find_in_their_preset_what_they_compute(
    name: str, keras_hub: Path, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(keras_hub / f"theirs-{name}")
    assert checkpoint.config == make_tiny(name).config
    expected = np.load(keras_hub / f"theirs-{name}.npy")
    np.testing.assert_allclose(in_transformers(checkpoint, tmp_path / "hf"), expected, atol=2e-4)


@pytest.mark.slow
def test_their_presets_in_several_files_are_read(keras_hub: Path, tmp_path: Path) -> None:
    whole = open_checkpoint(keras_hub / "theirs-gemma1")
    folder = tmp_path / "sharded"
    folder.mkdir()
    for name in ("config.json", "metadata.json"):
        (folder / name).write_bytes((keras_hub / "theirs-gemma1" / name).read_bytes())
    with h5py.File(keras_hub / "theirs-gemma1" / "model.weights.h5", "r") as source:
        layers = list(source["layers"])
        for at, part in enumerate((layers[:2], layers[2:])):
            with h5py.File(folder / f"model_{at:05d}.weights.h5", "w") as target:
                for layer in part:
                    source.copy(f"layers/{layer}", target.require_group("layers"))
    index = {"weight_map": {"/a": ["model_00000.weights.h5", "model_00001.weights.h5"], "/b": "model_00000.weights.h5"}}
    (folder / "model.weights.json").write_text(json.dumps(index))
    for path, read in open_checkpoint(folder).tensors.items():
        np.testing.assert_array_equal(read(), whole.tensors[path]())


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_s_configuration_survives(name: str) -> None:
    config = PRESETS[name]
    family = "gemma3" if config.qk_norm else "gemma"
    values = json.loads(json.dumps(_to_json(config, family, "bfloat16")))["config"]
    assert _config(family, Fields(values, ""), Fields({"max_length": config.max_length}, "")) == config


def test_a_preset_that_does_not_say_its_length_has_the_published_one(preset: Path) -> None:
    change(preset / "metadata.json", max_length=None)
    assert open_checkpoint(preset).config.max_length == 131_072


@pytest.fixture
def preset(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> Path:
    write_checkpoint(make_tiny("gemma3"), tmp_path / "preset", format="keras")
    return tmp_path / "preset"


def change(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (values | changes).items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"num_layers": 0}, "expected a whole number > 0 for num_layers in config.json, got 0"),
        ({"num_layers": 8}, "expected the tensor layers/gemma3_decoder_block_7/"),
        ({"num_layers": 6}, "expected no other tensors than a Gemma's, got layers/gemma3_decoder_block_6/"),
        ({"hidden_dim": 65}, r"of shape \(512, 65\), got \(512, 64\)"),
        ({"num_key_value_heads": 3}, "expected num_kv_heads that divides num_heads=4"),
        ({"use_post_ffw_norm": False}, "expected both post norms or none"),
        ({"use_query_key_norm": "yes"}, "expected true or false for use_query_key_norm"),
        ({"local_rope_scaling_factor": 2.0}, "with unscaled local positions"),
        ({"use_bidirectional_attention": True}, "expected a Gemma that reads forwards"),
        ({"head_dim": [32]}, "expected a whole number > 0 for head_dim"),
        ({"num_query_heads": 1000}, "expected"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changes: dict[str, Any], error: str, preset: Path) -> None:
    values = json.loads((preset / "config.json").read_text())
    change(preset / "config.json", config=values["config"] | changes)
    with pytest.raises(FileError, match=error):
        open_checkpoint(preset)


@pytest.mark.parametrize("name", ["LlamaBackbone", 7, ["GemmaBackbone"], None])
def test_another_class_is_refused(name: Any, preset: Path) -> None:
    change(preset / "config.json", class_name=name)
    with pytest.raises(FileError, match=r"expected a GemmaBackbone or Gemma3Backbone in config\.json"):
        open_checkpoint(preset)


@pytest.mark.parametrize(
    ("generation", "changes", "error"),
    [
        ("gemma1", {"query_scale": 0.5}, "got query_scale=0.5"),
        ("gemma1", {"window_pattern": (16, 16, None)}, "got window_pattern="),
        ("gemma1", {"rope_base": 5000.0}, "got rope_base=5000.0"),
        ("gemma1", {"norm_plus_one": False}, "got norm_plus_one=False"),
        ("gemma2", {"rope_scale": 2.0}, "got rope_scale=2.0"),
        ("gemma3", {"rope_base_local": 5000.0}, "got rope_base_local=5000.0"),
        ("gemma3", {"post_norm": False}, "got post_norm=False"),
    ],
)
def test_what_kerashub_would_compute_otherwise_is_not_written(
    generation: str, changes: dict[str, Any], error: str, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=error):
        write_checkpoint(make_tiny(generation, **changes), tmp_path / "preset", format="keras")
    assert not list(tmp_path.iterdir())


NORM = "layers/rms_normalization/vars"


def replaced(preset: Path, **options: Any) -> None:
    """Put another variable in place of the final norm."""
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        del file[NORM]["0"]
        if options:
            file[NORM].create_dataset("0", **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, "expected the tensor layers/rms_normalization"),
        ({"data": np.zeros(63, np.float32)}, r"of shape \(64,\), got \(63,\)"),
        ({"data": np.zeros(64, np.float32), "compression": "gzip"}, "stored plainly in the file"),
        ({"shape": (64,), "dtype": "f4"}, "stored plainly in the file"),  # nothing was ever written
        ({"shape": (2**60,), "dtype": "f4", "chunks": (64,)}, "stored plainly in the file"),
        ({"data": np.zeros(64, np.float64)}, "expected float32, float16 or bfloat16 for layers/rms_normalization"),
        ({"data": np.zeros(64, "V2")}, "expected float32, float16 or bfloat16 for layers/rms_normalization"),
        ({"data": np.array([b"text"] * 64)}, "expected float32, float16 or bfloat16"),
        ({"data": "text"}, "expected"),
        ({"data": h5py.Empty("f4")}, "expected one variable in layers/rms_normalization"),
        ({"shape": (64,), "dtype": "f4", "external": "/etc/hostname"}, "stored plainly in the file"),
    ],
)
def test_a_variable_of_another_form_is_refused(options: dict[str, Any], error: str, preset: Path) -> None:
    replaced(preset, **options)
    with pytest.raises(FileError, match=error):
        open_checkpoint(preset)


def test_whole_numbers_are_not_taken_for_bfloat16(preset: Path) -> None:
    replaced(preset, data=np.zeros(64, np.int16))
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        file[NORM]["0"].attrs["dtype"] = "bfloat16"
    with pytest.raises(
        FileError, match="expected float32, float16 or bfloat16 for layers/rms_normalization, got int16"
    ):
        open_checkpoint(preset)


def test_links_are_not_followed_out_of_the_file(preset: Path) -> None:
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        file["layers/other"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(FileError, match="got a link away at layers/other: do not trust it"):
        open_checkpoint(preset)


def test_a_group_that_holds_itself_ends(preset: Path) -> None:
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        file["layers/around"] = file["layers"]
        file["layers/nowhere"] = h5py.SoftLink("/not/there")
    with pytest.raises(FileError):
        open_checkpoint(preset)


def test_two_variables_in_one_layer_are_refused(preset: Path) -> None:
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        file[NORM].create_dataset("1", data=np.zeros(2, np.float32))
    with pytest.raises(CheckpointError, match="expected one variable in layers/rms_normalization, got"):
        open_checkpoint(preset)


def test_values_that_are_not_finite_are_refused_when_they_are_read(preset: Path) -> None:
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        file[NORM]["0"][3] = np.nan
    with pytest.raises(CheckpointError, match="expected finite values in layers/rms_normalization"):
        open_checkpoint(preset).tensors["final_norm"]()


def test_a_missing_file_is_named(preset: Path) -> None:
    (preset / "model.weights.h5").rename(preset / "model.weights.bak")
    with pytest.raises(FileError, match=r"expected a readable HDF5 file, got model\.weights\.h5"):
        open_checkpoint(preset)


@pytest.mark.parametrize("name", [pytest.param("model.weights.h5", marks=pytest.mark.slow), "config.json"])
def test_damaged_presets_are_refused_in_one_line(
    name: str, make_tiny: Callable[..., Checkpoint], refused: Callable[..., int], tmp_path: Path
) -> None:
    folder = tmp_path / "preset"
    write_checkpoint(make_tiny("gemma1", num_layers=1), folder, format="keras")
    assert refused(folder / name, folder, head=6000) > 50


def test_without_h5py_the_extra_is_named(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"needs h5py: pip install 'gemmary\[keras\]'"):
        open_checkpoint(preset)
