# SPDX-License-Identifier: Apache-2.0
"""Vocabulary: pieces, scores and kinds; the same rows stand in a SentencePiece .model, a GGUF and a tokenizer.json."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Kind(IntEnum):
    """What a piece is; the numbers are SentencePiece's and GGUF's.

    >>> Kind(6).name
    'BYTE'
    """

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """The rows of a tokenizer; spaces inside pieces are written as U+2581, as in SentencePiece.

    >>> Vocabulary(pieces=("<unk>",), scores=np.zeros(1, np.float32), kinds=np.array([2], np.int8)).size
    1
    """

    pieces: tuple[str, ...]
    scores: NDArray[np.float32]
    kinds: NDArray[np.int8]

    @property
    def size(self) -> int:
        """The number of pieces.

        >>> Vocabulary(pieces=(), scores=np.zeros(0, np.float32), kinds=np.zeros(0, np.int8)).size
        0
        """
        return len(self.pieces)
