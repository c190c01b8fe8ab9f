# SPDX-License-Identifier: Apache-2.0
"""Cuts lie only where no piece reaches, and the parts are the text."""

import random
from itertools import pairwise

import pytest

from gemmary.text.split import splitter
from gemmary.text.tokenizer import Tokenizer

ALPHABET = "ab1 ./>\n\t\0é好"


def test_words_signs_digits_and_newlines_stand_alone_where_pieces_allow(gemma: Tokenizer) -> None:
    live = [piece for piece, kind in zip(gemma.pieces, gemma.vocabulary.kinds, strict=True) if kind in (1, 4)]
    cut = splitter(live)
    assert cut("Hello, world 42") == ["Hello", ",", " world", " 4", "2"]
    assert cut("<h1>if_ok</h1>") == ["<h1>", "if_ok", "</h1>"]
    assert cut("a  b \n\n\tc") == ["a", "  b", " \n\n", "\t", "c"]
    assert cut("x> <y 12345") == ["x> <", "y", " 1", "2", "3", "4", "5"]  # one piece, ">▁</", reaches over a space
    assert cut("") == []


@pytest.mark.parametrize("seed", range(60))
def test_no_cut_lies_inside_a_pair_of_any_piece(seed: int) -> None:
    draw = random.Random(seed)
    pieces = ["".join(draw.choices(ALPHABET, k=draw.randrange(1, 4))) for _ in range(draw.choice([0, 3, 12, 40]))]
    pairs = {pair for piece in pieces for pair in pairwise(piece)}
    cut = splitter([piece.replace(" ", "▁") for piece in pieces])
    for _ in range(50):
        text = "".join(draw.choices(ALPHABET, k=draw.randrange(60)))
        parts = cut(text)
        assert "".join(parts) == text
        assert not {(left[-1], right[0]) for left, right in pairwise(parts)} & pairs
