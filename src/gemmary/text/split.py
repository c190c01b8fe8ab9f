# SPDX-License-Identifier: Apache-2.0
"""Where a text may be cut so that its parts can be tokenised alone: between characters that are neighbours in no piece.

    Hello, world 42   ->   "Hello" | "," | " world" | " 42"      with Gemma's own pieces
    <h1>if_ok</h1>    ->   "<h1>" | "if_ok" | "</h1>"     "f_" and "_o" are in pieces, ">i" is in none

Merging only ever makes pieces, and user-defined pieces are found whole, so neither can reach over such a cut: the ids
of a text are the ids of its parts, one after the other. This is proved from the vocabulary when the pattern is built,
never assumed: a vocabulary whose pieces cross words simply gets longer parts.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gemmary.formats.sentencepiece import SPACE

_SPACE, _OTHER = 0x20, 0x80  # all characters past ASCII count as one, _OTHER


def _run_classes() -> tuple[tuple[int, ...], ...]:
    """Letters, digits, newline, tab, the other ASCII characters, everything past ASCII; the space belongs to none."""
    letters = tuple(code for code in range(_OTHER) if chr(code).isalpha())
    digits = tuple(code for code in range(_OTHER) if chr(code).isdigit())
    named = {*letters, *digits, ord("\n"), ord("\t"), _SPACE}
    marks = tuple(code for code in range(_OTHER) if code not in named)
    return letters, digits, (ord("\n"),), (ord("\t"),), marks, (_OTHER,)


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

    It is `findall` of a compiled pattern, so it also takes a start and an end position.

    >>> cut = splitter(["in", "▁a", "'s", "▁▁"])
    >>> cut("a pin's 42")
    ['a', ' pin', "'s", ' 42']
    """
    table = neighbours(pieces)
    crossing = table.copy()
    crossing[_SPACE] = False  # a part never ends in the spaces that begin it, so nothing is cut after one
    runs = []
    for codes in _run_classes():
        held_together = codes == (_OTHER,) or bool(table[np.ix_(codes, codes)].any())
        if held_together:
            crossing[np.ix_(codes, codes)] = False
        # Where a cut is safe everywhere, short groups still make fewer parts, and few different ones: 0 to 999.
        runs.append(_charset(codes) + ("++" if held_together else "{1,3}+"))
    glued, run = _glued(crossing), f"(?:{'|'.join(runs)})"
    alone = [
        f"{run}(?!{_glued(crossing, codes)})" if crossing[list(codes)].any() else run
        for codes, run in zip(_run_classes(), runs, strict=True)
    ]
    joined = [f"{run}(?:(?={glued})(?: *{run}| +))*+"] if glued else []  # rare, so tried last
    return re.compile(f" *(?:{'|'.join(alone + joined)})| +", re.DOTALL).findall


def _glued(crossing: NDArray[np.bool_], before: Sequence[int] = range(_OTHER + 1)) -> str:
    """A pattern for a character that stands in some piece right after the character before it, which is in `before`."""
    pairs: dict[tuple[int, ...], list[int]] = defaultdict(list)
    own = np.zeros(_OTHER + 1, np.bool_)
    own[list(before)] = True
    for code in np.flatnonzero(crossing[own].any(axis=0)).tolist():
        pairs[tuple(np.flatnonzero(crossing[:, code] & own).tolist())].append(code)
    return "|".join(f"{_charset(after)}(?<={_charset(first)}.)" for first, after in pairs.items())


def _charset(codes: Sequence[int]) -> str:
    if _OTHER not in codes:
        return f"[{_escaped(codes)}]"
    rest = sorted({*range(_OTHER)} - {*codes})
    return f"[^{_escaped(rest)}]" if rest else "."


def _escaped(codes: Sequence[int]) -> str:
    return "".join(f"\\x{code:02x}" for code in codes)
