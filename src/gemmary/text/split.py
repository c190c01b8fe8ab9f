# SPDX-License-Identifier: Apache-2.0
"""Where a text may be cut so that its parts can be tokenised alone: between characters that are neighbours in no piece.

    Hello, world 42   ->   "Hello" | "," | " world" | " 4" | "2"      with Gemma's own pieces
    <h1>if_ok</h1>    ->   "<h1>" | "if_ok" | "</h1>"     "f_" and "_o" are in pieces, ">i" is in none

Merging only ever makes pieces, and user-defined pieces are found whole, so neither can reach over such a cut: the ids
of a text are the ids of its parts, one after the other. What stands side by side is read off the vocabulary's pieces,
never assumed: a vocabulary whose pieces cross words simply gets longer parts.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gemmary.formats.sentencepiece import SPACE

_SPACE, _OTHER = 0x20, 0x80  # all characters past ASCII count as one, _OTHER


def neighbours(pieces: Sequence[str]) -> NDArray[np.bool_]:
    """Which characters stand side by side in some piece: a table of 129 x 129, ASCII by code, all others as 128.

    >>> table = neighbours(["in", "1", "▁a"])
    >>> bool(table[ord("i"), ord("n")]), bool(table[ord(" "), ord("a")]), bool(table[ord("1"), ord("a")])
    (True, True, False)
    """
    joined = "\0".join(pieces)
    codes = np.minimum(np.frombuffer(joined.replace(SPACE, " ").encode(), np.uint8), _OTHER)
    table = np.zeros((_OTHER + 1, _OTHER + 1), np.bool_)
    table[codes[:-1], codes[1:]] = True
    # NUL stands between the pieces, so what it stands beside says nothing: a text is not cut there if it is in a piece.
    table[0] = table[:, 0] = joined.count("\0") >= len(pieces)
    return table


def splitter(pieces: Sequence[str]) -> Callable[..., list[str]]:
    """A function that cuts a text, spaces as spaces, into parts no piece reaches across; joined, they are the text.

    It also takes a start and an end position. Nothing is cut after a space, so that words are few and look alike.

    >>> cut = splitter(["in", "▁a", "'s", "▁▁"])
    >>> cut("a pin's 42")
    ['a', ' p', 'in', "'s", ' 4', '2']
    """
    apart = ~neighbours(pieces)
    apart[_SPACE] = False
    flat = apart.ravel()

    def cut(text: str, start: int = 0, end: int | None = None) -> list[str]:
        part = text[start:end]
        if part.isascii():
            codes = np.frombuffer(part.encode("ascii"), np.uint8)
        else:
            wide = np.frombuffer(part.encode("utf-32-le", "surrogatepass"), "<u4")
            codes = np.minimum(wide, _OTHER).astype(np.uint8)
        pairs = codes[:-1].astype(np.uint16) * np.uint16(len(apart)) + codes[1:]
        cuts = np.flatnonzero(flat.take(pairs)) + 1
        edges = [0, *cuts.tolist(), len(part)] if part else [0]
        return [part[first:last] for first, last in pairwise(edges)]

    return cut
