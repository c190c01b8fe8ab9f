# SPDX-License-Identifier: Apache-2.0
"""The protocols everything else stands on: Generator (three verbs) and Embedder above, Engine (slots) below.

serve, evaluate, safety, train, cli ──► Generator.stream / complete / score, Embedder.embed
                                            │   scheduler.py, sampling.py: plain code, shared
                                        Engine.logits / score / embed / keep   (Keras, native)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.generate.request import Completion, Request, Score, Token
from gemmary.text.tokenizer import Tokenizer


class Stream(Protocol):
    """The tokens of one reply as they come, the last one with a finish reason; a Python generator is one."""

    def __iter__(self) -> Iterator[Token]:
        """Itself."""
        ...

    def __next__(self) -> Token:
        """The next token, when there is one."""
        ...

    def close(self) -> None:
        """End the reply and free its place at once; where the generator says so, from any thread."""
        ...


class Generator(Protocol):
    """Something that continues token sequences. Nothing above this line knows which engine it is."""

    @property
    def config(self) -> GemmaConfig:
        """The model's sizes and features."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    @property
    def max_length(self) -> int:
        """The most tokens of a prompt and its reply together."""
        ...

    def stream(self, request: Request) -> Stream:
        """One reply, token by token; safe from any thread; closing the stream frees its place at once."""
        ...

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Whole replies, in the order of the requests, computed together."""
        ...

    def score(self, sequences: Sequence[Sequence[int]], contexts: Sequence[int] | None = None) -> list[Score]:
        """How probable each sequence's tokens are; a sequence begins with the BOS id.

        `contexts` says how many first tokens of each are given and not judged: 1 unless told, the BOS id. What
        sequences have in common there is computed once.
        """
        ...


@runtime_checkable
class Embedder(Protocol):
    """A Generator that can also say what it makes of a whole text: one vector."""

    def embed(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The (N, D) means of the sequences' hidden states after the last norm, each of length 1.

        A sequence begins with the BOS id.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Tokens to run through one slot: `ids` stand at positions start, start + 1, ...

    Logits are wanted after the last `num_logits` of them: after the last one alone unless more tokens are drafts to be
    judged, or none since a prompt goes on.

    >>> Chunk(slot=0, start=0, ids=(2, 651)).end
    2
    """

    slot: int
    start: int
    ids: tuple[int, ...]
    num_logits: int = 1

    @property
    def end(self) -> int:
        """The position after the last token.

        >>> Chunk(slot=0, start=5, ids=(7,)).end
        6
        """
        return self.start + len(self.ids)


class Engine(Protocol):
    """What a runtime must give. A slot is one sequence's place in the key-value cache."""

    @property
    def config(self) -> GemmaConfig:
        """The model's sizes and features."""
        ...

    @property
    def num_slots(self) -> int:
        """How many sequences can be in flight at once."""
        ...

    @property
    def max_length(self) -> int:
        """The most positions a slot can hold."""
        ...

    @property
    def chunk_length(self) -> int:
        """The most tokens of one slot in one call."""
        ...

    @property
    def num_drafts(self) -> int:
        """How many drafted tokens a call may judge, in all slots together; a slot can be taken back by as many."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that are read for a token."""
        ...

    def logits(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run the chunks and return the (sum of num_logits, V) float32 logits that they want, in their order."""
        ...

    def candidates(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """The same, but tokens that are not the most probable may have -inf; what is not -inf is exact."""
        ...

    def score(self, chunks: Sequence[Chunk], targets: Sequence[Sequence[int]]) -> list[Score]:
        """Run the chunks and judge, for each of their tokens, the target that is said to follow it."""
        ...

    def embed(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run the chunks; of each the sum over its tokens of the final norm's output, (number of chunks, D)."""
        ...

    def keep(self, slot: int, length: int) -> int:
        """Of a slot's first `length` positions, how many a new sequence may go on from: `length`, or 0."""
        ...
