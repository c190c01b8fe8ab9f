# SPDX-License-Identifier: Apache-2.0
"""What a question asks for, as strings of SQLite's FTS5, and how texts are written so that it finds them.

How do I use apt-get?   "apt"   "get"   "apt get"     words that say something; compounds as words in a row besides
怎么安装软件包？          "安 装"   "装 软"   "软 件"   "件 包"     two characters in a row

FTS5's unicode61 takes a run of Chinese as one word, so in the file a sign of no width, which it takes for a space,
stands after each such character. A term is quoted and so of letters alone: nothing in a question works as an operator.
"""

import re
import unicodedata
from itertools import pairwise

MAX_TERMS = 64
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
"""Scripts in which words cannot be told by spaces, as a range of a regular expression."""

_APART = "\u200b"
_CHARACTER = re.compile(f"([{CJK}])")
_RUN = re.compile(rf"[{CJK}]+|[^\s{CJK}]+")
_COMPOUND = re.compile(rf"[^\W_{CJK}]+(?:[-/._:+]+[^\W_{CJK}]+)+")

# What questions are asked with rather than about.
_WORDS = """
a about actually after all already also always am an and any anyone anything are aren as at be because been before being
best between but by called can could couldn did didn do does doesn doing don done each else ever every exactly few for
from get gets give given go going good got had happen happens has have having he her here him his how i if in into is
isn it its just let lets like ll look looks many may me mean means might mine more most much must my need needs never no
nor not now of off on only or other our out over own please really s same shall she should shouldn so some someone
something still such t tell than that the their them then there these they this those through to too under up us use
used uses using ve very want wants was wasn we were what when where whether which while who whom whose why will with won
would wouldn you your yours
"""
_STOP_WORDS = frozenset(_WORDS.split())
_STOP_CHARACTERS = re.compile("为什么|什么|怎么|怎样|如何|哪里|哪些|哪个|多少|是否|可以|[的了吗呢我你]")


def terms(question: str) -> list[str]:
    """What a question asks for, each term once and at most MAX_TERMS of them; none where it says nothing.

    >>> terms("What does `apt-get --purge` do?"), terms('"AND" (*')
    (['"apt"', '"purge"', '"apt get"'], [])
    """
    text = unicodedata.normalize("NFC", question).lower()
    found = list[str]()
    for run in _RUN.findall(_letters(text)):
        if not _CHARACTER.match(run):
            found += [run] if run not in _STOP_WORDS else []
            continue
        for part in _STOP_CHARACTERS.split(run):
            found += [f"{one} {two}" for one, two in pairwise(part)] or ([part] if part else [])
    found += [_letters(compound) for compound in _COMPOUND.findall(text)]
    return [f'"{term}"' for term in dict.fromkeys(found) if any(map(str.isalnum, term))][:MAX_TERMS]


def spaced(text: str) -> str:
    """The text as it is written to the file, with a sign of no width after each character that is a word of its own.

    >>> len(spaced("软件 apt"))
    8
    """
    return _CHARACTER.sub(rf"\1{_APART}", joined(text))


def joined(text: str) -> str:
    """The text without these signs.

    >>> joined(spaced("软件 apt"))
    '软件 apt'
    """
    return text.replace(_APART, "")


def _letters(text: str) -> str:
    """The text with a space for whatever FTS5 takes for no part of a word."""
    return "".join(each if each.isalnum() or unicodedata.category(each)[0] == "M" else " " for each in text)
