# SPDX-License-Identifier: Apache-2.0
"""Adapters on disk, against PEFT on a tiny model of transformers: it loads ours, we load its, logits agree."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gemmary.base.errors import CheckpointError, FileError, GemmaryError, InputError
from gemmary.formats.adapter import TARGETS, Adapter, fingerprint, merged
from gemmary.formats.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from gemmary.formats.peft_folder import CONFIG, WEIGHTS, read_adapter, write_adapter

BOUND = 1e-4  # of logits in float32
IDS = torch.tensor([[2, *range(300, 340)]])  # longer than the window of 16
KEY = "base_model.model.model.layers.0.self_attn.q_proj"


def in_transformers(checkpoint: Checkpoint, folder: Path) -> Any:
    """The model as transformers reads it from our folder."""
    write_checkpoint(checkpoint, folder, format="safetensors")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(IDS).logits[0].numpy()


def agree(found: Any, expected: Any, base: Any) -> None:
    """Within the bound, which is far below what the adapter changes."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=BOUND)
    assert abs(found - base).max() > 1000 * BOUND


@pytest.fixture
def wide(make_tiny: Callable[..., Checkpoint]) -> Callable[[str], Checkpoint]:
    """A tiny checkpoint whose logits are far apart: the embedding is as large as a trained one's."""

    def make(generation: str) -> Checkpoint:
        tiny = make_tiny(generation)
        embedding = tiny.tensors["embedding"]() * np.float32(20)
        return Checkpoint(
            config=tiny.config, tensors={**tiny.tensors, "embedding": lambda: embedding}, vocabulary=tiny.vocabulary
        )

    return make


@pytest.mark.parametrize("is_dora", [False, True])
@pytest.mark.parametrize("generation", ["gemma1", "gemma2", "gemma3"])
def test_peft_computes_from_our_folder_what_we_merge(
    generation: str,
    is_dora: bool,
    wide: Callable[[str], Checkpoint],
    random_adapter: Callable[..., Adapter],
    tmp_path: Path,
) -> None:
    base = wide(generation)
    adapter = random_adapter(base, is_dora=is_dora)
    write_adapter(adapter, tmp_path / "adapter")
    plain = in_transformers(base, tmp_path / "base")
    before = logits(plain)
    theirs = logits(PeftModel.from_pretrained(plain, tmp_path / "adapter").eval())
    ours = logits(in_transformers(merged(base, adapter), tmp_path / "merged"))
    agree(ours, theirs, before)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"], "r": 3, "lora_alpha": 16},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["o_proj", "down_proj"], "use_rslora": True, "lora_alpha": 5},
        {"target_modules": ["k_proj", "up_proj"], "layers_to_transform": [1, 4], "use_dora": True},
    ],
    ids=["lora", "dora", "rslora", "layers"],
)
def test_we_merge_from_peft_s_folder_what_it_computes(
    settings: dict[str, Any], wide: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    base = wide("gemma3")
    plain = in_transformers(base, tmp_path / "base")
    before = logits(plain)
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(7)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, 0, 0.05)
        if "lora_magnitude" in name:
            value.data *= torch.empty_like(value).uniform_(0.8, 1.25)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    adapter = read_adapter(tmp_path / "adapter")
    assert (adapter.is_dora, adapter.base) == (settings.get("use_dora", False), "")
    agree(logits(in_transformers(merged(base, adapter), tmp_path / "merged")), logits(model), before)


