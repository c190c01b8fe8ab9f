# SPDX-License-Identifier: Apache-2.0
"""A .model says the same to us and to protobuf's own classes; damaged and foreign files are refused, never believed."""

import random
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2 as proto

from gemmary.base.errors import FileError
from gemmary.formats.gguf import read_gguf
from gemmary.formats.sentencepiece import (
    Kind,
    Vocabulary,
    parse_sentencepiece,
    read_sentencepiece,
    write_sentencepiece,
)

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LONG = "▁" + "x" * 200


def small() -> Vocabulary:
    kinds = [3, 3, 3, 2] + [6] * 256 + [4, 4, 1, 1, 1]
    scores = [0.0] * 262 + [-0.5, -1.5, -2.5]
    return Vocabulary.from_rows([*SPECIALS, *BYTES, "▁▁", "\n", "▁a", "é", LONG], scores, kinds)


def model_of(vocabulary: Vocabulary) -> proto.ModelProto:
    """The rows as protobuf's classes hold them, with Gemma's rules, kinds of normal pieces left to their default."""
    model = proto.ModelProto()
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
    for piece, score, kind in zip(
        vocabulary.pieces, vocabulary.scores.tolist(), vocabulary.kinds.tolist(), strict=True
    ):
        row = model.pieces.add(piece=piece, score=score)
        if kind != Kind.NORMAL:
            row.type = kind
    return model


def assert_same_rows(got: Vocabulary, expected: Vocabulary) -> None:
    assert got.pieces == expected.pieces
    assert np.array_equal(got.scores, expected.scores)
    assert np.array_equal(got.kinds, expected.kinds)


def test_what_protobuf_writes_is_read(tmp_path: Path) -> None:
    model = model_of(small())
    model.trainer_spec.input.append("a field nobody here reads")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    assert_same_rows(read_sentencepiece(path), small())


