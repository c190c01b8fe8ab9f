# SPDX-License-Identifier: Apache-2.0
"""gemmary tokenize shows what the tokenizer gives, and decodes."""

import json
from collections.abc import Callable
from pathlib import Path

from gemmary.api import load_tokenizer
from gemmary.formats.sentencepiece import write_sentencepiece
from gemmary.formats.tokenizer_json import write_tokenizer_json

Command = Callable[..., tuple[int, str, str]]


def test_ids_pieces_and_their_number(command: Command, tiny_model: Path) -> None:
    status, out, _ = command("tokenize", "a b\n", "--model", str(tiny_model))
    ids = load_tokenizer(str(tiny_model)).encode("a b\n")
    assert status == 0
    assert out.splitlines() == [
        f"{token_id:>8}  {piece}" for token_id, piece in zip(ids, ["a", "▁", "b", "<0x0A>"], strict=True)
    ] + ["4 tokens"]


def test_json_with_bos_and_back_again(command: Command, tiny_model: Path) -> None:
    found = json.loads(command("tokenize", "é", "--bos", "--json", "--model", str(tiny_model))[1])
    assert found == {"ids": [2, 201, 175], "pieces": ["<bos>", "<0xC3>", "<0xA9>"], "count": 3}
    assert command("tokenize", "--ids", "2, 201 175", "--model", str(tiny_model)) == (0, "é\n", "")
    assert json.loads(command("tokenize", "--ids", "201", "--json", "-m", str(tiny_model))[1]) == {"text": "\ufffd"}


def test_an_id_outside_the_vocabulary_is_one_line(command: Command, tiny_model: Path) -> None:
    status, out, err = command("tokenize", "--ids", "99999", "--model", str(tiny_model))
    assert (status, out) == (2, "")
    assert err == "gemmary: expected token ids in 0..287, got 99999: use ids of this vocabulary\n"


def test_a_vocabulary_file_will_do(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    vocabulary = load_tokenizer(str(tiny_model)).vocabulary
    write_sentencepiece(vocabulary, tmp_path / "tokenizer.model")
    write_tokenizer_json(vocabulary, tmp_path / "tokenizer.json")
    outputs = {command("tokenize", "a b", "-m", str(path)) for path in (tiny_model, *tmp_path.iterdir())}
    assert len(outputs) == 1
