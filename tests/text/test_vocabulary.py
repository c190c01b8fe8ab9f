# SPDX-License-Identifier: Apache-2.0
"""A learned vocabulary follows Gemma's rules; a subset cuts as the whole does; an extension reaches all it adds."""

import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
import sentencepiece

from gemmary.base.errors import InputError, MissingExtraError
from gemmary.formats.sentencepiece import Kind, Vocabulary
from gemmary.text.tokenizer import Tokenizer
from gemmary.text.vocabulary import count_pieces, extend, extend_rows, learn, normal_pieces, prune_rows, subset

TEXTS = [
    "It was the best of times, it was the worst of times,\n  it was the age of wisdom in 1775,\n",
    "it was the age of foolishness, it was the epoch of belief, it was the season of Light <b>.</b>\n\n\n",
    "def wisdom(age: int) -> bool:\n        return age > 1775 and season(age) != 'Light'\n",
] * 3
GERMAN = "Es war die beste und die schönste aller Zeiten, es war die schlimmste aller Zeiten, die Weisheit."


@pytest.fixture(scope="module")
def learned() -> Vocabulary:
    return learn(TEXTS, 520, coverage=1.0)


def test_a_learned_vocabulary_has_gemma_s_specials_at_their_ids(learned: Vocabulary) -> None:
    assert learned.size == 520
    named = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 7: "<unused0>", 105: "<unused98>"}
    named |= {106: "<start_of_turn>", 107: "<end_of_turn>", 108: "\n", 138: "\n" * 31, 139: "▁▁", 168: "▁" * 31}
    assert {token_id: learned.pieces[token_id] for token_id in named} == named
    assert Tokenizer(learned).stop_ids == {1, 107}
    assert int((learned.kinds == Kind.BYTE).sum()) == 256


def test_a_learned_vocabulary_splits_digits_keeps_spaces_and_has_bytes(
    learned: Vocabulary, library: Callable[[Vocabulary], sentencepiece.SentencePieceProcessor]
) -> None:
    tokenizer, reference = Tokenizer(learned), library(learned)
    assert not [piece for piece in normal_pieces(learned) if len(piece) > 1 and any(map(str.isdigit, piece))]
    assert "▁was" in learned.ids
    for text in [*TEXTS, "  1775   \n\n\n ", "好 🦜 é", GERMAN]:
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_id not in ids


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_size_that_does_not_fit_the_texts_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"expected a size that fits the texts, got {size}"):
        learn(TEXTS, size)


def test_learning_without_the_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gemmary\[learn\]'"):
        learn(TEXTS, 500)


def test_a_subset_encodes_what_it_covers_with_the_same_pieces(gemma: Tokenizer) -> None:
    uses = count_pieces(gemma, TEXTS)
    smaller, kept = subset(gemma.vocabulary, uses, 1200)
    assert smaller.size == 1200 == len(kept)
    assert (np.diff(kept) > 0).all()
    assert [gemma.pieces[old] for old in kept] == list(smaller.pieces)
    tokenizer = Tokenizer(smaller)
    for text in TEXTS:
        assert kept[tokenizer.encode(text)].tolist() == gemma.encode(text)
    assert tokenizer.decode(tokenizer.encode(GERMAN + "好")) == GERMAN + "好"
    assert tokenizer.stop_ids == {smaller.id_of("<eos>"), smaller.id_of("<end_of_turn>")}


def test_every_piece_of_a_subset_is_still_reached(gemma: Tokenizer) -> None:
    smaller, _ = subset(gemma.vocabulary, np.zeros(gemma.vocab_size, np.int64), 3000)
    tokenizer = Tokenizer(smaller)
    for piece in normal_pieces(smaller):
        assert tokenizer.encode(piece) == [smaller.ids[piece]]


def test_a_subset_of_random_rows_is_closed(vocabulary_of: Callable[..., Vocabulary]) -> None:
    draw = random.Random(0)
    for _ in range(30):
        pieces = sorted({"".join(draw.choices("abc", k=draw.randrange(1, 6))) for _ in range(60)})
        draw.shuffle(pieces)
        whole = Tokenizer(vocabulary_of(pieces, []))
        texts = ["".join(draw.choices("abc", k=30)) for _ in range(3)]
        needed = np.flatnonzero(count_pieces(whole, texts)).size
        smaller, kept = subset(whole.vocabulary, count_pieces(whole, texts), whole.vocab_size - draw.randrange(20))
        covered = np.isin(np.flatnonzero(count_pieces(whole, texts)), kept).sum() == needed
        for text in texts if covered else []:
            assert kept[Tokenizer(smaller).encode(text)].tolist() == whole.encode(text)


def test_a_subset_needs_room_for_the_specials_and_a_count_for_each_piece(learned: Vocabulary) -> None:
    with pytest.raises(InputError, match="expected room for the 326 special pieces, got a size of 300"):
        subset(learned, np.zeros(learned.size, np.int64), 300)
    with pytest.raises(InputError, match=r"expected 520 counts, one a piece, got \(3,\)"):
        subset(learned, np.zeros(3, np.int64), 500)


def test_an_extension_keeps_old_ids_and_reaches_every_new_piece(learned: Vocabulary) -> None:
    language = learn([GERMAN] * 20, 475, coverage=1.0)
    larger, composition = extend(learned, normal_pieces(language))
    before, after = Tokenizer(learned), Tokenizer(larger)
    assert larger.pieces[:520] == learned.pieces
    assert len(composition) == larger.size - 520 > 20
    for new_id in range(520, larger.size):
        assert after.encode(larger.pieces[new_id]) == [new_id]
    assert set(normal_pieces(language)) <= set(larger.pieces)
    assert len(after.encode(GERMAN)) < 0.7 * len(before.encode(GERMAN))
    assert after.decode(after.encode(GERMAN)) == GERMAN
    assert all(before.decode(ids) == larger.pieces[520 + at].replace("▁", " ") for at, ids in enumerate(composition))


def test_pieces_that_cannot_be_reached_or_are_there_are_left_out(vocabulary_of: Callable[..., Vocabulary]) -> None:
    old = vocabulary_of(["a", "b", "ab"], ["<b>", "\n"])
    larger, composition = extend(old, ["ab", "a\nb", "<b>", "x<b>y", "<pad>", "", "aba"])
    assert larger.pieces[old.size :] == ("aba",)
    assert composition == [(old.ids["ab"], old.ids["a"])]
    assert extend(old, [])[1] == []


def test_rows_follow_the_pieces_exactly() -> None:
    embedding = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    assert np.array_equal(prune_rows(embedding, np.array([0, 3, 5])), embedding[[0, 3, 5]])
    longer = extend_rows(embedding, [(1, 2, 2), (5,)])
    mean = (embedding[1].astype(np.float64) + embedding[2] + embedding[2]) / 3
    assert longer.dtype == np.float32 and longer.shape == (8, 4)
    assert np.array_equal(longer[:6], embedding)
    assert np.array_equal(longer[6], mean.astype(np.float32))
    assert np.array_equal(longer[7], embedding[5])
    assert np.array_equal(extend_rows(embedding, []), embedding)


def test_rows_of_another_model_are_refused() -> None:
    embedding = np.zeros((3, 2), np.float32)
    with pytest.raises(InputError, match="expected an embedding of 4 rows or more, got 3"):
        prune_rows(embedding, np.array([0, 3]))
    with pytest.raises(InputError, match="expected an embedding of 8 rows or more, got 3"):
        extend_rows(embedding, [(1, 7)])
