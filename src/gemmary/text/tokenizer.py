# SPDX-License-Identifier: Apache-2.0
"""Tokenizer: text to token ids and back, equal to SentencePiece's ids."""

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Interface sketch, replaced by the real class."""

    bos_id: int
    eos_id: int
    pad_id: int
    stop_ids: frozenset[int]
    vocab_size: int

    def encode(self, text: str) -> list[int]: ...
    def prompt(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
