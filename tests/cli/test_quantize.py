# SPDX-License-Identifier: Apache-2.0
"""gemmary quantize writes a GGUF file in 8 or 4 bits and says what that costs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmary.api import load
from gemmary.formats.gguf_file import read_head
from gemmary.generate.perplexity import perplexity

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_sizes_and_perplexities_are_those_of_the_files(
    dtype: str, command: Command, golden: Path, tmp_path: Path
) -> None:
    text, target = tmp_path / "text.txt", tmp_path / "new.gguf"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    arguments = ("--dtype", dtype, "--text", str(text), "--tokens", "300", "--engine", "native", "--json")
    status, out, err = command("quantize", str(golden / "model"), str(target), *arguments)
    assert (status, err.count("\n")) == (0, 1) and err.startswith(f"{target}: ")
    found = json.loads(out)["before_and_after"]
    assert list(found) == ["source", dtype]
    assert found[dtype]["bytes"] == target.stat().st_size < found["source"]["bytes"]
    for name, path in (("source", golden / "model"), (dtype, target)):
        generator = load(str(path), engine="native", max_length=512, num_slots=1)
        ids = generator.tokenizer.encode(text.read_text())[:300]
        assert found[name]["tokens"] == len(ids)
        assert found[name]["perplexity"] == pytest.approx(perplexity(generator, ids))
    kinds = {name: tensor.kind.name for name, tensor in read_head(target).tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == dtype.upper() and kinds["token_embd.weight"] == "Q8_0"


def test_without_a_text_it_says_so(command: Command, golden: Path, tmp_path: Path) -> None:
    status, out, err = command("quantize", str(golden / "model"), str(tmp_path / "new.gguf"))
    assert status == 0
    assert err.splitlines()[-1] == "perplexity is not measured without --text FILE"
    assert [line.split()[0] for line in out.splitlines()] == ["size", "source", "q4_0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", "no-such-file"), "expected a readable text, got no-such-file"),
        (("--text", "latin1.txt"), "expected UTF-8 text, got the byte 0xE9 at offset 3"),
        (("--text", "empty.txt"), "expected a text of at least one token, got an empty one"),
        (("--tokens", "0"), "expected --tokens >= 1, got 0"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    arguments: tuple[str, ...],
    message: str,
    command: Command,
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin1.txt").write_bytes(b"caf\xe9")
    Path("empty.txt").write_bytes(b"")
    status, out, err = command("quantize", str(golden / "model"), "new.gguf", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err and not Path("new.gguf").exists()


def test_an_existing_file_stays_as_it_is(command: Command, golden: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious.gguf"
    target.write_text("precious")
    status, _, err = command("quantize", str(golden / "model"), str(target))
    assert (status, err.count("\n"), target.read_text()) == (2, 1, "precious")
