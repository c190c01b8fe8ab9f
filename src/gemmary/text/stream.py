# SPDX-License-Identifier: Apache-2.0
"""Detokenizer: ids in one by one, text out as soon as it is certain; never half a character, never a stop string.

ids      E2  96  81 | "Hel" | "lo" | "\\nUs" | "er:"              stop = ("\\nUser:",)
out      ""  ""  "▁" "Hel"   "lo"    ""        "" and is_stopped
"""

from codecs import getincrementaldecoder

from gemmary.base.errors import InputError
from gemmary.text.tokenizer import Tokenizer, replace_invalid


class Detokenizer:
    """The text of a growing list of ids; what `push` and `flush` gave, joined, is `decode(ids)` cut before the stop.

    The text ends before the stop string that is complete first, of several complete at once before the earliest.

    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "ab", "c"], [0] * 6, [3, 3, 3, 2, 1, 1])
    >>> stream = Detokenizer(Tokenizer(rows), stop=("bcc",))
    >>> stream.push(4), stream.push(5), stream.push(4), stream.flush()
    ('a', '', 'bca', 'b')
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        if "" in stop:
            raise InputError("expected stop strings of one character or more, got an empty one: leave it out")
        self._tokenizer = tokenizer
        self._stop = stop
        self._decoder = getincrementaldecoder("utf-8")("surrogateescape")
        self._held = ""
        self._is_stopped = False

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has come; from then on nothing more is given.

        >>> from gemmary.formats.sentencepiece import Vocabulary
        >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "ab"], [0] * 5, [3, 3, 3, 2, 1])
        >>> stream = Detokenizer(Tokenizer(rows), stop=("b",))
        >>> stream.push(4), stream.is_stopped
        ('a', True)
        """
        return self._is_stopped

    def push(self, token_id: int) -> str:
        """Take one id and give the text that has become certain; raises InputError for an id outside the vocabulary.

        >>> from gemmary.formats.sentencepiece import Vocabulary
        >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        >>> stream = Detokenizer(Tokenizer(Vocabulary.from_rows(pieces, [0] * 260, [3, 3, 3, 2] + [6] * 256)))
        >>> [stream.push(4 + byte) for byte in "é!".encode()]
        ['', 'é', '!']
        """
        return self._release(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def flush(self) -> str:
        """Give what was held back, once no more ids come; bytes that never became a character are U+FFFD.

        >>> from gemmary.formats.sentencepiece import Vocabulary
        >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "ab"], [0] * 5, [3, 3, 3, 2, 1])
        >>> stream = Detokenizer(Tokenizer(rows), stop=("bc",))
        >>> stream.push(4), stream.flush()
        ('a', 'b')
        """
        certain = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return certain

    def _release(self, text: str) -> str:
        if self._is_stopped:
            return ""
        text = self._held + replace_invalid(text)
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self._held, self._is_stopped = "", True
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
