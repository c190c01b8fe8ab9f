# SPDX-License-Identifier: Apache-2.0
"""A tiny checkpoint on disk, the command line in this process, and a model that answers by script."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from gemmary.base.config import GemmaConfig
from gemmary.cli.main import run
from gemmary.formats.checkpoint import Checkpoint, write_checkpoint
from gemmary.formats.sentencepiece import Kind, Vocabulary
from gemmary.formats.tensors import weights
from gemmary.generate.generator import Generator
from gemmary.generate.scripted import ScriptedGenerator

CONFIG = GemmaConfig(num_layers=2, model_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=64, vocab_size=288)
Script = Callable[[Generator | dict[str, str]], list[dict[str, object]]]


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command line in this process."""

    def call(*arguments: str) -> Ended:
        capsys.readouterr()
        status = run(list(arguments))
        return Ended(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a model with random weights and one token for each byte."""
    random = np.random.default_rng(0)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxy"]
    kinds = [Kind.CONTROL] * 3 + [Kind.UNKNOWN] + [Kind.CONTROL] * 2 + [Kind.BYTE] * 256 + [Kind.NORMAL] * 26
    vocabulary = Vocabulary.from_rows(pieces, -np.arange(len(pieces), dtype=np.float32), kinds)
    arrays = {path: random.normal(0, 0.1, row.shape(CONFIG)).astype(np.float32) for path, row, _ in weights(CONFIG)}
    tensors = {path: (lambda array=array: array) for path, array in arrays.items()}
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    checkpoint = Checkpoint(config=CONFIG.with_(query_scale=0.25), tensors=tensors, vocabulary=vocabulary)
    write_checkpoint(checkpoint, path, format="gguf")
    return path


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Put a generator, or one with these replies, in the place of every model; gives the list of what was asked for."""

    def put(replies: Generator | dict[str, str]) -> list[dict[str, object]]:
        generator = ScriptedGenerator(replies) if isinstance(replies, dict) else replies
        loaded: list[dict[str, object]] = []

        def load(name: str | None, **settings: object) -> Generator:
            loaded.append({"name": name, **settings})
            return generator

        monkeypatch.setattr("gemmary.api.load", load)
        return loaded

    return put
