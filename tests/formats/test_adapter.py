# SPDX-License-Identifier: Apache-2.0
"""Adapters against their formula in float64; the fingerprint that says which model one is for; what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemmary.base.errors import CheckpointError, InputError
from gemmary.formats.adapter import MODULES, TARGETS, Adapter, fingerprint, merged, resolve_targets
from gemmary.formats.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from gemmary.formats.tensors import weights


@pytest.mark.parametrize("is_dora", [False, True])
def test_merged_weights_are_those_of_the_formula(
    is_dora: bool, tiny: Checkpoint, random_adapter: Callable[..., Adapter]
) -> None:
    adapter = random_adapter(tiny, is_dora=is_dora)
    model = merged(tiny, adapter)
    for path, row, _ in weights(tiny.config):
        base = tiny.tensors[path]()
        if path.split(".", 2)[-1] not in TARGETS:
            np.testing.assert_array_equal(model.tensors[path](), base)
            continue
        inputs = "N H" if row.dims == "D N H" else row.dims.split()[-1]
        into = int(np.prod([tiny.config.sizes[letter] for letter in inputs.split()]))
        up, down = (adapter.tensors[f"{path}.{part}"].astype(np.float64) for part in ("up", "down"))
        expected = base.reshape(-1, into) + 8 / 4 * up @ down
        if is_dora:
            norms = np.sqrt((expected**2).sum(1))
            expected *= (adapter.tensors[f"{path}.magnitude"] / norms)[:, None]
        found = model.tensors[path]()
        assert (found.dtype, found.shape) == (np.float32, base.shape)
        np.testing.assert_allclose(found.reshape(-1, into), expected, rtol=0, atol=2e-7 * abs(expected).max())


def test_only_adapted_matrices_leave_their_blocks_and_can_be_read_by_rows(
    make_tiny: Callable[..., Checkpoint], random_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    write_checkpoint(make_tiny("gemma3"), tmp_path / "m.gguf", format="gguf", dtype="q4_0")
    base = open_checkpoint(tmp_path / "m.gguf")
    model = merged(base, random_adapter(base, targets=("attention.query", "mlp.down"), is_dora=True))
    adapted = {path for path in base.blocks if path.endswith(("attention.query", "mlp.down"))}
    assert {path for path in base.blocks if model.blocks[path] is not base.blocks[path]} == adapted
    for path in adapted:
        blocks = model.blocks[path]
        rows = blocks.read(16, 32).view(np.float32).reshape(32, -1)
        np.testing.assert_allclose(rows, model.tensors[path]().reshape(blocks.shape)[16:48], rtol=0, atol=1e-7)
    assert model.tensors["embedding"] is base.tensors["embedding"]


def test_nothing_is_read_before_it_is_asked_for(tiny: Checkpoint, random_adapter: Callable[..., Adapter]) -> None:
    def never() -> np.ndarray:
        raise AssertionError("a matrix was read")

    adapter = random_adapter(tiny)
    lazy = {path: read if "norm" in path else never for path, read in tiny.tensors.items()}
    merged(replace(tiny, tensors=lazy), adapter)


def test_the_fingerprint_is_that_of_the_model_and_not_of_its_file(tiny: Checkpoint, tmp_path: Path) -> None:
    expected = fingerprint(tiny)
    for name, format, dtype in (
        ("folder", "safetensors", "float32"),
        ("preset", "keras", "float32"),
        ("m.ckpt", "torch", "float32"),
        ("q4_0.gguf", "gguf", "q4_0"),
        ("q8_0.gguf", "gguf", "q8_0"),
    ):
        write_checkpoint(tiny, tmp_path / name, format=format, dtype=dtype)
        assert fingerprint(open_checkpoint(tmp_path / name)) == expected, name


def test_bfloat16_norms_survive_where_1_is_added(tiny: Checkpoint) -> None:
    """What another program's GGUF says of a model published in bfloat16: 1 + w in float32, and no more."""
    norms = {path: row for path, row, _ in weights(tiny.config) if row.is_norm}
    random = np.random.default_rng(0)
    rounded = {path: random.normal(0, 2, row.shape(tiny.config)).astype("bfloat16") for path, row in norms.items()}
    one = np.float32(1)
    shifted = {path: (array.astype(np.float32) + one) - one for path, array in rounded.items()}
    models = [
        replace(tiny, tensors={**tiny.tensors, **{path: lambda array=array: array for path, array in each.items()}})
        for each in (rounded, shifted)
    ]
    assert fingerprint(models[0]) == fingerprint(models[1]) != fingerprint(tiny)


