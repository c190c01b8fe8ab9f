# SPDX-License-Identifier: Apache-2.0
"""A tokenizer.json keeps the rows, and `tokenizers` and `transformers` give our ids with it."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

from gemmary.base.errors import FileError
from gemmary.formats.gguf import read_gguf
from gemmary.formats.sentencepiece import Kind, Vocabulary
from gemmary.formats.tokenizer_json import read_tokenizer_json, write_tokenizer_json
from gemmary.text.tokenizer import Tokenizer

TEXTS = [
    "Hello, world 1984!\r\n\n\n\tdef f(x):  return <h1>x</h1>",
    "a" + " " * 16 + "b" + " " * 17 + "c" + " " * 40 + "d",  # runs past 16 spaces, where published files differ
    "\n" * 40 + "\t" * 40 + "好 🦜 é \U000e0001 > </",
    "".join(chr(code) for code in range(1, 0x600)),
    "",
]


def small() -> Vocabulary:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁▁", "\n", "abc", "ab", "a", "b", "c", "▁"]
    return Vocabulary.from_rows(pieces, [0, 0, 0, 0, 0, 0, -1, 0, -2, -3, -4, -5], [3, 3, 3, 2, 4, 4, 1, 1, 1, 1, 1, 1])


@pytest.fixture(scope="module")
def gemma(default_checkpoint: Path) -> Vocabulary:
    vocabulary = read_gguf(default_checkpoint).vocabulary
    assert vocabulary is not None
    return vocabulary


@pytest.fixture(scope="module")
def folder(gemma: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    write_tokenizer_json(gemma, folder / "tokenizer.json")
    (folder / "config.json").write_text('{"model_type": "gemma3_text"}')
    return folder


def test_rows_survive(tmp_path: Path) -> None:
    write_tokenizer_json(small(), tmp_path / "tokenizer.json")
    copy = read_tokenizer_json(tmp_path / "tokenizer.json")
    assert copy.pieces == small().pieces
    assert np.array_equal(copy.kinds, small().kinds)
    assert copy.scores.tolist() == [0, 0, 0, 0, 0, 0, -1, 0, -2, -3, -4, -5]


@pytest.mark.slow
def test_gemma_s_own_pieces_kinds_and_order_survive(gemma: Vocabulary, folder: Path) -> None:
    copy = read_tokenizer_json(folder / "tokenizer.json")
    assert copy.pieces == gemma.pieces
    assert np.array_equal(copy.kinds, gemma.kinds)
    merged = np.array([len(piece) > 1 for piece in gemma.pieces]) & (gemma.kinds == Kind.NORMAL)
    assert np.array_equal(copy.scores[merged], gemma.scores[merged])


@pytest.mark.slow
def test_tokenizers_gives_our_ids_and_text(gemma: Vocabulary, folder: Path) -> None:
    theirs, ours = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), Tokenizer(gemma)
    for text in TEXTS:
        assert theirs.encode(text).ids == ours.prompt(text)
        assert theirs.decode(ours.prompt(text)) == ours.decode(ours.prompt(text))


@pytest.mark.slow
def test_transformers_loads_it_and_gives_our_ids(gemma: Vocabulary, folder: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert [theirs(text).input_ids for text in TEXTS] == [Tokenizer(gemma).prompt(text) for text in TEXTS]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (2, 1, 0)


def written(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "tokenizer.json"
    write_tokenizer_json(small(), path)
    return path, json.loads(path.read_text())


def test_merges_may_be_written_as_text(tmp_path: Path) -> None:
    path, content = written(tmp_path)
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    path.write_text(json.dumps(content))
    assert np.array_equal(read_tokenizer_json(path).scores, small().scores)


@pytest.mark.parametrize("change", [{"normalizer": None}, {"type": "Unigram"}])
def test_other_rules_than_gemma_s_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path, content = written(tmp_path)
    (content if "normalizer" in change else content["model"]).update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(FileError, match="expected BPE with spaces written as ▁"):
        read_tokenizer_json(path)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("vocab", {"a": 99}, "expected ids 0 to"),
        ("vocab", {"a": "x"}, "expected a BPE tokenizer.json"),
        ("vocab", [1], "expected a BPE tokenizer.json"),
        ("merges", [["a", "b"], ["ab", "c"], ["a", "b"]], "got them apart"),
        ("merges", [["a"]], "expected a BPE tokenizer.json"),
        ("merges", [["a", 1]], "expected a BPE tokenizer.json"),
        ("merges", 7, "expected a BPE tokenizer.json"),
    ],
)
def test_contents_that_contradict_themselves_are_refused(tmp_path: Path, key: str, value: Any, error: str) -> None:
    path, content = written(tmp_path)
    content["model"][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(FileError, match=error):
        read_tokenizer_json(path)


@pytest.mark.parametrize("data", [b"", b"[1]", b"{}", b'{"model": 3}', b"\xff\xfe", b"[" * 100_000, b'{"a": NaN'])
def test_hostile_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(FileError):
        read_tokenizer_json(path)


def test_damaged_files_give_a_vocabulary_or_a_file_error_and_nothing_else(tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    data, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(1000):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            assert read_tokenizer_json(path).size > 0
        except FileError:
            refused += 1
    assert refused > 300
