# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders, against transformers and the safetensors package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import CheckpointError, FileError, InputError
from gemmary.formats.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from gemmary.formats.safetensors import read_entries, write_safetensors
from gemmary.formats.tensors import weights

CLASSES = {
    "gemma1": (transformers.GemmaConfig, transformers.GemmaForCausalLM),
    "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
    "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
}


def written(checkpoint: Checkpoint, folder: Path) -> Path:
    write_checkpoint(checkpoint, folder / "model", format="safetensors")
    return folder / "model"


def rewrite(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; a value of ... removes the key."""
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def test_transformers_loads_our_folder_with_the_same_weights_and_features(tiny: Checkpoint, tmp_path: Path) -> None:
    config = tiny.config
    model = transformers.AutoModelForCausalLM.from_pretrained(written(tiny, tmp_path), dtype=torch.float32)
    theirs = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    for path, row, layer in weights(config):
        expected = row.hf.fold(tiny.tensors[path](), config)
        np.testing.assert_array_equal(theirs[row.hf.at(layer)].numpy(), expected, err_msg=path)
    attention = model.model.layers[-1].self_attn
    assert attention.scaling == pytest.approx(config.query_scale, rel=1e-12)
    assert model.config.final_logit_softcapping == config.final_softcap if config.post_norm else True
    if config.post_norm:
        kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
        assert model.config.layer_types == kinds
        assert model.config.sliding_window == 16
    if config.qk_norm:
        whole = model.config.rope_parameters["full_attention"]
        assert (whole["rope_theta"], whole["factor"], whole["rope_type"]) == (1e6, 8.0, "linear")
        assert model.config.rope_parameters["sliding_attention"]["rope_theta"] == 1e4


def theirs(config: GemmaConfig) -> Any:
    """A model of transformers with these features, made without our files; random weights."""
    generation = "gemma3" if config.qk_norm else "gemma2" if config.post_norm else "gemma1"
    more = {"query_pre_attn_scalar": 32, "sliding_window": 16} if config.post_norm else {}
    rope = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}} if config.qk_norm else {}
    config_class, model_class = CLASSES[generation]
    settings = config_class(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=config.num_layers,
        num_attention_heads=4,
        num_key_value_heads=config.num_kv_heads,
        head_dim=32,
        max_position_embeddings=config.max_length,
        **more,
        **rope,
    )
    return model_class(settings).eval()


@pytest.mark.parametrize("shard_size", ["5GB", "100KB"])
def test_we_load_what_transformers_saves(shard_size: str, tiny: Checkpoint, tmp_path: Path) -> None:
    config, model = tiny.config, theirs(tiny.config)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    assert (len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2) == (shard_size == "100KB")
    ours = open_checkpoint(tmp_path / "theirs")
    assert ours.config == config
    state = model.state_dict()
    for path, row, layer in weights(config):
        expected = state["model." + row.hf.at(layer)].numpy().reshape(row.shape(config))
        np.testing.assert_array_equal(ours.tensors[path](), expected, err_msg=path)


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 100_000])
def test_transformers_gives_the_same_logits_from_our_folder(shard_bytes: int, tiny: Checkpoint, tmp_path: Path) -> None:
    config, expected = tiny.config, theirs(tiny.config)
    state = {
        "model." + row.hf.at(layer): torch.from_numpy(row.hf.fold(tiny.tensors[path](), config).copy())
        for path, row, layer in weights(config)
    }
    expected.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    write_safetensors(tiny, tmp_path / "model", "float32", shard_bytes=shard_bytes)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids = torch.arange(40)[None] * 7 % 512  # longer than the window of 16
    with torch.no_grad():
        np.testing.assert_array_equal(loaded(ids).logits.numpy(), expected(ids).logits.numpy())


def test_transformers_tokenizer_loads_from_our_folder(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(written(make_tiny("gemma3"), tmp_path))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)
    assert tokenizer.convert_ids_to_tokens([4, 6]) == ["<start_of_turn>", "  "]  # tokens of spaces are spaces in it


def test_large_models_are_split_into_files_of_at_most_the_given_size(tiny: Checkpoint, tmp_path: Path) -> None:
    write_safetensors(tiny, tmp_path / "model", "float32", shard_bytes=100_000)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == 4 * tiny.config.num_params
    # the embedding alone is 131 kB and has a file of its own
    assert all(file.stat().st_size < 110_000 for file in files[1:])
    back = open_checkpoint(tmp_path / "model")
    assert all(back.tensors[path]().tobytes() == read().tobytes() for path, read in tiny.tensors.items())


def test_the_safetensors_package_reads_what_we_write(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    tiny = make_tiny("gemma3", dtype="bfloat16")
    write_checkpoint(tiny, tmp_path / "model", format="safetensors", dtype="bfloat16")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        theirs = file.get_tensor("model.embed_tokens.weight")
        assert theirs.dtype == torch.bfloat16
        assert len(file.keys()) == len(tiny.tensors)
    ours = tiny.tensors["embedding"]()
    np.testing.assert_array_equal(theirs.view(torch.int16).numpy(), ours.view(np.int16))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", ""])
def test_the_text_part_of_a_multimodal_model_is_found(
    prefix: str, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    tiny = make_tiny("gemma3", vocab_size=520)  # more rows than pieces, as in the published 4B
    folder = written(tiny, tmp_path)
    text = {name: torch.from_numpy(entry.read()) for name, entry in read_entries(folder / "model.safetensors").items()}
    tensors = {prefix + name.removeprefix("model."): tensor for name, tensor in text.items()}
    tensors |= {"vision_tower.vision_model.encoder.weight": torch.zeros(2), "lm_head.weight": torch.zeros(2, 2)}
    save_file(tensors, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": values, "vision_config": {}})
    )
    back = open_checkpoint(folder)
    assert back.config == tiny.config
    assert all(back.tensors[path]().tobytes() == read().tobytes() for path, read in tiny.tensors.items())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model_type": "llama"}, "expected model_type gemma"),
        (
            {"num_hidden_layers": "three"},
            "expected a whole number > 0 for num_hidden_layers in config.json, got 'three'",
        ),
        ({"num_hidden_layers": 4}, "expected the tensor model.layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": 2}, "expected no other tensors than a Gemma's, got model.layers.2"),
        ({"hidden_size": 65}, r"of shape \(512, 65\), got \(512, 64\)"),
        ({"hidden_size": -1}, "expected a whole number > 0 for hidden_size"),
        ({"num_key_value_heads": 3}, "expected num_kv_heads that divides num_heads=4"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "expected rope_type default or linear"),
        ({"rope_scaling": 7}, "expected an object for rope_scaling"),
        ({"model_type": ["gemma"]}, "expected model_type gemma"),
        ({"model_type": "gemma2", "layer_types": [["a"]]}, "expected layer_types of"),
        ({"rms_norm_eps": float("nan")}, "expected a number > 0 for rms_norm_eps"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    changes: dict[str, Any], error: str, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = written(make_tiny("gemma1"), tmp_path)
    rewrite(folder, **changes)
    with pytest.raises(FileError, match=error):
        open_checkpoint(folder)


def test_what_transformers_would_compute_otherwise_is_not_written(
    make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    odd = make_tiny("gemma2", rope_scale=4.0)
    with pytest.raises(InputError, match=r"computes, got rope_scale=4\.0: write another format"):
        write_checkpoint(odd, tmp_path / "model", format="safetensors")
    assert not any(tmp_path.iterdir())


def test_a_folder_with_files_is_not_written_over(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileError, match="expected a new or empty folder to write"):
        write_checkpoint(make_tiny("gemma1"), tmp_path, format="safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}, "expected 8 bytes for a"),
        ({"a": {"dtype": "F32", "shape": [200], "data_offsets": [0, 800]}}, "expected 800 bytes for a"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, "expected 8 bytes for a"),
        ({"a": {"dtype": "I8", "shape": [8], "data_offsets": [0, 8]}}, "expected F32, F16 or BF16 for a, got I8"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "expected sizes > 0"),
        ({"a": {"dtype": "F32", "shape": [2**39, 2**39], "data_offsets": [0, 8]}}, "bytes for a"),
        ({"a": [1, 2]}, "expected dtype, shape and data_offsets for a"),
        ([], "expected a JSON object"),
        ({"a\nb": 7}, "expected dtype, shape and data_offsets for a.b, got 7"),
    ],
)
def test_a_hostile_header_is_refused(header: Any, error: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(FileError, match=error):
        read_entries(path)


@pytest.mark.parametrize("text", [b"{", b'{"a":1,"a":2}', b"\xff\xfe", b"[" * 100_000, b'{"a": 1e999999999999}'])
def test_a_header_that_is_no_json_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FileError):
        read_entries(path)


def test_values_that_are_not_finite_are_refused_when_they_are_read(
    make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = written(make_tiny("gemma1"), tmp_path)
    tensors = {name: entry.read() for name, entry in read_entries(folder / "model.safetensors").items()}
    tensors["model.norm.weight"][5] = np.nan
    save_file({name: torch.from_numpy(array) for name, array in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"expected finite values in model\.norm\.weight, got NaN or infinity"):
        open_checkpoint(folder).tensors["final_norm"]()


def test_an_index_cannot_lead_out_of_the_folder(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    folder = written(make_tiny("gemma1"), tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(FileError, match="expected a weight_map of names to files"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_folders_are_refused_in_one_line(
    name: str, make_tiny: Callable[..., Checkpoint], refused: Callable[..., int], tmp_path: Path
) -> None:
    folder = written(make_tiny("gemma3", num_layers=1), tmp_path)
    assert refused(folder / name, folder) > 100


def test_a_tensor_in_two_files_is_refused(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    folder = written(make_tiny("gemma1"), tmp_path)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    index = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"expected every tensor in one file, got .* twice"):
        open_checkpoint(folder)


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(
    make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    folder = written(make_tiny("gemma1"), tmp_path)
    tensors = {
        name: torch.from_numpy(entry.read()) for name, entry in read_entries(folder / "model.safetensors").items()
    }
    name = "model.layers.1.mlp.up_proj.weight"
    up = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"expected the tensor {name}"):
        open_checkpoint(folder)
    save_file(tensors | {name: up[:, :-1].contiguous()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"expected {name} of shape \(96, 64\), got \(96, 63\)"):
        open_checkpoint(folder)
