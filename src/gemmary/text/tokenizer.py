# SPDX-License-Identifier: Apache-2.0
"""Tokenizer: text to token ids and back, with exactly SentencePiece's ids.

    text ──UTF-8──► native/pieces.py, tokens.c ──► ids ──bytes of each──► text

Known difference: `transformers` reads Gemma's published tokenizer.json with the pieces of several spaces as merges, not
as user-defined pieces, and so splits runs of more than 16 spaces otherwise than SentencePiece, llama.cpp and this file.
As in SentencePiece, U+2581 (▁) in a text is a space. Pieces of kind UNUSED take no part.
"""

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from operator import index

import numpy as np

from gemmary.base.errors import InputError
from gemmary.formats.sentencepiece import SPACE, Kind, Vocabulary
from gemmary.native.pieces import Encoder

PARALLEL = 1 << 17  # characters in a batch from which further threads pay


class Tokenizer:
    """Token ids of a text and back, for one vocabulary.

    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>", "h", "i", "▁", "hi", "▁hi"]
    >>> scores, kinds = [0, 0, 0, 0, 0, -9, -9, -9, -1, -2], [3, 3, 3, 2, 3, 1, 1, 1, 1, 1]
    >>> tokenizer = Tokenizer(Vocabulary.from_rows(pieces, scores, kinds))
    >>> tokenizer.encode("hi hi"), tokenizer.prompt("hi"), tokenizer.decode([2, 8, 9, 1])
    ([8, 9], [2, 8], 'hi hi')
    >>> sorted(tokenizer.stop_ids)
    [1, 4]
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.pad_id: int = vocabulary.id_of("<pad>")
        self.eos_id: int = vocabulary.id_of("<eos>")
        self.bos_id: int = vocabulary.id_of("<bos>")
        self.unk_id: int = vocabulary.unknown_id
        self.start_of_turn_id: int | None = vocabulary.ids.get("<start_of_turn>")
        self.end_of_turn_id: int | None = vocabulary.ids.get("<end_of_turn>")
        ends = {self.eos_id, self.end_of_turn_id} - {None}
        self.stop_ids: frozenset[int] = frozenset(end for end in ends if end is not None)
        self._surface = _Surface(vocabulary)

    @property
    def vocab_size(self) -> int:
        """The number of pieces, and of rows the model's embedding needs at least.

        >>> from gemmary.formats.sentencepiece import Vocabulary
        >>> Tokenizer(Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>"], [0] * 4, [3, 3, 3, 2])).vocab_size
        4
        """
        return self.vocabulary.size

    @property
    def pieces(self) -> tuple[str, ...]:
        """Every piece by id, spaces written as U+2581.

        >>> from gemmary.formats.sentencepiece import Vocabulary
        >>> Tokenizer(Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>"], [0] * 4, [3, 3, 3, 2])).pieces[2]
        '<bos>'
        """
        return self.vocabulary.pieces

    def encode(self, text: str) -> list[int]:
        """SentencePiece's ids of a text, without BOS; control pieces written out in the text are ordinary text.

        Raises InputError when the text holds a lone surrogate, which has no UTF-8 form.

        >>> from gemmary.formats.sentencepiece import Vocabulary
        >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "aa"]
        >>> Tokenizer(Vocabulary.from_rows(pieces, [0, 0, 0, 0, -2, -1], [3, 3, 3, 2, 1, 1])).encode("aaa")
        [5, 4]
        """
        require_utf8(text)
        ids: list[int] = self._encoder.encode(text.replace(SPACE, " ").encode()).tolist()
        return ids

    def prompt(self, text: str) -> list[int]:
        """The ids of a text after BOS; a "<bos>" the text itself begins with is that same one, never a second.

        >>> from gemmary.formats.sentencepiece import Vocabulary
        >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "a"], [0] * 5, [3, 3, 3, 2, 1])
        >>> Tokenizer(rows).prompt("<bos>a"), Tokenizer(rows).prompt("a")
        ([2, 4], [2, 4])
        """
        literal = self.pieces[self.bos_id]
        while text.startswith(literal):
            text = text.removeprefix(literal)
        return [self.bos_id, *self.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids: control ids are nothing, each byte that is no valid UTF-8 is U+FFFD.

        Raises InputError for an id outside the vocabulary.

        >>> from gemmary.formats.sentencepiece import Vocabulary
        >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁a", *(f"<0x{byte:02X}>" for byte in range(256))]
        >>> tokenizer = Tokenizer(Vocabulary.from_rows(pieces, [0] * 261, [3, 3, 3, 2, 1] + [6] * 256))
        >>> tokenizer.decode([2, 4, 260, 1])
        ' a\ufffd'
        """
        return replace_invalid(b"".join(map(self._surface.__getitem__, ids)).decode("utf-8", "surrogateescape"))

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes one id adds to the text; control ids add none, byte pieces exactly one.

        >>> from gemmary.formats.sentencepiece import Vocabulary
        >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁a", *(f"<0x{byte:02X}>" for byte in range(256))]
        >>> tokenizer = Tokenizer(Vocabulary.from_rows(pieces, [0] * 261, [3, 3, 3, 2, 1] + [6] * 256))
        >>> [tokenizer.token_bytes(token_id) for token_id in (2, 4, 260)]
        [b'', b' a', b'\\xff']
        """
        return self._surface[token_id]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, as `encode` gives them; long batches on all processor cores.

        >>> from gemmary.formats.sentencepiece import Vocabulary
        >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "a"], [0] * 5, [3, 3, 3, 2, 1])
        >>> Tokenizer(rows).encode_batch(["a", "", "aa"])
        [[4], [], [4, 4]]
        """
        cores = len(os.sched_getaffinity(0))
        if cores == 1 or sum(map(len, texts)) < PARALLEL:
            return [self.encode(text) for text in texts]
        with ThreadPoolExecutor(cores) as pool:
            shares = pool.map(lambda share: [self.encode(text) for text in share], _shares(texts, 4 * cores))
            return [ids for share in shares for ids in share]

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[Vocabulary]]:
        return Tokenizer, (self.vocabulary,)  # what is in C is made anew where the copy is used

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.vocabulary)