def test_the_default_is_known_by_the_norms_it_was_published_with(default_checkpoint: Path) -> None:
    """Its file has 1 + w; Google's has the w of bfloat16, which these are when they are rounded to it."""
    found = open_checkpoint(default_checkpoint)
    norms = {path: found.tensors[path]() for path, row, _ in weights(found.config) if row.is_norm}
    rounded = {path: (lambda array=array: array.astype("bfloat16")) for path, array in norms.items()}
    assert fingerprint(replace(found, tensors=rounded)) == fingerprint(found) == "4c77f51e80b16236"


def test_the_fingerprint_changes_with_the_norms_and_the_sizes(make_tiny: Callable[..., Checkpoint]) -> None:
    base = make_tiny("gemma3")
    tuned = base.tensors["final_norm"]() + np.float32(0.002)
    others = [
        replace(base, tensors={**base.tensors, "final_norm": lambda: tuned}),
        make_tiny("gemma3", vocab_size=513),
        make_tiny("gemma3", seed=8),
    ]
    assert fingerprint(base) not in {fingerprint(each) for each in others}


def test_an_adapter_of_another_model_is_refused(
    make_tiny: Callable[..., Checkpoint], random_adapter: Callable[..., Adapter]
) -> None:
    base = make_tiny("gemma3")
    adapter = random_adapter(base)
    with pytest.raises(
        CheckpointError, match=rf"expected the model {adapter.base} that .* got the model [0-9a-f]{{16}}:"
    ):
        merged(make_tiny("gemma3", seed=8), adapter)
    unknown = replace(adapter, base="")
    merged(make_tiny("gemma3", seed=8), unknown)
    with pytest.raises(
        CheckpointError, match=r"gate\.up of shape \(97, 4\), got \(96, 4\): the adapter is for another"
    ):
        merged(make_tiny("gemma3", mlp_dim=97), unknown)
    with pytest.raises(CheckpointError, match=r"expected layers\.3\..* in the model, got 3 layers: the adapter is for"):
        merged(make_tiny("gemma3", num_layers=3), unknown)


def test_parts_that_do_not_fit_together_are_refused(
    make_tiny: Callable[..., Checkpoint], random_adapter: Callable[..., Adapter]
) -> None:
    adapter = random_adapter(make_tiny("gemma3"), is_dora=True)
    path = "layers.2.mlp.down"

    def changed(**parts: np.ndarray | None) -> dict[str, np.ndarray]:
        tensors = {**adapter.tensors, **{f"{path}.{part}": array for part, array in parts.items()}}
        return {name: array for name, array in tensors.items() if array is not None}

    up = adapter.tensors[f"{path}.up"]
    nan = np.full_like(up, np.nan)
    for tensors, message in (
        (changed(up=None), r"got no layers\.2\.mlp\.down\.up: the adapter is incomplete"),
        (changed(magnitude=None), r"got no layers\.2\.mlp\.down\.magnitude"),
        (changed(other=up), r"got layers\.2\.mlp\.down\.other"),
        (changed(up=up[:, :3]), r"up of shape \(64, 4\) for the rank 4, got \(64, 3\)"),
        (changed(up=up[0, 0]), r"up of shape \(4,\) for the rank 4, got \(\)"),
        (changed(magnitude=up), r"magnitude of shape \(64,\) for the rank 4, got \(64, 4\)"),
        (changed(up=nan), r"expected finite values in layers\.2\.mlp\.down\.up, got NaN"),
    ):
        with pytest.raises(CheckpointError, match=message):
            replace(adapter, tensors=tensors)
    with pytest.raises(
        CheckpointError, match=r"expected tensors for the targets mlp\.up, got some for attention\.key, "
    ):
        replace(adapter, targets=("mlp.up",))
    with pytest.raises(CheckpointError, match="expected rank and alpha > 0, got 4 and 0"):
        replace(adapter, alpha=0.0)


def test_a_product_past_float32_is_refused(tiny: Checkpoint, random_adapter: Callable[..., Adapter]) -> None:
    adapter = random_adapter(tiny)
    huge = replace(adapter, tensors={path: array * np.float32(1e30) for path, array in adapter.tensors.items()})
    with pytest.raises(CheckpointError, match=r"expected finite values in layers\.0\.mlp\.up with its adapter"):
        merged(tiny, huge).tensors["layers.0.mlp.up"]()


def test_targets_may_be_given_in_both_languages() -> None:
    assert (
        resolve_targets(TARGETS) == TARGETS == resolve_targets(MODULES.values()) == resolve_targets(["mlp.up", "all"])
    )
    assert resolve_targets(["down_proj", "self_attn.q_proj"]) == ("attention.query", "mlp.down")
    for wrong in (["attention.query_norm"], ["embed_tokens"], [], ["lm_head", "all"]):
        with pytest.raises(InputError, match=r"expected targets of attention\.query, .* or all, got"):
            resolve_targets(wrong)
