# SPDX-License-Identifier: Apache-2.0
"""Tiny models in every block format, with the float64 arrays that their bytes mean."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import InputError
from gemmary.formats.content import Blocks
from gemmary.formats.quantize import LAYOUTS, BlockType, dequantize, quantize
from gemmary.formats.tensors import weights
from gemmary.native.runtime import Model, kernel_sets

SIZES = {"vocab_size": 200, "model_dim": 256, "head_dim": 32, "mlp_dim": 1280, "query_scale": 32**-0.5}
CONFIGS = {
    "gemma1": GemmaConfig(**SIZES, num_layers=2, num_heads=8, num_kv_heads=1),
    "gemma2": GemmaConfig(
        **SIZES,
        num_layers=4,
        num_heads=8,
        num_kv_heads=2,
        window_pattern=(16, None),
        attn_softcap=5.0,
        final_softcap=3.0,
        post_norm=True,
    ),
    "gemma3": GemmaConfig(
        **SIZES,
        num_layers=4,
        num_heads=8,
        num_kv_heads=8,
        window_pattern=(9, 9, None),
        rope_base=1_000_000.0,
        rope_scale=8.0,
        post_norm=True,
        qk_norm=True,
    ),
    "odd": GemmaConfig(  # sizes that fill no block, no group and no vector
        vocab_size=37,
        num_layers=3,
        model_dim=20,
        num_heads=3,
        num_kv_heads=1,
        head_dim=10,
        mlp_dim=1050,
        window_pattern=(3, None),
        norm_plus_one=False,
        qk_norm=True,
    ),
}


@dataclass(frozen=True)
class Tiny:
    """A model's configuration, its weights as a file holds them, and the arrays these mean."""

    config: GemmaConfig
    blocks: dict[str, Blocks]
    arrays: dict[str, NDArray[np.float64]]

    def open(self, **settings: int | str | None) -> Model:
        """The model in the native engine."""
        defaults = {"num_slots": 1, "max_length": 64, "chunk_length": 8, "num_threads": 1}
        model = Model(self.config, **{**defaults, **settings})  # type: ignore[arg-type]
        model.load(self.blocks.items())
        return model


def random_blocks(kind: BlockType, shape: tuple[int, int], random: np.random.Generator) -> NDArray[np.uint8]:
    """Bytes of a block format drawn at random, of values around a few hundredths."""
    if kind.is_float or kind in (BlockType.Q8_0, BlockType.Q4_0):
        return quantize(random.normal(0, 0.06, shape).astype(np.float32), kind).ravel()
    count = shape[0] * shape[1] // kind.block_length
    raw = random.integers(0, 256, (count, kind.block_bytes), np.uint8).view(LAYOUTS[kind])[:, 0]
    steps = {"Q4_1": 16, "Q5_0": 32, "Q5_1": 32, "Q4_K": 16 * 63, "Q5_K": 32 * 63, "Q6_K": 64 * 127}[kind.name]
    raw["d"] = random.uniform(0.1, 0.2, count) / steps
    for name, size in (("m", -0.5), ("e", 1 / 63)):
        if name in LAYOUTS[kind].fields:  # type: ignore[operator]
            raw[name] = random.uniform(0.1, 0.2, count) * size
    return np.frombuffer(raw.tobytes(), np.uint8)


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Tiny]:
    """make_tiny("gemma3", BlockType.Q4_0): random weights, the same for the same arguments."""

    def make(name: str, kind: BlockType = BlockType.Q8_0) -> Tiny:
        config, random = CONFIGS[name], np.random.default_rng(5)
        blocks, arrays = {}, {}
        for path, row, _ in weights(config):
            shape = (1, *row.shape(config)) if row.is_norm else row.gguf.shape(config)
            rows = (shape[0], shape[1])
            each = BlockType.F32 if row.is_norm else BlockType.Q8_0 if path == "embedding" else kind
            if rows[1] % each.block_length:
                each = BlockType.F32
            raw = random_blocks(each, rows, random)
            blocks[path] = Blocks(kind=each, shape=rows, read=_reader(raw, len(raw) // rows[0]))
            arrays[path] = dequantize(raw, each, rows).astype(np.float64).reshape(row.shape(config))
        return Tiny(config, blocks, arrays)

    return make


def _reader(raw: NDArray[np.uint8], row_bytes: int) -> Callable[[int, int], NDArray[np.uint8]]:
    return lambda first, count: raw[first * row_bytes : (first + count) * row_bytes]


@pytest.fixture(scope="session", params=kernel_sets())
def kernels(request: pytest.FixtureRequest, make_tiny: Callable[..., Tiny]) -> str:
    """Each set of kernels that was built and runs here."""
    name: str = request.param
    try:
        make_tiny("odd").open(kernels=name)
    except InputError:
        pytest.skip(f"this processor lacks the instructions of {name}")
    return name