class _Surface(dict[int, bytes]):
    """The bytes each id stands for, computed when first asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._vocabulary = vocabulary

    def __missing__(self, token_id: int) -> bytes:
        at, vocabulary = index(token_id), self._vocabulary
        if not 0 <= at < vocabulary.size:
            raise InputError(f"expected token ids in 0..{vocabulary.size - 1}, got {at}: use ids of this vocabulary")
        piece, kind = vocabulary.pieces[at], vocabulary.kinds[at]
        if kind == Kind.CONTROL:
            surface = b""
        elif kind == Kind.BYTE:
            surface = bytes([int(piece[3:5], 16)])
        elif kind == Kind.UNKNOWN:
            surface = " \u2047 ".encode()  # SentencePiece's own sign for it
        else:
            surface = piece.replace(SPACE, " ").encode()
        self[at] = surface
        return surface


def require_utf8(text: str) -> None:
    """Raise InputError, saying where, when a text cannot be written as UTF-8.

    >>> require_utf8("fine")
    >>> require_utf8("a\\udcff")
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected valid Unicode text, got a lone surrogate U+DCFF at character 1: ...
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"expected valid Unicode text, got a lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}: read the input as UTF-8 and repair it there"
        ) from None


def decode_utf8(data: bytes) -> str:
    """The text of some bytes; raises InputError, saying where, when they are not UTF-8.

    >>> decode_utf8(b"caf\\xc3\\xa9")
    'café'
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8 text, got the byte 0x{data[error.start]:02X} at offset {error.start}: "
            "convert the input to UTF-8"
        ) from None


def replace_invalid(text: str) -> str:
    """Turn each byte that "surrogateescape" escaped into one U+FFFD, as SentencePiece decodes what is no character.

    >>> replace_invalid(b"a\\xff\\xfe".decode("utf-8", "surrogateescape"))
    'a\ufffd\ufffd'
    """
    return text if text.isascii() else re.sub("[\udc80-\udcff]", "\ufffd", text)


def _shares(texts: Sequence[str], count: int) -> list[Sequence[str]]:
    """The texts in `count` runs of about the same number of characters."""
    ends = np.cumsum([len(text) for text in texts])
    edges = np.searchsorted(ends, np.arange(1, count) * ends[-1] / count).tolist()
    return [texts[start:end] for start, end in zip([0, *edges], [*edges, len(texts)], strict=True)]
