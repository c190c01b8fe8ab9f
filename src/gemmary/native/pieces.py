# SPDX-License-Identifier: Apache-2.0
"""Text to ids in C: a vocabulary is given once, as arrays, and texts are encoded by any number of threads at once."""

import ctypes
import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import FileError, InputError
from gemmary.formats.sentencepiece import SPACE, Kind, Vocabulary
from gemmary.native.library import address, library

_FOUND = (Kind.NORMAL, Kind.USER_DEFINED)  # the kinds a text is made of
_LONGEST = 65535  # bytes of a piece


class _Pieces(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("text", "offsets", "scores", "kinds", "byte_ids")),
        *((name, ctypes.c_int32) for name in ("count", "unknown_id")),
    )


class Encoder:
    """The ids of texts, for one vocabulary; words met before are remembered, up to 8 MiB for each thread.

    >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "▁", "▁a"]
    >>> encoder = Encoder(Vocabulary.from_rows(pieces, [0] * 7, [3, 3, 3, 2, 1, 1, 1]))
    >>> encoder.encode(b"a a").tolist()
    [4, 6]

    Raises FileError for a vocabulary with a piece of more than 65,535 bytes, which no Gemma has.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        joined = "".join(vocabulary.pieces)
        text = np.frombuffer(joined.replace(SPACE, " ").encode(), np.uint8)
        offsets = _offsets(text, vocabulary.pieces)
        kinds = np.ascontiguousarray(vocabulary.kinds, np.int8)
        if " " in joined:  # SentencePiece writes a text's spaces as U+2581 and never finds these
            kinds = np.where([" " in piece for piece in vocabulary.pieces], np.int8(Kind.UNUSED), kinds)
        scores = np.ascontiguousarray(vocabulary.scores, np.float32)
        unknown = vocabulary.unknown_id
        spelled = [vocabulary.ids.get(f"<0x{byte:02X}>", unknown) for byte in range(256)]
        byte_ids = np.array(spelled, np.int32) if (kinds == Kind.BYTE).any() else None
        rows = _Pieces(
            text=address(text),
            offsets=address(offsets),
            scores=address(scores),
            kinds=address(kinds),
            byte_ids=None if byte_ids is None else address(byte_ids),
            count=vocabulary.size,
            unknown_id=unknown,
        )
        handle = ctypes.c_void_p()
        self._check(library().gemmary_vocabulary_open(ctypes.byref(rows), ctypes.byref(handle)))
        _close_with(self, library().gemmary_vocabulary_close, handle)
        space = vocabulary.ids.get(SPACE)
        self._most_ids = 1 if space is not None and kinds[space] in _FOUND else 3  # a byte; U+2581 itself has three
        self._vocabulary = handle
        self._idle: list[ctypes.c_void_p] = []  # encoders that no thread is in

    def encode(self, text: bytes) -> NDArray[np.int32]:
        """The ids of a text in UTF-8, its spaces written as spaces."""
        ids = np.empty(len(text) * self._most_ids, np.int32)
        count = ctypes.c_size_t()
        try:
            encoder = self._idle.pop()
        except IndexError:  # as many threads as never before
            encoder = self._open()
        try:
            self._check(library().gemmary_encode(encoder, text, len(text), address(ids), ids.size, ctypes.byref(count)))
        finally:
            self._idle.append(encoder)
        return ids[: count.value]

    def _open(self) -> ctypes.c_void_p:
        encoder = ctypes.c_void_p()
        self._check(library().gemmary_encoder_open(self._vocabulary, ctypes.byref(encoder)))
        _close_with(self, library().gemmary_encoder_close, encoder)
        return encoder

    def _check(self, status: int) -> None:
        if status == 5:
            raise InputError("expected memory for the vocabulary and the text, the system has no more: cut the text")
        if status:
            raise FileError(f"expected pieces of at most {_LONGEST} bytes, got a longer one: use a Gemma vocabulary")


def _close_with(owner: Encoder, close: Callable[[ctypes.c_void_p], None], handle: ctypes.c_void_p) -> None:
    """Close with the owner, but not at the interpreter's end, when daemon threads may still be inside."""
    weakref.finalize(owner, close, handle).atexit = False


def _offsets(text: NDArray[np.uint8], pieces: tuple[str, ...]) -> NDArray[np.uint32]:
    """Where each piece begins in the bytes of all of them, and their end; no byte 10xxxxxx begins a character."""
    starts = np.append(np.flatnonzero((text & 0xC0) != 0x80), len(text)).astype(np.uint32)
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    return np.take(starts, np.concatenate([[0], np.cumsum(lengths)]))