def test_what_is_written_protobuf_reads(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    write_sentencepiece(small(), path)
    model = proto.ModelProto.FromString(path.read_bytes())
    assert [piece.piece for piece in model.pieces] == list(small().pieces)
    assert [piece.score for piece in model.pieces] == small().scores.tolist()
    assert [piece.type for piece in model.pieces] == small().kinds.tolist()
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    assert (trainer.model_type, trainer.vocab_size, trainer.byte_fallback) == (2, 265, True)
    assert (trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id) == (3, 2, 1, 0)
    named = (trainer.pad_piece, trainer.eos_piece, trainer.bos_piece, trainer.unk_piece)
    assert list(named) == SPECIALS
    assert (normalizer.name, normalizer.escape_whitespaces) == ("identity", True)
    assert not normalizer.add_dummy_prefix and not normalizer.remove_extra_whitespaces
    assert_same_rows(read_sentencepiece(path), small())


def test_gemma_s_own_rows_survive(default_checkpoint: Path, tmp_path: Path) -> None:
    vocabulary = read_gguf(default_checkpoint).vocabulary
    assert vocabulary is not None
    write_sentencepiece(vocabulary, tmp_path / "tokenizer.model")
    assert_same_rows(read_sentencepiece(tmp_path / "tokenizer.model"), vocabulary)


def test_rows_from_gguf_are_put_right() -> None:
    rows = Vocabulary.from_rows([*SPECIALS, "  ", "a b"], [0] * 6, [3, 3, 3, 3, 4, 1])
    assert rows.pieces[4:] == ("▁▁", "a b")  # only user-defined pieces are written with spaces there
    assert rows.kinds.tolist() == [3, 3, 3, 2, 4, 1]
    assert rows.unknown_id == 3


@pytest.mark.parametrize(
    ("pieces", "kinds", "error"),
    [
        (["a", "a"], [1, 1], "expected every piece once, got 'a' twice"),
        (["▁▁", "  "], [1, 4], "expected every piece once, got '▁▁' twice"),
        (["a", ""], [1, 1], "expected pieces of text, got an empty one at 5"),
        (["a", "\ud800"], [1, 1], "expected pieces of valid Unicode"),
        (["a", "b"], [1, 7], "expected piece kinds 1 to 6, got 7 for piece 5"),
        (["a", "b"], [1, 2], "expected one piece of kind UNKNOWN, got 2"),
        (["a", "<0x41>"], [1, 6], "expected all 256 BYTE pieces or none"),
        (["a", "<0x4>"], [1, 6], "expected BYTE pieces <0x00> to <0xFF>, got '<0x4>'"),
        (["a"], [1, 1], "expected as many scores and kinds as the 5 pieces, got 6 and 6"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(pieces: list[str], kinds: list[int], error: str) -> None:
    with pytest.raises(FileError, match=error):
        Vocabulary.from_rows([*SPECIALS, *pieces], [0] * (4 + len(kinds)), [3, 3, 3, 2, *kinds])


@pytest.mark.parametrize("missing", SPECIALS)
def test_missing_specials_are_named(missing: str) -> None:
    pieces = [piece for piece in SPECIALS if piece != missing]
    with pytest.raises(FileError, match=missing if missing != "<unk>" else "UNKNOWN"):
        Vocabulary.from_rows(pieces, [0] * 3, [2 if piece == "<unk>" else 3 for piece in pieces])


def test_a_special_that_is_an_ordinary_piece_and_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(FileError, match="expected <bos> to be a CONTROL piece, got kind 1"):
        Vocabulary.from_rows(SPECIALS, [0] * 4, [3, 3, 1, 2])
    with pytest.raises(FileError, match="expected finite scores, got nan for piece 1"):
        Vocabulary.from_rows(SPECIALS, [0, float("nan"), 0, 0], [3, 3, 3, 2])


@pytest.mark.parametrize(
    ("spec", "field", "value", "rule"),
    [
        ("trainer_spec", "model_type", 1, "model_type BPE"),
        ("trainer_spec", "byte_fallback", False, "byte_fallback True"),
        ("normalizer_spec", "precompiled_charsmap", b"nfkc", "no normalisation"),
        ("normalizer_spec", "add_dummy_prefix", True, "add_dummy_prefix off"),
        ("normalizer_spec", "remove_extra_whitespaces", True, "remove_extra_whitespaces off"),
        ("normalizer_spec", "escape_whitespaces", False, "escape_whitespaces on"),
    ],
)
def test_models_with_other_rules_than_gemma_s_are_refused(spec: str, field: str, value: object, rule: str) -> None:
    model = model_of(small())
    setattr(getattr(model, spec), field, value)
    with pytest.raises(FileError, match=f"expected Gemma's rule {rule}"):
        parse_sentencepiece(model.SerializeToString(), "a model")


def test_a_model_cut_anywhere_is_refused() -> None:
    data = model_of(small()).SerializeToString()
    for end in range(0, len(data), 3):
        with pytest.raises(FileError):
            parse_sentencepiece(data[:end], "a model")


def test_flipped_bits_give_a_vocabulary_or_a_file_error_and_nothing_else() -> None:
    data, draw, refused = model_of(small()).SerializeToString(), random.Random(0), 0
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:
            assert parse_sentencepiece(bytes(damaged), "a model").size > 0
        except FileError:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\x7f",  # a piece of 34 GB
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of eleven bytes
        b"\x08\x01",  # a number for a piece
        b"\x0a\x02\x0a\x05",
        b"\x0a\x03\x0a\x01\xff",  # a piece that is no UTF-8
        b"\x0a\x02\x10\x01",  # a number for a score
        b"\x0f",  # a wire type there is not
        b"\x12\x00\x1a\x00",
        b"PK\x03\x04 not a model at all",
    ],
)
def test_hostile_bytes_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.model"
    path.write_bytes(data)
    with pytest.raises(FileError):
        read_sentencepiece(path)


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected a readable file"):
        read_sentencepiece(tmp_path / "none.model")
    with (tmp_path / "huge.model").open("wb") as file:
        file.truncate(1 << 30)  # takes no room on the disk
    with pytest.raises(FileError, match=r"expected a \.model of at most"):
        read_sentencepiece(tmp_path / "huge.model")
