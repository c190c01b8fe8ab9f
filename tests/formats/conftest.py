# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints with random weights: one for the features of each generation, the same for the same seed."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import GemmaryError
from gemmary.formats.checkpoint import Checkpoint, open_checkpoint
from gemmary.formats.sentencepiece import Kind, Vocabulary
from gemmary.formats.tensors import weights

SIZES = {"vocab_size": 512, "model_dim": 64, "num_heads": 4, "head_dim": 32, "mlp_dim": 96, "query_scale": 32**-0.5}
CONFIGS = {
    "gemma1": GemmaConfig(**SIZES, num_layers=3, num_kv_heads=1),
    "gemma2": GemmaConfig(
        **SIZES,
        num_layers=4,
        num_kv_heads=2,
        window_pattern=(16, None),
        attn_softcap=50.0,
        final_softcap=30.0,
        post_norm=True,
    ),
    "gemma3": GemmaConfig(
        **SIZES,
        num_layers=7,
        num_kv_heads=4,
        window_pattern=(*(16,) * 5, None),
        rope_base=1_000_000.0,
        rope_scale=8.0,
        post_norm=True,
        qk_norm=True,
        max_length=131_072,
    ),
}


def tiny_vocabulary(size: int) -> Vocabulary:
    """The special pieces, a run of spaces, the bytes, the letters, and made-up words up to `size`."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    known = [*specials, "▁▁", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(97, 123))]
    kinds = [Kind.CONTROL] * 3 + [Kind.UNKNOWN] + [Kind.USER_DEFINED] * 3 + [Kind.BYTE] * 256 + [Kind.NORMAL] * 27
    pairs = [first + second for first in "▁aeiournst" for second in map(chr, range(97, 123))]
    pieces = known + pairs[: size - len(known)]
    kinds += [Kind.NORMAL] * (size - len(known))
    return Vocabulary.from_rows(pieces, -np.arange(size, dtype=np.float32), kinds)


def tiny_checkpoint(config: GemmaConfig, seed: int, dtype: str = "float32") -> Checkpoint:
    """Random weights; the norms hold values so small that 1 + w rounds them away, and a negative zero."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, NDArray[np.float32]] = {}
    for path, row, _ in weights(config):
        array = generator.normal(0, 0.05, row.shape(config)).astype(np.float32)
        if row.is_norm:
            array[:4] = [1e-9, -3e-20, -0.0, 1e-38]
        arrays[path] = array.astype(dtype)
    tensors = {path: (lambda array=array: array) for path, array in arrays.items()}
    return Checkpoint(config=config, tensors=tensors, vocabulary=tiny_vocabulary(config.vocab_size))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These models are so small that PyTorch waits longer for a second thread than it computes."""
    torch = sys.modules.get("torch")
    known = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(1)
    yield
    if torch:
        torch.set_num_threads(known)


@pytest.fixture(params=sorted(CONFIGS))
def tiny(request: pytest.FixtureRequest) -> Checkpoint:
    """A tiny checkpoint in float32 with the features of each generation in turn."""
    return tiny_checkpoint(CONFIGS[request.param], seed=7)


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Checkpoint]:
    """Makes a tiny checkpoint: generation, seed, dtype."""

    def make(generation: str, seed: int = 7, dtype: str = "float32", **changes: object) -> Checkpoint:
        return tiny_checkpoint(CONFIGS[generation].with_(**changes), seed, dtype)

    return make


@pytest.fixture
def refused() -> Callable[..., int]:
    """Opens and reads damaged copies of a checkpoint; how many gave an error, which must be one line of ours.

    Half of the flipped bits are in the first `head` bytes, where lengths and names are. Memory is limited, so that a
    length which is believed shows itself.
    """

    def run(file: Path, opened: Path | None = None, *, head: int = 2048, flips: int = 300, cuts: int = 60) -> int:
        raw, generator = file.read_bytes(), np.random.default_rng(file.stat().st_size)
        ends = {*range(min(16, len(raw))), *generator.integers(0, len(raw), cuts).tolist(), len(raw) - 1}
        damaged: list[bytes] = [raw[:end] for end in sorted(ends)]
        for at in range(flips):
            copy = bytearray(raw)
            for _ in range(1 + at % 3):
                copy[generator.integers(0, min(head, len(raw)) if at % 2 else len(raw))] ^= 1 << generator.integers(8)
            damaged.append(bytes(copy))
        with limited_memory(512 << 20):
            return sum(is_refused(file, copy, opened or file) for copy in damaged)

    return run


def is_refused(file: Path, content: bytes, opened: Path) -> bool:
    file.unlink()  # a new file: readers of the last one may be open
    file.write_bytes(content)
    try:
        for read in open_checkpoint(opened).tensors.values():
            read()
    except GemmaryError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 1000
        return True
    return False


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Allows this process that many bytes beside what it has; does nothing where the system cannot tell."""
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    import resource

    known = resource.getrlimit(resource.RLIMIT_AS)
    now = int(status.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, known[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, known)
