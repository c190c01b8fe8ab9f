# SPDX-License-Identifier: Apache-2.0
"""Tokenizer: text to token ids and back, with exactly SentencePiece's ids, in plain Python.

    text ──cut──► words ──cache──► ids         a word seen before costs one dictionary look-up
                    └─ new ──► user-defined pieces, longest first ──► merges ──► bytes for what is in no piece

Known difference: `transformers` reads Gemma's published tokenizer.json with the pieces of several spaces as merges, not
as user-defined pieces, and so splits runs of more than 16 spaces otherwise than SentencePiece, llama.cpp and this file.
As in SentencePiece, U+2581 (▁) in a text is a space. Pieces of kind UNUSED take no part.
"""

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain, compress
from operator import index

import numpy as np

from gemmary.base.errors import InputError
from gemmary.formats.sentencepiece import SPACE, Kind, Vocabulary
from gemmary.text.merge import merge
from gemmary.text.split import splitter

Cut = Callable[..., list[str]]
BLOCK = 1 << 16  # characters cut at a time: bounds the memory a long text needs
CACHED_WORDS = 1 << 18  # about 50 MB when full of ordinary words
CACHED_LENGTH = 256  # characters: the rules of tables are nearly as long, and come again
PARALLEL = 1 << 23  # characters in a batch from which further processes (0.4 s to start) pay


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
        if SPACE in text:
            text = text.replace(SPACE, " ")
        ids_of, ids = self._words.__getitem__, list[int]()
        for words in _blocks(self._words.cut, text):
            ids.extend(chain.from_iterable(map(ids_of, words)))
        return ids if self._words.has_bytes else self._join_unknown(ids)

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
        """The ids of each text, as `encode` gives them; from 8 million characters on all processor cores work.

        >>> from gemmary.formats.sentencepiece import Vocabulary
        >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "a"], [0] * 5, [3, 3, 3, 2, 1])
        >>> Tokenizer(rows).encode_batch(["a", "", "aa"])
        [[4], [], [4, 4]]
        """
        if sum(map(len, texts)) < PARALLEL or (cores := len(os.sched_getaffinity(0))) == 1:
            return [self.encode(text) for text in texts]
        for text in texts:
            require_utf8(text)
        shares = _shares(texts, cores)
        with ThreadPoolExecutor(cores) as pool:
            elsewhere = [pool.submit(_encode_in_child, self.vocabulary, share) for share in shares[1:]]
            encoded = [self.encode(text) for text in shares[0]]
            return encoded + [ids for child in elsewhere for ids in child.result()]

    def _join_unknown(self, ids: list[int]) -> list[int]:
        """Without byte pieces SentencePiece gives one unknown id for a whole run of unknown characters."""
        return [at for last, at in zip([-1, *ids], ids, strict=False) if not (at == last == self.unk_id)]

    @cached_property
    def _words(self) -> "_Words":
        return _Words(self.vocabulary)


class _Words(dict[str, tuple[int, ...]]):
    """The ids of each word met so far, spaces as spaces; a new word is encoded when it is first asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        normal = vocabulary.kinds == Kind.NORMAL
        live = list(compress(vocabulary.pieces, normal))
        frozen = list(compress(vocabulary.pieces, vocabulary.kinds == Kind.USER_DEFINED))
        self.cut = splitter([*live, *frozen])
        self._costs = dict(zip(live, (-vocabulary.scores[normal].astype(np.float64)).tolist(), strict=True))
        longest_first = sorted(frozen, key=len, reverse=True)
        self._frozen = re.compile("|".join(map(re.escape, longest_first))) if frozen else None
        self._ids = vocabulary.ids
        self._unknown_id = vocabulary.unknown_id
        self.has_bytes = bool((vocabulary.kinds == Kind.BYTE).any())
        self._bytes = [vocabulary.ids.get(f"<0x{byte:02X}>", self._unknown_id) for byte in range(256)]

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(self._encode(word.replace(" ", SPACE)))
        if len(word) <= CACHED_LENGTH:
            if len(self) >= CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def _encode(self, word: str) -> list[int]:
        """User-defined pieces are taken out first, from the left, the longest that fits; the rest is merged."""
        ids, start = list[int](), 0
        for found in self._frozen.finditer(word) if self._frozen else ():
            self._append(ids, word[start : found.start()])
            ids.append(self._ids[found.group()])
            start = found.end()
        self._append(ids, word[start:])
        return ids

    def _append(self, ids: list[int], text: str) -> None:
        for part in merge(text, self._costs):
            if part in self._costs:
                ids.append(self._ids[part])
            elif self.has_bytes:
                ids.extend(self._bytes[byte] for byte in part.encode())
            else:
                ids.append(self._unknown_id)


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


def _blocks(cut: Cut, text: str) -> Iterator[list[str]]:
    """The words of a text, about a block at a time; the last word of a block is cut again with what follows it."""
    start, size = 0, BLOCK
    while start < len(text):
        words = cut(text, start, start + size)
        if start + size >= len(text):
            yield words
            return
        if len(words) == 1:
            size *= 2  # one word longer than the block
            continue
        start, size = start + size - len(words.pop()), BLOCK
        yield words


def _shares(texts: Sequence[str], count: int) -> list[list[str]]:
    """The texts in `count` runs of about the same number of characters."""
    ends = np.cumsum([len(text) for text in texts])
    edges = np.searchsorted(ends, np.arange(1, count) * ends[-1] / count).tolist()
    return [list(texts[start:end]) for start, end in zip([0, *edges], [*edges, len(texts)], strict=True)]


def _encode_in_child(vocabulary: Vocabulary, texts: list[str]) -> list[list[int]]:
    """Encode in a fresh interpreter: no fork under a framework's threads, no second run of the caller's main module."""
    work = pickle.dumps((vocabulary, texts))
    command = [sys.executable, "-c", "from gemmary.text.tokenizer import _serve_parent; _serve_parent()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, input=work, stdout=subprocess.PIPE, env=environment, check=True)
    lengths, ids = pickle.loads(done.stdout)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if texts else []


def _serve_parent() -> None:
    vocabulary, texts = pickle.load(sys.stdin.buffer)
    tokenizer = Tokenizer(vocabulary)
    encoded = [np.array(tokenizer.encode(text), np.int32) for text in texts]
    lengths = [len(ids) for ids in encoded]
    pickle.dump((lengths, np.concatenate(encoded) if encoded else np.zeros(0, np.int32)), sys.stdout.buffer)