@pytest.mark.parametrize("is_dora", [False, True])
def test_what_is_written_is_read(
    is_dora: bool, tiny: Checkpoint, random_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    adapter = random_adapter(tiny, is_dora=is_dora, targets=("attention.output", "mlp.gate"))
    write_adapter(adapter, tmp_path / "float32")
    write_adapter(adapter, tmp_path / "bfloat16", dtype="bfloat16")
    exact, rounded = read_adapter(tmp_path / "float32"), read_adapter(tmp_path / "bfloat16")
    for field in ("rank", "alpha", "targets", "is_dora", "base", "weights", "num_params"):
        assert getattr(adapter, field) == getattr(exact, field) == getattr(rounded, field)
    assert adapter.base == fingerprint(tiny)
    for path, array in adapter.tensors.items():
        np.testing.assert_array_equal(exact.tensors[path], array)
        np.testing.assert_array_equal(rounded.tensors[path], array.astype(ml_dtypes.bfloat16).astype(np.float32))
    with safe_open(tmp_path / "float32" / WEIGHTS, "np") as file:
        assert file.metadata() == {"format": "pt", "gemmary.base": adapter.base}
    with pytest.raises(FileError, match="with files: choose another name"):
        write_adapter(adapter, tmp_path / "float32")
    with pytest.raises(InputError, match="expected float32 or bfloat16 for an adapter, got 'float16'"):
        write_adapter(adapter, tmp_path / "float16", dtype="float16")


@pytest.fixture
def folder(make_tiny: Callable[..., Checkpoint], random_adapter: Callable[..., Adapter], tmp_path: Path) -> Path:
    """The folder of a good adapter."""
    write_adapter(random_adapter(make_tiny("gemma3", num_layers=1)), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "expected the peft_type LORA in adapter_config.json, got IA3: give a LoRA"),
        (
            {"bias": "all"},
            "expected an adapter of plain matrices of one rank and scale, got bias=all: merge it with PEFT",
        ),
        ({"modules_to_save": ["lm_head"]}, r"got modules_to_save=\['lm_head'\]: merge it with PEFT"),
        ({"fan_in_fan_out": True}, "got fan_in_fan_out=True: merge it with PEFT"),
        ({"rank_pattern": {"q_proj": 8}}, "got rank_pattern={'q_proj': 8}: merge it with PEFT"),
        ({"alpha_pattern": {"q_proj": 8}}, "got alpha_pattern={'q_proj': 8}: merge it with PEFT"),
        ({"init_lora_weights": "pissa"}, "got init_lora_weights=pissa: merge it with PEFT"),
        ({"r": 8}, r"expected layers\.0\..*\.down of shape \(8, 64\) for the rank 8, got \(4, 64\)"),
        ({"r": 0}, "expected a whole number > 0 for r in adapter_config.json, got 0"),
        ({"lora_alpha": "8"}, "expected a number > 0 for lora_alpha in adapter_config.json, got '8'"),
        ({"use_dora": True}, r"expected down and up and magnitude of every .* got no layers\.0"),
        ({"use_dora": "yes"}, "expected true or false for use_dora in adapter_config.json, got 'yes'"),
    ],
)
def test_a_configuration_that_cannot_be_merged_is_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    values = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(values))
    with pytest.raises(FileError, match=message):
        read_adapter(folder)


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_norm.lora_A.weight",
        f"{KEY}.lora_B.bias",
        f"{KEY}.lora_A.default.weight",
    ],
)
def test_tensors_of_other_modules_are_refused_by_name(key: str, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, key: np.ones((4, 64), np.float32)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"expected adapters of self_attn\.q_proj, .* alone, got {key[:60]}"):
        read_adapter(folder)


def test_the_text_part_of_a_model_with_images_is_read(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    renamed = {key.replace("model.layers", "model.language_model.layers"): array for key, array in tensors.items()}
    save_file(renamed, folder / WEIGHTS)
    assert read_adapter(folder).targets == TARGETS
    save_file({**tensors, **renamed}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"expected every tensor once, got .* twice"):
        read_adapter(folder)


def test_no_adapter_and_an_adapter_for_a_model_are_told_apart(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"expected a model, got the adapter adapter: give its base, and this one as"):
        open_checkpoint(folder)
    with pytest.raises(FileError, match=r"expected adapter_config\.json in .*, got none: give the folder of a LoRA"):
        read_adapter(tmp_path)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileError, match=r"expected a readable file, got .*adapter_model\.safetensors"):
        read_adapter(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_damaged_folders_are_refused_in_one_line(name: str, folder: Path) -> None:
    raw, generator, refused = (folder / name).read_bytes(), np.random.default_rng(7), 0
    head = min(2048, len(raw))
    cut = [raw[:end] for end in {*range(16), *generator.integers(0, len(raw), 40).tolist(), len(raw) - 1}]
    flipped = []
    for at in range(200):
        copy = bytearray(raw)
        copy[generator.integers(head)] ^= 1 << at % 8
        flipped.append(bytes(copy))
    for damaged in cut + flipped:
        (folder / name).unlink()
        (folder / name).write_bytes(damaged)
        try:
            read_adapter(folder)
        except GemmaryError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            refused += 1
        else:
            assert len(damaged) >= len(raw.strip()), "a file that was cut was believed"
    assert refused > 100
