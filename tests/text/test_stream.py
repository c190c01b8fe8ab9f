# SPDX-License-Identifier: Apache-2.0
"""A stream gives what decoding all ids gives, cut before the stop string, and never half a character."""

import random
from collections.abc import Callable

import pytest

from gemmary.base.errors import InputError
from gemmary.formats.sentencepiece import Vocabulary
from gemmary.text.stream import Detokenizer
from gemmary.text.tokenizer import Tokenizer


@pytest.fixture
def spelled(vocabulary_of: Callable[..., Vocabulary]) -> Tokenizer:
    """A tokenizer whose ids are mostly bytes, so that characters come in parts."""
    return Tokenizer(vocabulary_of(["ab", "bc", "▁c", "é"], []))


def stream(tokenizer: Tokenizer, ids: list[int], *stop: str) -> list[str]:
    detokenizer = Detokenizer(tokenizer, stop)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


def test_a_character_comes_whole_with_its_last_byte(spelled: Tokenizer) -> None:
    assert stream(spelled, spelled.encode("好!")) == ["", "", "好", "!", ""]


def test_bytes_that_become_no_character_are_given_as_decoding_gives_them(spelled: Tokenizer) -> None:
    half = spelled.encode("好")[:2]
    assert stream(spelled, half) == ["", "", "\ufffd\ufffd"]
    assert stream(spelled, [*half, *spelled.encode("é")]) == ["", "", "\ufffd\ufffdé", ""]


def test_a_possible_beginning_of_a_stop_string_is_held_back(spelled: Tokenizer) -> None:
    ids = spelled.encode("ab c")
    assert [spelled.pieces[token_id] for token_id in ids] == ["ab", "▁c"]
    assert stream(spelled, ids, "b d") == ["a", "b c", ""]
    assert stream(spelled, ids, "b c") == ["a", "", ""]
    assert stream(spelled, ids, " cd") == ["ab", "", " c"]


def test_the_stop_string_that_is_complete_first_ends_the_text(spelled: Tokenizer) -> None:
    assert "".join(stream(spelled, spelled.encode("xabcab"), "abca", "bc")) == "xa"
    assert "".join(stream(spelled, spelled.encode("xabcab"), "c", "abc")) == "x"


def test_nothing_comes_after_the_stop(spelled: Tokenizer) -> None:
    detokenizer = Detokenizer(spelled, ("b",))
    given = [detokenizer.push(token_id) for token_id in spelled.encode("ab")]
    assert (given, detokenizer.is_stopped) == (["a"], True)
    assert detokenizer.push(spelled.encode("ab")[0]) == "" == detokenizer.flush()


def cut_before(text: str, stop: tuple[str, ...]) -> str:
    """What the stream should give, by looking at every beginning of the text."""
    for end in range(len(text) + 1):
        starts = [end - len(one) for one in stop if text[:end].endswith(one)]
        if starts:
            return text[: min(starts)]
    return text


@pytest.mark.parametrize("seed", range(20))
def test_what_is_given_joined_is_the_decoded_text_before_the_stop(spelled: Tokenizer, seed: int) -> None:
    draw = random.Random(seed)
    first_byte = spelled.vocabulary.id_of("<0x00>")
    letters = [first_byte + byte for byte in "abc é好".encode()]
    for _ in range(100):
        ids = [draw.choice([*letters, draw.randrange(spelled.vocab_size)]) for _ in range(draw.randrange(30))]
        stop = tuple("".join(draw.choices("abc é好", k=draw.randrange(1, 4))) for _ in range(draw.randrange(4)))
        whole = "".join(stream(spelled, ids, *stop))
        assert whole == cut_before(spelled.decode(ids), stop)


def test_gemma_s_own_ids_stream_to_their_text(gemma: Tokenizer) -> None:
    text = "Hello, wörld! 🦜 4 2\n\n    <h1>\U000e0001 end"
    assert "".join(stream(gemma, gemma.prompt(text))) == text


def test_an_empty_stop_string_is_refused(spelled: Tokenizer) -> None:
    with pytest.raises(InputError, match="one character or more"):
        Detokenizer(spelled, ("",))
