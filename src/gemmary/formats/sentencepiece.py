# SPDX-License-Identifier: Apache-2.0
"""Vocabulary: pieces, scores and kinds; the same rows stand in a SentencePiece .model, a GGUF and a tokenizer.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gemmary.base.errors import FileError

SPACE = "\u2581"  # how pieces write a space


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

    @classmethod
    def from_rows(cls, pieces: Sequence[str], scores: ArrayLike, kinds: ArrayLike) -> "Vocabulary":
        """Check the rows of a file and bring them into one form.

        GGUF writes the spaces of USER_DEFINED pieces as spaces and may call `<unk>` a CONTROL piece: both put right.
        Raises FileError for columns of unequal length, unknown kinds, scores that are not finite, pieces that are
        empty, twice there or not valid text, and missing special pieces.

        >>> Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "  "], [0] * 5, [3, 3, 3, 3, 4]).pieces[4]
        '▁▁'
        """
        score_row, kind_row = np.asarray(scores, np.float32), np.array(kinds, np.int64)
        if not len(pieces) == score_row.size == kind_row.size:
            raise FileError(
                f"expected as many scores and kinds as the {len(pieces)} pieces, got {score_row.size} and "
                f"{kind_row.size}: the file is damaged, fetch it again"
            )
        unknown = np.flatnonzero((kind_row < min(Kind)) | (kind_row > max(Kind)))
        if unknown.size:
            raise FileError(
                f"expected piece kinds 1 to 6, got {kind_row[unknown[0]]} for piece {unknown[0]}: fetch the file again"
            )
        if not np.isfinite(score_row).all():
            at = int(np.flatnonzero(~np.isfinite(score_row))[0])
            raise FileError(f"expected finite scores, got {score_row[at]} for piece {at}: fetch the file again")
        rows = list(pieces)
        for at in np.flatnonzero(kind_row == Kind.USER_DEFINED).tolist():
            rows[at] = rows[at].replace(" ", SPACE)
        if not (kind_row == Kind.UNKNOWN).any() and "<unk>" in rows:
            kind_row[rows.index("<unk>")] = Kind.UNKNOWN
        vocabulary = cls(pieces=tuple(rows), scores=score_row.ravel(), kinds=kind_row.astype(np.int8))
        _check_pieces(vocabulary)
        return vocabulary

    @property
    def size(self) -> int:
        """The number of pieces.

        >>> Vocabulary(pieces=(), scores=np.zeros(0, np.float32), kinds=np.zeros(0, np.int8)).size
        0
        """
        return len(self.pieces)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each piece.

        >>> Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>"], [0] * 4, [3, 3, 3, 2]).ids["<bos>"]
        2
        """
        return dict(zip(self.pieces, range(len(self.pieces)), strict=True))

    def id_of(self, piece: str) -> int:
        """The id of a piece that must be there; raises FileError when it is not.

        >>> Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>"], [0] * 4, [3, 3, 3, 2]).id_of("<eos>")
        1
        """
        found = self.ids.get(piece)
        if found is None:
            raise FileError(
                f"expected the piece {piece!r} in the vocabulary, got {self.size} others: use a Gemma vocabulary"
            )
        return found

    @property
    def unknown_id(self) -> int:
        """The id of the piece for what no other piece covers.

        >>> Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>"], [0] * 4, [3, 3, 3, 2]).unknown_id
        3
        """
        return int(np.argmax(self.kinds == Kind.UNKNOWN))


def _check_pieces(vocabulary: Vocabulary) -> None:
    """The checks of `from_rows` that need the pieces themselves."""
    if len(vocabulary.ids) != vocabulary.size:
        at = next(at for at, piece in enumerate(vocabulary.pieces) if vocabulary.ids[piece] != at)
        raise FileError(f"expected every piece once, got {vocabulary.pieces[at]!r} twice: fetch the file again")
    if "" in vocabulary.ids:
        raise FileError(f"expected pieces of text, got an empty one at {vocabulary.ids['']}: fetch the file again")
    try:
        "".join(vocabulary.pieces).encode()
    except UnicodeEncodeError:
        at = next(at for at, piece in enumerate(vocabulary.pieces) if not _is_text(piece))
        raise FileError(
            f"expected pieces of valid Unicode, got {vocabulary.pieces[at]!r} at {at}: fetch the file again"
        ) from None
    for special in ("<pad>", "<eos>", "<bos>"):
        kind = vocabulary.kinds[vocabulary.id_of(special)]
        if kind != Kind.CONTROL:
            raise FileError(f"expected {special} to be a CONTROL piece, got kind {kind}: use a Gemma vocabulary")
    count = int((vocabulary.kinds == Kind.UNKNOWN).sum())
    if count != 1:
        raise FileError(f"expected one piece of kind UNKNOWN, got {count}: use a Gemma vocabulary")
    for at in np.flatnonzero(vocabulary.kinds == Kind.BYTE).tolist():
        if vocabulary.pieces[at] not in _BYTE_PIECES:
            raise FileError(
                f"expected BYTE pieces <0x00> to <0xFF>, got {vocabulary.pieces[at]!r} at {at}: fetch the file again"
            )
    if int((vocabulary.kinds == Kind.BYTE).sum()) not in (0, 256):
        raise FileError("expected all 256 BYTE pieces or none, got some: fetch the file again")


_BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def _is_text(piece: str) -> bool:
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in piece)
