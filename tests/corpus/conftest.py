# SPDX-License-Identifier: Apache-2.0
"""A vocabulary of Gemma's specials and all bytes, and Gemma 3's from the embedded default."""

from pathlib import Path

import pytest

from gemmary.formats.gguf import read_gguf
from gemmary.formats.sentencepiece import Kind, Vocabulary
from gemmary.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def bytewise() -> Tokenizer:
    """A token a byte: <pad>, <eos>, <bos>, <unk>, <start_of_turn>, <end_of_turn>, then byte b as id 6 + b."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    kinds = [3, 3, 3, 2, 3, 3] + [int(Kind.BYTE)] * 256
    return Tokenizer(Vocabulary.from_rows([*specials, *(f"<0x{b:02X}>" for b in range(256))], [0.0] * 262, kinds))


@pytest.fixture(scope="session")
def gemma(default_checkpoint: Path) -> Tokenizer:
    """The 262,144 pieces of Gemma 3."""
    vocabulary = read_gguf(default_checkpoint).vocabulary
    assert vocabulary is not None
    return Tokenizer(vocabulary)
