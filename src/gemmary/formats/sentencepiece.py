# SPDX-License-Identifier: Apache-2.0
"""Vocabulary: pieces, scores and kinds; the same rows stand in a SentencePiece .model, a GGUF and a tokenizer.json.

A .model is a protocol buffer (sentencepiece_model.proto); what is read and written of it:

    1 pieces, each         1 piece (text)  2 score (float32)  3 kind (1 when absent)
    2 trainer_spec         3 model_type (2 = BPE)  4 size  35 byte_fallback  40-43 ids and 45-48 names of the specials
    3 normalizer_spec      1 name  2 charsmap  3 add_dummy_prefix  4 remove_extra_whitespaces  5 escape_whitespaces
"""

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gemmary.base.errors import FileError
from gemmary.formats.storage import FileBytes, written_whole

SPACE = "\u2581"  # how pieces write a space
BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


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


def read_sentencepiece(path: Path) -> Vocabulary:
    """Read a SentencePiece .model that follows Gemma's rules; `Vocabulary.from_rows` checks the pieces.

    Raises FileError for a file that is damaged, too large to be a vocabulary, not BPE, or that changes the text before
    cutting it (a prefix, joined spaces, a normalisation), which no Gemma does and the ids would not show.

    >>> import tempfile
    >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "a"], [0, 0, 0, 0, -1], [3, 3, 3, 2, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_sentencepiece(rows, Path(folder, "tokenizer.model"))
    ...     read_sentencepiece(Path(folder, "tokenizer.model")).pieces[4]
    'a'
    """
    file = FileBytes(path)
    if file.size > _LARGEST:
        raise FileError(f"expected a .model of at most {_LARGEST} bytes, got {file.size}: {path} is something else")
    return parse_sentencepiece(file.read(0, file.size).tobytes(), str(path))


def parse_sentencepiece(data: bytes, source: str) -> Vocabulary:
    """The vocabulary in the bytes of a .model; `source` says in errors where they came from. Raises as reading does.

    >>> parse_sentencepiece(b"\\x0a\\x09\\x0a", "three bytes")
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a SentencePiece .model, got three bytes with a field of 9 bytes ...
    """
    pieces: list[str] = []
    scores, kinds = array("f"), array("B")  # lists of numbers would take more memory than the pieces
    trainer: dict[int, _Value] = {}
    normalizer: dict[int, _Value] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                piece, score, kind = _row(_as_bytes(value))
                pieces.append(piece)
                scores.append(score)
                kinds.append(kind)
            elif number == 2:
                trainer |= _fields(_as_bytes(value))
            elif number == 3:
                normalizer |= _fields(_as_bytes(value))
    except (ValueError, IndexError, struct.error) as error:
        raise FileError(f"expected a SentencePiece .model, got {source} with {error}: fetch the file again") from None
    vocabulary = Vocabulary.from_rows(pieces, scores, kinds)
    _check_rules(source, trainer, normalizer, has_bytes=bool((vocabulary.kinds == Kind.BYTE).any()))
    return vocabulary


def write_sentencepiece(vocabulary: Vocabulary, path: Path) -> None:
    """Write a SentencePiece .model, with Gemma's rules, that the `sentencepiece` library gives the same ids with.

    >>> import tempfile
    >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>"], [0] * 4, [3, 3, 3, 2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_sentencepiece(rows, Path(folder, "tokenizer.model"))
    ...     Path(folder, "tokenizer.model").read_bytes()[:9]
    b'\\n\\x0e\\n\\x05<pad>'
    """
    has_bytes = bool((vocabulary.kinds == Kind.BYTE).any())
    specials = (vocabulary.unknown_id, *(vocabulary.id_of(piece) for piece in ("<bos>", "<eos>", "<pad>")))
    trainer = _field(3, _BPE) + _field(4, vocabulary.size) + _field(35, int(has_bytes))
    for offset, special in enumerate(specials):
        trainer += _field(40 + offset, special) + _field(45 + offset, vocabulary.pieces[special].encode())
    normalizer = _field(1, b"identity") + _field(3, 0) + _field(4, 0) + _field(5, 1)
    rows = zip(vocabulary.pieces, vocabulary.scores.tolist(), vocabulary.kinds.tolist(), strict=True)
    with written_whole(path) as file:
        for piece, score, kind in rows:
            file.write(_field(1, _field(1, piece.encode()) + b"\x15" + _FLOAT.pack(score) + _field(3, kind)))
        file.write(_field(2, trainer) + _field(3, normalizer))


