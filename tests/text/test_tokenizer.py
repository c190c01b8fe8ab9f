# SPDX-License-Identifier: Apache-2.0
"""The ids are SentencePiece's and llama.cpp's, for any text and any vocabulary; decoding gives the text back."""

import http.client
import json
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sentencepiece

from gemmary.base.errors import FileError, InputError
from gemmary.formats.sentencepiece import Vocabulary
from gemmary.text import tokenizer as tokenizer_module
from gemmary.text.tokenizer import Tokenizer, decode_utf8

Library = sentencepiece.SentencePieceProcessor
Texts = Callable[[], Iterator[tuple[str, str]]]

WRITTEN = {
    "Hello, world 42!": ["Hello", ",", "▁world", "▁", "4", "2", "!"],
    "a    b": ["a", "▁▁▁▁", "b"],
    "x" + " " * 33 + "y": ["x", "▁" * 31, "▁▁", "y"],
    "\n\n\tx\r\n": ["\n\n", "\t", "x", "<0x0D>", "\n"],
    "<h1>hi</h1>": ["<h1>", "hi", "</h1>"],
    "def f(x):\n    return x": ["def", "▁f", "(", "x", "):", "\n", "▁▁▁▁", "return", "▁x"],
    "\U000e0001": ["<0xF3>", "<0xA0>", "<0x80>", "<0x81>"],
    "": [],
}


@pytest.mark.parametrize("text", WRITTEN)
def test_pieces_stand_as_gemma_cuts_them(gemma: Tokenizer, text: str) -> None:
    assert [gemma.pieces[token_id] for token_id in gemma.encode(text)] == WRITTEN[text]


