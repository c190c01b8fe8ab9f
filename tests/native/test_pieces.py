# SPDX-License-Identifier: Apache-2.0
"""Encoding in C against plain Python that cuts no words and remembers none, for any vocabulary and any bytes."""

import random
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gemmary.base.errors import FileError
from gemmary.formats.sentencepiece import SPACE, Kind, Vocabulary
from gemmary.native.pieces import Encoder
from gemmary.text.merge import merge

SPECIALS = (["<pad>", "<eos>", "<bos>", "<unk>"], [3, 3, 3, 2])
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ALPHABET = "aab1 >\0é好🙂"


def vocabulary_of(normal: dict[str, float], frozen: list[str], others: list[str], has_bytes: bool) -> Vocabulary:
    spelled = BYTES if has_bytes else []
    pieces = [*SPECIALS[0], *spelled, *frozen, *others, *normal]
    kinds = [*SPECIALS[1], *[6] * len(spelled), *[4] * len(frozen), *[5] * len(others), *[1] * len(normal)]
    return Vocabulary.from_rows(pieces, [0.0] * (len(pieces) - len(normal)) + [*normal.values()], kinds)


def plainly(vocabulary: Vocabulary, text: str) -> list[int]:
    """User-defined pieces out, from the left, the longest first; merges; bytes or one unknown id for a run."""

    def of_kind(kind: Kind) -> list[str]:
        return [vocabulary.pieces[at] for at in np.flatnonzero(vocabulary.kinds == kind).tolist()]

    costs = {piece: -float(vocabulary.scores[vocabulary.ids[piece]]) for piece in of_kind(Kind.NORMAL)}
    frozen = "|".join(map(re.escape, sorted(of_kind(Kind.USER_DEFINED), key=len, reverse=True))) or "(?!)"
    ids: list[int] = []
    for part in re.split(f"({frozen})", text.replace(" ", SPACE)):
        whole = re.fullmatch(frozen, part)
        for piece in [part] if whole else merge(part, costs):
            if whole or piece in costs:
                ids.append(vocabulary.ids[piece])
            elif of_kind(Kind.BYTE):
                ids += [vocabulary.ids[BYTES[byte]] for byte in piece.encode()]
            elif ids[-1:] != [vocabulary.unknown_id]:
                ids.append(vocabulary.unknown_id)
    return ids


def random_vocabulary(draw: random.Random) -> Vocabulary:
    """Pieces that tie in score, cross words, begin one another, hold NUL and spaces of both kinds, or are not found."""
    most = draw.choice([2, 3, 6])
    drawn = {
        "".join(draw.choices(ALPHABET, k=draw.randrange(1, most + 1))) for _ in range(draw.choice([0, 9, 60, 200]))
    }
    pieces = sorted(piece if draw.randrange(9) == 0 else piece.replace(" ", SPACE) for piece in drawn)
    pieces = list(dict.fromkeys(pieces))
    draw.shuffle(pieces)
    frozen = list(dict.fromkeys(piece.replace(" ", SPACE) for piece in pieces[: draw.choice([0, 1, 20])]))
    rest = [piece for piece in pieces if piece not in frozen]
    unused = draw.choice([0, 5])
    scores = {piece: -float(draw.randrange(draw.choice([1, 30]))) for piece in rest[unused:]}
    return vocabulary_of(scores, frozen, rest[:unused], has_bytes=draw.random() < 0.5)


@pytest.mark.parametrize("seed", range(120))
def test_ids_are_those_of_plain_python(seed: int) -> None:
    draw = random.Random(seed)
    vocabulary = random_vocabulary(draw)
    encoder = Encoder(vocabulary)
    for _ in range(60):
        letters = "".join(draw.sample(ALPHABET, draw.randrange(1, len(ALPHABET) + 1)))
        text = "".join(draw.choices(letters, k=draw.randrange(draw.choice([12, 60, 300]))))  # past 64, a heap merges
        assert encoder.encode(text.encode()).tolist() == plainly(vocabulary, text)


def test_words_that_take_each_other_s_place_keep_their_ids() -> None:
    draw = random.Random(3)
    encoder = Encoder(vocabulary_of({"ab": -1.0, "cd": -2.0, "abcd": -3.0, "e": -4.0, SPACE: 0.0}, [], [], True))
    words = ["".join(draw.choices("abcde", k=9)) + " " for _ in range(200_000)]  # more than are remembered
    each = [encoder.encode(word.encode()) for word in words]
    for _ in range(2):
        assert np.array_equal(encoder.encode("".join(words).encode()), np.concatenate(each))


def test_threads_share_an_encoder() -> None:
    draw = random.Random(4)
    vocabulary = random_vocabulary(draw)
    texts = ["".join(draw.choices(ALPHABET, k=20_000)) for _ in range(24)]
    single = [Encoder(vocabulary).encode(text.encode()).tolist() for text in texts]
    encoder = Encoder(vocabulary)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert [ids.tolist() for ids in pool.map(lambda text: encoder.encode(text.encode()), texts)] == single


def test_any_bytes_give_ids_of_the_vocabulary() -> None:
    draw = random.Random(5)
    for _ in range(200):
        vocabulary = random_vocabulary(draw)
        ids = Encoder(vocabulary).encode(draw.randbytes(draw.randrange(300)))
        assert ((ids >= 0) & (ids < vocabulary.size)).all()


def test_the_longest_piece_is_found_and_a_longer_one_refused() -> None:
    encoder = Encoder(vocabulary_of({"a": 0.0}, ["a" * 65_535], [], True))
    assert len(encoder.encode(b"a" * 65_536)) == 2
    with pytest.raises(FileError, match="expected pieces of at most 65535 bytes"):
        Encoder(vocabulary_of({"a" * 65_536: 0.0}, [], [], True))