_Value = int | bytes
_FLOAT = struct.Struct("<f")
_LARGEST = 1 << 27  # bytes; Gemma's own are 4 MB
_BPE = 2
_FIXED = {1: 8, 5: 4}  # wire types of a fixed number of bytes


def _row(data: bytes) -> tuple[str, float, int]:
    """Piece, score and kind of one message, taken at once where they stand as writers put them."""
    if len(data) > 7 and data[0] == 0x0A and data[1] < 0x80:
        after = data[1] + 2
        if data[after : after + 1] == b"\x15" and len(data) in (after + 5, after + 7):
            kind = data[after + 5 :] or b"\x18\x01"
            if kind[0] == 0x18:
                return data[2:after].decode(), _FLOAT.unpack_from(data, after + 1)[0], kind[1]
    row = dict(_fields(data))
    score = _FLOAT.unpack(_as_bytes(row.get(2, bytes(4))))[0]
    return _as_bytes(row.get(1, b"")).decode(), score, min(_as_int(row.get(3, Kind.NORMAL)), 0x7F)


def _fields(data: bytes) -> Iterator[tuple[int, _Value]]:
    """The numbered fields of a message: a number for a varint, bytes for all else; ValueError where it is cut."""
    at, end = 0, len(data)
    while at < end:
        tag, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise ValueError(f"a field of unknown wire type {wire}")
        if at + length > end:
            raise ValueError(f"a field of {length} bytes where {end - at} are left")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _field(number: int, value: _Value) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    return _number(number << 3 | 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _as_bytes(value: _Value) -> bytes:
    if isinstance(value, int):
        raise ValueError(f"the number {value} where bytes should be")
    return value


def _as_int(value: _Value) -> int:
    if isinstance(value, bytes):
        raise ValueError(f"{len(value)} bytes where a number should be")
    return value


def _check_rules(source: str, trainer: dict[int, _Value], normalizer: dict[int, _Value], *, has_bytes: bool) -> None:
    """Refuse a model whose ids would need other rules than Gemma's; absent fields have protobuf's defaults."""
    rules = (
        ("model_type BPE (2)", trainer.get(3, 1), _BPE),
        (f"byte_fallback {has_bytes}", trainer.get(35, 0), int(has_bytes)),
        ("no normalisation", normalizer.get(2, b""), b""),
        ("add_dummy_prefix off", normalizer.get(3, 1), 0),
        ("remove_extra_whitespaces off", normalizer.get(4, 1), 0),
        ("escape_whitespaces on", normalizer.get(5, 1), 1),
    )
    for rule, got, expected in rules:
        if got != expected:
            came = f"{len(got)} bytes of rules" if isinstance(got, bytes) else str(got)
            raise FileError(f"expected Gemma's rule {rule} in {source}, got {came}: use a Gemma vocabulary")


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
        if vocabulary.pieces[at] not in BYTE_PIECES:
            raise FileError(
                f"expected BYTE pieces <0x00> to <0xFF>, got {vocabulary.pieces[at]!r} at {at}: fetch the file again"
            )
    if int((vocabulary.kinds == Kind.BYTE).sum()) not in (0, 256):
        raise FileError("expected all 256 BYTE pieces or none, got some: fetch the file again")


def _is_text(piece: str) -> bool:
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in piece)