def random_texts(count: int, pieces: tuple[str, ...], seed: int = 0) -> Iterator[str]:
    """Any characters, whitespace, digits and signs, pieces and parts of them, mixed; NUL and U+2581 among them."""
    draw = random.Random(seed)

    def part() -> str:
        match draw.randrange(6):
            case 0:
                return chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]))
            case 1:
                return draw.choice(" \t\n▁") * draw.choice([1, 1, 2, 3, 17, 40])
            case 2:
                return "".join(draw.choices("0123456789.,;:<>/_-'\"()[]{}=+*#@!?\\|~`^&%$ ", k=draw.randrange(1, 8)))
            case 3:
                return draw.choice(pieces)[: draw.randrange(1, 9)]
            case 4:
                return "".join(draw.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZéüßñø", k=9))
            case _:
                return draw.choice(pieces)

    for _ in range(count):
        yield "".join(part() for _ in range(draw.randrange(1, 9)))


def assert_same(gemma: Tokenizer, reference: Library, text: str) -> None:
    ids = gemma.encode(text)
    assert ids == reference.encode(text), text[:200]
    assert gemma.decode(ids) == text.replace("▁", " "), text[:200]


def test_ids_equal_sentencepiece_on_random_unicode(gemma: Tokenizer, reference: Library) -> None:
    for text in random_texts(4000, gemma.pieces, seed=1):
        assert_same(gemma, reference, text)


@pytest.mark.slow
def test_ids_equal_sentencepiece_on_100000_random_unicode_strings(gemma: Tokenizer, reference: Library) -> None:
    for text in random_texts(100_000, gemma.pieces, seed=2):
        assert_same(gemma, reference, text)


@pytest.mark.slow
def test_ids_equal_sentencepiece_on_every_shared_text(
    gemma: Tokenizer, reference: Library, shared_texts: Texts
) -> None:
    """Of each its first 200,000 characters: more of a long one has the same words."""
    names = []
    for name, whole in shared_texts():
        text = whole[:200_000]
        ids = gemma.encode(text)
        assert ids == reference.encode(text), name
        assert gemma.decode(ids) == text.replace("▁", " "), name
        names.append(name)
    assert len(names) > 200


@pytest.fixture(scope="module")
def llama_cpp(default_checkpoint: Path) -> Iterator[Callable[[str], list[int]]]:
    """llama.cpp's tokenizer, asked through its own server."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.warmup = str(default_checkpoint), 256, False
    server = xllamacpp.Server(settings)
    address = urlsplit(server.listening_address)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)

    def encode(text: str) -> list[int]:
        # llama.cpp takes every </s> for a control piece, whatever the file says; Gemma's is a user-defined tag.
        asked = {"content": text.replace("</s>", "<s>"), "add_special": False, "parse_special": False}
        connection.request("POST", "/tokenize", json.dumps(asked), {"Content-Type": "application/json"})
        return [int(token_id) for token_id in json.loads(connection.getresponse().read())["tokens"]]

    yield encode
    connection.close()
    del server


def assert_as_llama_cpp(gemma: Tokenizer, llama_cpp: Callable[[str], list[int]], strings: list[str]) -> None:
    """Strings are asked for a thousand at a time, newlines between them: no piece reaches over one.

    U+2581 is left out: llama.cpp looks for user-defined pieces of spaces before it takes the two for the same.
    """
    lines = [text.replace("\n", "\t").replace("</s>", "<s>").replace("▁", " ") for text in strings]
    for start in range(0, len(lines), 1000):
        text = "\n".join(lines[start : start + 1000])
        assert gemma.encode(text) == llama_cpp(text)


def test_ids_equal_llama_cpp_on_random_unicode(gemma: Tokenizer, llama_cpp: Callable[[str], list[int]]) -> None:
    assert_as_llama_cpp(gemma, llama_cpp, list(random_texts(2000, gemma.pieces, seed=3)))


@pytest.mark.slow
def test_ids_equal_llama_cpp_on_100000_random_unicode_strings(
    gemma: Tokenizer, llama_cpp: Callable[[str], list[int]]
) -> None:
    assert_as_llama_cpp(gemma, llama_cpp, list(random_texts(100_000, gemma.pieces, seed=2)))


@pytest.mark.slow
def test_ids_equal_llama_cpp_on_every_shared_text(
    gemma: Tokenizer, llama_cpp: Callable[[str], list[int]], shared_texts: Texts
) -> None:
    for name, text in shared_texts():
        head = text[:10_000].replace("</s>", "<s>")  # llama.cpp reads 0.45 MB/s
        assert gemma.encode(head) == llama_cpp(head), name


@pytest.mark.parametrize("seed", range(40))
def test_ids_equal_sentencepiece_for_any_vocabulary(
    seed: int, library: Callable[[Vocabulary], Library], vocabulary_of: Callable[..., Vocabulary]
) -> None:
    """Also where pieces cross words, hold digits together, tie in score or need characters that are no pieces."""
    draw = random.Random(seed)
    alphabet = "ab1▁>é\n好"
    drawn = {"".join(draw.choices(alphabet, k=draw.choice([1, 2, 2, 3, 4]))) for _ in range(60)}
    pieces = sorted(drawn)
    draw.shuffle(pieces)
    cut = draw.randrange(6)
    vocabulary = vocabulary_of(pieces[cut:], pieces[:cut], has_bytes=bool(seed % 2))
    if seed % 3 == 0:
        vocabulary.scores[:] //= 4
    reference, ours = library(vocabulary), Tokenizer(vocabulary)
    for _ in range(100):
        text = "".join(draw.choices("ab1 >é\n好c▁", k=draw.randrange(1, 200)))
        assert ours.encode(text) == reference.encode(text)


def test_decoding_is_sentencepiece_s_for_ids_that_no_text_gives(gemma: Tokenizer, reference: Library) -> None:
    draw = random.Random(5)
    first_byte = gemma.vocabulary.id_of("<0x00>")
    for _ in range(500):
        ids = [draw.choice([draw.randrange(gemma.vocab_size), first_byte + draw.randrange(256)]) for _ in range(12)]
        assert gemma.decode(ids) == reference.decode(ids)


def test_bos_comes_exactly_once(gemma: Tokenizer) -> None:
    expected = [2, *gemma.encode("Once")]
    assert gemma.prompt("Once") == expected
    assert gemma.prompt("<bos>Once") == expected
    assert gemma.prompt("<bos><bos>Once") == expected
    assert gemma.prompt("<bos>") == [2]
    assert 2 not in gemma.encode("<bos>Once")


def test_control_ids_decode_to_nothing(gemma: Tokenizer) -> None:
    assert gemma.decode([2, 105, *gemma.encode("hi"), 106, 1, 0]) == "hi"


def test_special_ids_are_found_by_their_pieces(gemma: Tokenizer) -> None:
    assert (gemma.pad_id, gemma.eos_id, gemma.bos_id, gemma.unk_id) == (0, 1, 2, 3)
    assert (gemma.start_of_turn_id, gemma.end_of_turn_id) == (105, 106)
    assert gemma.stop_ids == {1, 106}
    assert gemma.vocab_size == 262_144


def test_words_met_before_or_not_change_nothing(gemma: Tokenizer) -> None:
    texts = list(random_texts(600, gemma.pieces, seed=8))
    fresh = Tokenizer(gemma.vocabulary)
    joined = [token_id for text in texts for token_id in [*fresh.encode(text), *fresh.encode("\r")]]
    for _ in range(2):
        assert fresh.encode("".join(text + "\r" for text in texts)) == joined  # no piece has a "\r"


def test_a_megabyte_of_one_letter_does_not_hang(gemma: Tokenizer) -> None:
    ids = gemma.encode("a" * 1_000_000)  # looking at every pair after every merge would take hours
    assert gemma.decode(ids) == "a" * 1_000_000


def test_batches_equal_single_texts_on_one_core_and_on_all(gemma: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*random_texts(60, gemma.pieces, seed=9), "", "one"]
    single = [gemma.encode(text) for text in texts]
    assert gemma.encode_batch(texts) == single
    monkeypatch.setattr(tokenizer_module, "PARALLEL", 1)
    assert gemma.encode_batch(texts) == single
    assert gemma.encode_batch(["", "x", ""]) == [[], gemma.encode("x"), []]
    assert gemma.encode_batch([]) == []


def test_a_copy_for_another_process_gives_the_same_ids(vocabulary_of: Callable[..., Vocabulary]) -> None:
    tokenizer = Tokenizer(vocabulary_of(["ab", "b"], []))
    ids = tokenizer.encode("abba")
    assert pickle.loads(pickle.dumps(tokenizer)).encode("abba") == ids


@pytest.mark.parametrize("encode", ["encode", "prompt"])
def test_a_lone_surrogate_is_refused_where_it_stands(gemma: Tokenizer, encode: str) -> None:
    with pytest.raises(InputError, match=r"lone surrogate U\+DC80 at character 3"):
        getattr(gemma, encode)("abc\udc80")
    with pytest.raises(InputError, match="at character 0"):
        gemma.encode_batch(["fine", "\ud800"])


def test_bytes_that_are_no_utf8_are_refused_where_they_stand() -> None:
    with pytest.raises(InputError, match="0xFF at offset 2"):
        decode_utf8(b"ab\xff")


@pytest.mark.parametrize("wrong", [-1, 262_144, sys.maxsize])
def test_ids_outside_the_vocabulary_are_refused(gemma: Tokenizer, wrong: int) -> None:
    with pytest.raises(InputError, match=rf"expected token ids in 0..262143, got {wrong}"):
        gemma.decode([5, wrong])


def test_a_vocabulary_without_the_specials_is_refused() -> None:
    with pytest.raises(FileError, match="expected the piece '<bos>'"):
        Vocabulary.from_rows(["<pad>", "<eos>", "<unk>"], [0] * 3, [3, 3, 2])
