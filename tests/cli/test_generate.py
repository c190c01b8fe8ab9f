# SPDX-License-Identifier: Apache-2.0
"""gemmary generate prints the continuation and nothing else, as it comes; --json says what it cost."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gemmary.base.errors import ContextError
from gemmary.generate.request import Request, Token
from gemmary.generate.scripted import ScriptedGenerator

Command = Callable[..., tuple[int, str, str]]


def test_the_continuation_alone_is_printed_with_one_line_end(command: Command, scripted: Callable) -> None:
    scripted({"France is": " Paris — été.", "poem": "a\nb\n"})
    assert command("generate", "The capital of France is") == (0, " Paris — été.\n", "")
    assert command("generate", "a poem") == (0, "a\nb\n", "")


def test_options_reach_the_request_and_the_model(command: Command, scripted: Callable) -> None:
    generator = ScriptedGenerator({"hi": "one two three"})
    loaded = scripted(generator)
    options = "--temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.1 --seed 7 --max-tokens 99"
    ends = ["--stop", "three", "--stop", "two"]
    settings = "--model m --engine keras --backend torch --dtype bfloat16 --max-length 50 --draft none --adapter a"
    status, out, _ = command("generate", "hi", *options.split(), *ends, *settings.split())
    assert (status, out) == (0, "one \n")
    [request] = generator.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 3, 0.9, 0.1)
    assert (sampling.repetition_penalty, sampling.seed, request.max_tokens) == (1.1, 7, 99)
    assert request.stop == ("three", "two")
    wanted = {
        "name": "m",
        "adapter": "a",
        "engine": "keras",
        "backend": "torch",
        "dtype": "bfloat16",
        "max_length": 50,
        "draft": "none",
    }
    assert loaded == [{**wanted, "num_slots": 1}]


def test_stdin_is_the_prompt_without_its_last_line_end(
    command: Command, scripted: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = ScriptedGenerator({"é": "x"})
    scripted(generator)
    for given, prompt in ((b"caf\xc3\xa9\n\n", "café\n"), (b"caf\xc3\xa9\r\n", "café"), (b"caf\xc3\xa9", "café")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert command("generate", "-") == (0, "x\n", "")
        assert generator.requests[-1].prompt == prompt


def test_text_is_out_before_the_next_token_is_asked_for(
    command: Command, scripted: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    class Watching(ScriptedGenerator):
        def stream(self, request: Request) -> Iterator[Token]:
            for token in super().stream(request):
                seen.append(capsys.readouterr().out)
                yield token

    scripted(Watching({"hi": "abc"}))
    assert command("generate", "hi")[0] == 0
    assert seen == ["", "a", "b", "c"]


def test_json_is_one_object_with_ids_and_costs(
    command: Command, scripted: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    scripted({"hi": "né"})
    status, out, err = command("generate", "hi", "--json", "--engine", "keras")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert (found["text"], found["finish_reason"]) == ("né", "stop")
    assert found["ids"] == [ord("n") + 6, 0xC3 + 6, 0xA9 + 6, 1]
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "cached_tokens": 0, "total": 7}
    assert found["usage"] == {**usage, "drafted_tokens": 0, "accepted_tokens": 0}
    assert found["timings"]["load_seconds"] >= 0 and found["timings"]["decode_tokens_per_second"] is None
    assert (found["model"], found["engine"], found["backend"]) == ("gemma-3-270m", "keras", "jax")


def test_a_prompt_past_the_context_is_one_line_and_prints_nothing(command: Command, scripted: Callable) -> None:
    class Small(ScriptedGenerator):
        def stream(self, request: Request) -> Iterator[Token]:
            raise ContextError("expected at most 7 tokens, got 8: shorten the prompt")

    scripted(Small({}))
    assert command("generate", "hi") == (2, "", "gemmary: expected at most 7 tokens, got 8: shorten the prompt\n")


def test_a_reply_follows_a_schema_an_expression_or_a_grammar(
    command: Command, tiny_model: Path, tmp_path: Path
) -> None:
    drawn = ("generate", "hi", "--model", str(tiny_model), "--temperature", "1", "--engine", "native")
    rows = {"properties": {"a": {"enum": ["x", 12]}}, "required": ["a"], "additionalProperties": False}
    schema = {"type": "object", **rows}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for given in (json.dumps(schema), str(tmp_path / "schema.json")):
        status, out, err = command(*drawn, "--json-schema", given)
        assert (status, err) == (0, "") and json.loads(out) in ({"a": "x"}, {"a": 12})
    assert command(*drawn, "--regex", "(yes|no)!").out in ("yes!\n", "no!\n")
    (tmp_path / "lists").write_text('start: "a" ("," "a")~2 "é"')
    assert command(*drawn, "--grammar", str(tmp_path / "lists")) == (0, "a,a,aé\n", "")


def test_what_a_reply_cannot_follow_is_one_line(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    ask = ("generate", "hi", "--model", str(tiny_model), "--engine", "native")
    (tmp_path / "latin").write_bytes(b'start: "\xe9"')
    wrong = {
        ("--json-schema", "{"): "expected a JSON schema that replies can follow, got one with a fault: EOF",
        ("--json-schema", '{"type": "text"}'): "expected a JSON schema .* fault: Invalid type: text",
        ("--json-schema", "missing.json"): "expected a readable file, got missing.json: No such file",
        ("--regex", "(a"): "expected a regular expression that .* unclosed group",
        ("--grammar", str(tmp_path)): "expected a readable file, got .*: Is a directory",
        ("--grammar", str(tmp_path / "latin")): "expected UTF-8 text, got the byte 0xE9 at offset 8",
        ("--regex", "a", "--json-schema", "{}"): "expected one thing .* got --json-schema and --regex: leave out",
    }
    for options, message in wrong.items():
        status, out, err = command(*ask, *options)
        assert (status, out, err.count("\n")) == (2, "", 1), options
        assert re.match(f"gemmary: {message}", err), err


@pytest.mark.slow
def test_the_embedded_default_goes_on_as_in_llama_cpp(default_checkpoint: Path) -> None:
    pytest.importorskip("gemmary.generate.keras_engine")
    prompt = ("generate", "The capital of France is", "--max-tokens", "8", "--engine", "keras", "--json")
    done = subprocess.run([sys.executable, "-m", "gemmary", *prompt], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["text"] == " the capital of the country of France."  # llama-server at temperature 0, the same file
    usage = {"prompt_tokens": 6, "completion_tokens": 8, "cached_tokens": 0, "total": 14}
    assert found["usage"] == {**usage, "drafted_tokens": 0, "accepted_tokens": 0}
    assert found["timings"]["prefill_tokens_per_second"] > 0 and len(found["ids"]) == 8
