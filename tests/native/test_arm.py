# SPDX-License-Identifier: Apache-2.0
"""The kernels for Arm, cross-compiled and run under qemu: the golden's words, every block format, other processors."""

import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.formats.checkpoint import open_checkpoint
from gemmary.formats.content import Blocks
from gemmary.formats.quantize import BlockType
from gemmary.generate import native_engine
from gemmary.native import runtime
from gemmary.native.runtime import NativeChunk
from gemmary.text.tokenizer import Tokenizer

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src" / "gemmary" / "native" / "src"
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SETS = ["i8mm", "dotprod", "neon", "portable"]
OWN_SIZES = (1, 128, 8, 1)  # slots, max_length, chunk_length, threads
pytestmark = pytest.mark.slow  # emulation takes seconds

Prompt = tuple[list[int], int, int]  # tokens, how many to add, how many at a time
Say = Callable[..., tuple[int, str, NDArray[np.float32]]]


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `say` and `exercise`, built for AArch64 as CMake builds the library."""
    for tool in (COMPILER, EMULATOR, "cmake"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user cmake")
    folder = tmp_path_factory.mktemp("arm")
    target = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_C_COMPILER={COMPILER}"]
    commands = [["cmake", "-S", str(SOURCES), "-B", str(folder), *target], ["cmake", "--build", str(folder)]]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    objects = [str(path) for path in folder.rglob("*.c.o")]
    for name in ("say", "exercise"):
        source, program = str(HERE / f"{name}.c"), str(folder / name)
        common = [COMPILER, "-std=c11", "-O2", "-static", f"-I{SOURCES}"]
        subprocess.run([*common, source, *objects, "-lm", "-lpthread", "-o", program], check=True)
    return folder


@pytest.fixture
def say(arm: Path, tmp_path: Path) -> Say:
    """say(config, blocks, prompts, kernels): the status, the kernels' name and the logits of a model on Arm."""

    def run(
        config: GemmaConfig,
        blocks: Iterable[tuple[str, Blocks]],
        prompts: list[Prompt],
        kernels: str = "",
        processor: str = "max",
    ) -> tuple[int, str, NDArray[np.float32]]:
        (tmp_path / "model").write_bytes(dump(config, blocks, prompts))
        command = [EMULATOR, "-cpu", processor, str(arm / "say"), str(tmp_path / "model"), kernels]
        done = subprocess.run(command, capture_output=True)
        logits = np.frombuffer(done.stdout, np.float32).reshape(-1, config.vocab_size)
        return done.returncode, done.stderr.decode(), logits

    return run


def dump(config: GemmaConfig, blocks: Iterable[tuple[str, Blocks]], prompts: list[Prompt]) -> bytes:
    """The file that say.c reads."""
    names = (*runtime._SIZES, *runtime._FLAGS, *runtime._REALS)
    values = [getattr(config, name) for name in names] + [config.attn_softcap or 0, config.final_softcap or 0]
    parts = [struct.pack("<i 10i 7f 4i", runtime.ABI, *values, *OWN_SIZES)]
    parts.append(struct.pack(f"<{config.num_layers}i", *(window or 0 for window in config.windows)))
    for path, tensor in blocks:
        raw = tensor.read(0, tensor.shape[0]).tobytes()
        parts += [struct.pack("<6q", *runtime._place(path), int(tensor.kind), *tensor.shape, len(raw)), raw]
    parts.append(struct.pack("<q", -1))
    parts += [struct.pack(f"<{3 + len(ids)}i", len(ids), more, chunk, *ids) for ids, more, chunk in prompts]
    return b"".join(parts)


@pytest.mark.parametrize("kernels", SETS)
def test_the_golden_says_its_words_on_arm(kernels: str, golden: Path, say: Say) -> None:
    checkpoint = open_checkpoint(golden / "model")
    assert checkpoint.vocabulary is not None
    tokenizer = Tokenizer(checkpoint.vocabulary)
    expected = json.loads((golden / "expected.json").read_text("utf-8"))
    prompts = [[2, *tokenizer.encode(each["prompt"])] for each in expected]
    asked = [(ids, len(each["ids"]) - 1, 1) for ids, each in zip(prompts, expected, strict=True)]
    status, used, logits = say(checkpoint.config, native_engine._blocks(checkpoint), asked, kernels)
    assert (status, used) == (0, kernels)
    for ids, each in zip(prompts, expected, strict=True):
        said, logits = np.split(logits, [len(ids) + len(each["ids"]) - 1])
        assert said[len(ids) - 1 :].argmax(axis=1).tolist() == each["ids"]


@pytest.mark.parametrize("kind", list(BlockType), ids=lambda kind: kind.name)
def test_every_set_computes_what_it_computes_on_x86(kind: BlockType, make_tiny: Callable[..., Any], say: Say) -> None:
    tiny = make_tiny("gemma3", kind)
    ids = [2, *np.random.default_rng(1).integers(0, 200, 13).tolist()]
    model = tiny.open(kernels="portable")
    here = np.concatenate([model.forward([NativeChunk(0, at, [token])]) for at, token in enumerate(ids)])
    found = {}
    for kernels in SETS:
        prompts = [(ids, 0, chunk) for chunk in (1, 8, 7, 5)]
        status, used, logits = say(tiny.config, tiny.blocks.items(), prompts, kernels)
        assert (status, used) == (0, kernels)
        one, chunks = np.split(logits, [14])
        np.testing.assert_array_equal(one[[7, 13, 6, 13, 4, 9, 13]], chunks)
        error = np.abs(one - here) / here.std()
        assert np.median(error) < 0.01 and error.max() < 0.1
        found[kernels] = one
    np.testing.assert_array_equal(found["i8mm"], found["neon"])
    np.testing.assert_array_equal(found["dotprod"], found["neon"])


def test_a_processor_runs_what_it_has(make_tiny: Callable[..., Any], say: Say) -> None:
    tiny = make_tiny("odd")
    for processor, runs in {"cortex-a53": SETS[2:], "cortex-a76": SETS[1:], "max": SETS}.items():
        for kernels in ("", *SETS):
            status, used, _ = say(tiny.config, tiny.blocks.items(), [([2, 5], 3, 2)], kernels, processor)
            expected = (0, kernels or runs[0]) if not kernels or kernels in runs else (6, "")
            assert (status, used) == expected


def test_the_exercise_succeeds_on_arm(arm: Path) -> None:
    done = subprocess.run([EMULATOR, "-cpu", "max", str(arm / "exercise")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
