# SPDX-License-Identifier: Apache-2.0
"""A real engine small enough to read: a recurrent model in float64 whose logits depend on every token before.

It keeps the state after each position of each slot, as a cache does, and refuses every chunk that does not follow on
from what the slot holds.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gemmary.base.config import GemmaConfig
from gemmary.formats.sentencepiece import Vocabulary
from gemmary.generate.generator import Chunk
from gemmary.generate.request import Score
from gemmary.text.tokenizer import Tokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
WIDTH, PADDING_ROWS = 24, 3


class ToyEngine:
    """An Engine: state = rotate(state) + embedding[id], tanh after; logits = output @ state."""

    def __init__(
        self,
        *,
        num_slots: int = 3,
        max_length: int = 64,
        chunk_length: int = 4,
        rollback: int = 1000,
        num_drafts: int = 0,
    ) -> None:
        vocab_size = len(SPECIAL) + 256 + PADDING_ROWS
        self.config = GemmaConfig(
            vocab_size=vocab_size, num_layers=1, model_dim=WIDTH, num_heads=1, num_kv_heads=1, mlp_dim=WIDTH
        )
        self.num_slots, self.max_length, self.chunk_length = num_slots, max_length, chunk_length
        self.num_drafts = num_drafts
        self.rollback = rollback  # positions that a slot can forget; a ring cache has such a limit
        random = np.random.default_rng(0)
        self.rotation = np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0]
        self.embedding = random.standard_normal((vocab_size, WIDTH)) / 2
        self.output = random.standard_normal((vocab_size, WIDTH)) * 2
        self.output[1] = self.output[5] = self.output[1] * 0.1  # ends are rare
        self.states: list[list[np.ndarray]] = [[] for _ in range(num_slots)]
        self.granted: dict[int, int] = {}
        self.calls: list[list[Chunk]] = []
        self.before_call: Callable[[], None] = lambda: None

    def logits(self, chunks: Sequence[Chunk]) -> np.ndarray:
        wanted = [
            states[len(states) - chunk.num_logits :] for states, chunk in zip(self._run(chunks), chunks, strict=True)
        ]
        return np.reshape(
            [self.output @ state for states in wanted for state in states], (-1, len(self.output))
        ).astype(np.float32)

    candidates = logits

    def score(self, chunks: Sequence[Chunk], targets: Sequence[Sequence[int]]) -> list[Score]:
        scores = []
        for states, wanted in zip(self._run(chunks), targets, strict=True):
            logits = np.stack(states) @ self.output.T
            normal = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            picked = normal[np.arange(len(wanted)), list(wanted)]
            scores.append(Score(log_probs=picked.astype(np.float32), is_greedy=logits.argmax(axis=1) == wanted))
        return scores

    def keep(self, slot: int, length: int) -> int:
        kept = length if len(self.states[slot]) - length <= self.rollback else 0
        self.granted[slot] = kept
        return kept

    def _run(self, chunks: Sequence[Chunk]) -> list[list[np.ndarray]]:
        """The states after each token of each chunk."""
        self.before_call()
        self.calls.append(list(chunks))
        assert len({chunk.slot for chunk in chunks}) == len(chunks) <= self.num_slots, "a slot runs once a call"
        news = []
        for chunk in chunks:
            states = self.states[chunk.slot]
            assert 0 < len(chunk.ids) <= self.chunk_length and chunk.end <= self.max_length
            is_next = len(states) - self.num_drafts <= chunk.start <= len(states)
            assert is_next or chunk.start in (0, self.granted.pop(chunk.slot, 0)), "the slot does not hold this"
            assert chunk.num_logits <= 1 + self.num_drafts
            del states[chunk.start :]
            for token_id in chunk.ids:
                before = self.rotation @ states[-1] if states else np.zeros(WIDTH)
                states.append(np.tanh(before + self.embedding[token_id]))
            news.append(states[chunk.start :])
        return news


@pytest.fixture
def toy_engine() -> type[ToyEngine]:
    """The class, to be made with the sizes a test needs."""
    return ToyEngine


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """One id for each byte after the special pieces."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [3, 3, 3, 2, 3, 3] + [6] * 256
    return Tokenizer(Vocabulary.from_rows(pieces, [0.0] * len(pieces), kinds))
