# SPDX-License-Identifier: Apache-2.0
"""Rows of every kind become ids and masks, nothing is left out silently, and bad rows are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.base.errors import FileError, InputError
from gemmary.corpus.examples import Example, Loaded, load, preview
from gemmary.text.tokenizer import Tokenizer

BOS, EOS, START, END = 2, 1, 4, 5
TURNS = [("user", "Hi"), ("model", "Ho"), ("user", "And?"), ("model", "So.")]


@pytest.fixture
def loaded(bytewise: Tokenizer, tmp_path: Path) -> Callable[..., Loaded]:
    """Loads rows through a JSONL file."""

    def run(*values: Any, length: int = 1000, cut: bool = False) -> Loaded:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, values)), "utf-8")
        return load(tmp_path / "rows.jsonl", bytewise, length=length, cut=cut)

    return run


def spelled(example: Example, learned_only: bool = False) -> str:
    """The text of a bytewise example with its markers written out."""
    names = {BOS: b"<bos>", EOS: b"<eos>", START: b"<s>", END: b"<e>"}
    pairs = zip(example.ids.tolist(), example.mask.tolist(), strict=True)
    shown = (names.get(token) or bytes([token - 6]) for token, learned in pairs if learned or not learned_only)
    return b"".join(shown).decode().replace("▁", " ")


KINDS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "messages": (
        "chat",
        {"messages": [{"role": role, "content": text} for role, text in TURNS], "id": 7},
        "<bos><s>user\nHi<e>\n<s>model\nHo<e>\n<s>user\nAnd?<e>\n<s>model\nSo.<e>\n",
        "Ho<e>So.<e>",
    ),
    "conversations": (
        "chat",
        {
            "conversations": [
                {"from": "system", "value": "Rhyme."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Ho"},
            ]
        },
        "<bos><s>user\nRhyme.\n\nHi<e>\n<s>model\nHo<e>\n",
        "Ho<e>",
    ),
    "prompt and response": (
        "instruction",
        {"prompt": "Hi", "response": "Ho"},
        "<bos><s>user\nHi<e>\n<s>model\nHo<e>\n",
        "Ho<e>",
    ),
    "instruction, input and output": (
        "instruction",
        {"instruction": "Add", "input": "1 1", "output": "2", "system": "Count."},
        "<bos><s>user\nCount.\n\nAdd\n\n1 1<e>\n<s>model\n2<e>\n",
        "2<e>",
    ),
    "instruction, no input and response": (
        "instruction",
        {"instruction": "Add", "input": "", "response": "2"},
        "<bos><s>user\nAdd<e>\n<s>model\n2<e>\n",
        "2<e>",
    ),
    "question and answer": (
        "instruction",
        {"question": "1+1?", "answer": "2"},
        "<bos><s>user\n1+1?<e>\n<s>model\n2<e>\n",
        "2<e>",
    ),
    "prompt and completion as messages": (
        "instruction",
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]},
        "<bos><s>user\nHi<e>\n<s>model\nHo<e>\n",
        "Ho<e>",
    ),
    "text": ("text", {"text": " It <bos> rains."}, "<bos> It <bos> rains.<eos>", " It <bos> rains.<eos>"),
}


@pytest.mark.parametrize(("kind", "values", "whole", "learned"), KINDS.values(), ids=KINDS)
def test_a_row_of_every_kind(
    kind: str, values: dict[str, Any], whole: str, learned: str, loaded: Callable[..., Loaded]
) -> None:
    result = loaded(values)
    [example] = result.examples
    assert (result.kind, spelled(example), spelled(example, learned_only=True)) == (kind, whole, learned)
    assert example.ids.dtype == np.int32 and example.mask.dtype == np.bool_ and example.row == 1
    assert (result.tokens, result.learned) == (len(example.ids), int(example.mask.sum()))


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "Hi", "chosen": "Ho", "rejected": "No"},
        {"instruction": "Hi", "output": "other", "chosen": "Ho", "rejected": "No"},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Ho"}}
        | {"rejected": {"from": "gpt", "value": "No"}},
        {"prompt": "Hi"}
        | {
            name: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]
            for name, text in (("chosen", "Ho"), ("rejected", "No"))
        },
    ],
    ids=["strings", "beside an output", "one message each", "whole conversations"],
)
def test_a_preference_gives_two_examples(values: dict[str, Any], loaded: Callable[..., Loaded]) -> None:
    result = loaded(values)
    assert result.kind == "preference"
    assert [spelled(each) for each in result.examples] == ["<bos><s>user\nHi<e>\n<s>model\nHo<e>\n"]
    assert [spelled(each) for each in result.rejected] == ["<bos><s>user\nHi<e>\n<s>model\nNo<e>\n"]
    assert [spelled(each, learned_only=True) for each in result.rejected] == ["No<e>"]


def messages(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


GOOD = {"prompt": "Hi", "response": "Ho"}
BAD: dict[str, tuple[Any, str]] = {
    "no known fields": ({"a": 1, "b": 2}, "expected messages, prompt and response, .* or text, got a, b: rename"),
    "nothing": ({}, "expected messages, .*, got no fields: rename the fields"),
    "no reply": ({"prompt": "Hi", "more": 1}, "expected one of response, output, answer, completion, got more, prompt"),
    "an empty reply": ({"prompt": "Hi", "response": " \n"}, "expected words in response, got an empty text: fill it"),
    "an empty prompt": ({"prompt": "", "response": "Ho"}, "expected words in prompt, got an empty text: fill it"),
    "a number as reply": ({"question": "1+1?", "answer": 2}, "expected messages with role and content .*, got '2'"),
    "another kind": ({"text": "a"}, "expected rows of one kind, got text after instruction: keep"),
    "a reply not to learn": (GOOD | {"label": False}, "expected a reply to learn, got one labelled false: leave"),
    "a lone surrogate": ({"prompt": "Hi", "response": "\ud800"}, "expected valid Unicode text, got a lone surrogate"),
}
BAD_ALONE: dict[str, tuple[Any, str]] = {
    "no messages": (messages(), "expected a reply as the last message, got none: end with one"),
    "the last not a reply": (messages(*TURNS[:3]), "expected a reply as the last message, got 'user': end with one"),
    "an empty reply": (messages(("user", "Hi"), ("model", "")), "expected words in every message, got an empty one"),
    "an unknown role": (messages(("tool", "Hi"), ("model", "Ho")), "expected a role of user, .*, got 'tool': use"),
    "a reply first": (messages(("model", "Ho")), "expected a message by the user, got 'model' first: begin"),
    "system late": (messages(*TURNS, ("system", "x"), TURNS[1]), "expected the system message first, got one after"),
    "content in parts": (messages(("user", [{"type": "text"}])), "expected messages with role and content as text"),
    "messages as text": ({"messages": "Hi"}, "expected a reply as the last message, got 'user'"),
    "a transcript": ({"chosen": "Human: Hi", "rejected": "No"}, "expected a prompt beside chosen, got none: write it"),
    "text as a list": ({"text": ["a"]}, "expected words in text, got list: fill it or leave the row out"),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_by_its_line(values: Any, message: str, loaded: Callable[..., Loaded]) -> None:
    with pytest.raises(FileError, match=rf"^{message}.* \(rows.jsonl, line 2\)$"):
        loaded(GOOD, values)


@pytest.mark.parametrize(("values", "message"), BAD_ALONE.values(), ids=BAD_ALONE)
def test_a_bad_conversation_is_named_by_its_line(values: Any, message: str, loaded: Callable[..., Loaded]) -> None:
    with pytest.raises(FileError, match=rf"^{message}.* \(rows.jsonl, line 1\)$"):
        loaded(values)


def test_no_rows_and_only_long_rows_are_errors(loaded: Callable[..., Loaded]) -> None:
    with pytest.raises(FileError, match="got no rows: write some"):
        loaded()
    with pytest.raises(
        FileError, match=r"expected rows of at most 9 tokens in .*, got none among 1: allow more, or cut"
    ):
        loaded(GOOD, length=9)
    with pytest.raises(InputError, match="expected a length >= 2, got 1"):
        loaded(GOOD, length=1)


def test_an_empty_system_message_is_nothing(loaded: Callable[..., Loaded]) -> None:
    [plain] = loaded(messages(*TURNS)).examples
    [with_system] = loaded(messages(("system", ""), *TURNS)).examples
    assert plain.ids.tolist() == with_system.ids.tolist()


def test_every_row_is_kept_a_duplicate_or_too_long(loaded: Callable[..., Loaded]) -> None:
    result = loaded(
        GOOD, {"question": "Hi", "answer": "Ho"}, GOOD | {"response": "o" * 90}, {"prompt": "a"} | GOOD, length=50
    )
    assert (result.rows, result.kept, result.duplicates, result.too_long, result.cut) == (4, 1, 2, 1, 0)
    assert [example.row for example in result.examples] == [1]


def test_cutting_keeps_the_beginning_and_drops_what_has_nothing_left_to_learn(loaded: Callable[..., Loaded]) -> None:
    long = GOOD | {"response": "o" * 90}
    result = loaded(GOOD, long, {"prompt": "a" * 90, "response": "b"}, length=50, cut=True)
    assert (result.kept, result.too_long, result.cut) == (2, 1, 1)
    [whole] = loaded(long).examples
    assert result.examples[1].ids.tolist() == whole.ids[:50].tolist()
    assert result.examples[1].mask.tolist() == whole.mask[:50].tolist()
    assert result.tokens == sum(len(example.ids) for example in result.examples)


@pytest.mark.parametrize("size", [8, 9, 10, 30])
def test_cutting_a_text_loses_nothing(size: int, loaded: Callable[..., Loaded]) -> None:
    text = "".join(chr(97 + at % 26) for at in range(size))
    result = loaded({"text": text}, length=10, cut=True)
    parts = [spelled(example) for example in result.examples]
    assert "".join(part.removeprefix("<bos>") for part in parts) == text + "<eos>"
    assert all(part.startswith("<bos>") for part in parts) and all(len(each.ids) <= 10 for each in result.examples)
    assert result.learned == size + 1 and result.kept == 1 and result.cut == (size > 8)


def test_preview_shows_tokens_and_what_is_learned(bytewise: Tokenizer, loaded: Callable[..., Loaded]) -> None:
    [example] = loaded({"prompt": "H", "response": "o\x1b"}).examples
    shown = preview(example, bytewise)
    assert shown.endswith("<0x0A>⟦<0x6F>¦<0x1B>¦<end_of_turn>⟧<0x0A>") and shown.startswith("<bos>¦<start_of_turn>")
    assert "\x1b" not in shown


REAL = {  # file: kind, rows
    "benchmarks/gsm8k/train.jsonl": ("instruction", 7473),
    "tuning/gpteacher/codegen-instruct.json": ("instruction", 4535),
    "tuning/gpteacher/roleplay-simple-deduped-roleplay-instruct.json": ("instruction", 1923),
    "tuning/llamafactory_demos/alpaca_en_demo.json": ("instruction", 999),
    "tuning/llamafactory_demos/dpo_en_demo.json": ("preference", 300),
    "tuning/llamafactory_demos/identity.json": ("instruction", 91),
    "tuning/rasbt_instruction_preference/instruction-data-with-preference.json": ("preference", 1100),
    "corpora/wiki_c4_demo/c4_demo.jsonl": ("text", 300),
    "corpora/tinystories_sample/tinystories_sample.txt": ("text", 2317),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_whole(name: str, shared_data: Path, gemma: Tokenizer) -> None:
    result = load(shared_data / name, gemma, length=1024, cut=True)
    assert (result.kind, result.rows) == REAL[name]
    assert result.kept > 0.97 * result.rows - result.duplicates
    assert len(result.rejected) == (len(result.examples) if result.kind == "preference" else 0)
    if result.kind != "text":
        assert len(result.examples) == result.kept


@pytest.mark.slow
def test_what_is_learned_of_gsm8k_is_its_answers(shared_data: Path, gemma: Tokenizer) -> None:
    file = shared_data / "benchmarks/gsm8k/test.jsonl"
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    result = load(file, gemma, length=4096)
    assert result.kept == len(lines) == 1319
    for line, example in zip(lines, result.examples, strict=True):
        assert gemma.decode(example.ids[example.mask].tolist()) == line["answer"].strip()
        assert example.ids[example.mask][-1] == gemma.end_of_turn_id
        assert line["question"].strip() in gemma.decode(example.ids[~example.mask].tolist())


BAD_REAL = {
    "hh_rlhf_harmless_test/test.jsonl.gz": "expected a prompt beside chosen, got none",
    "ifeval/input_data.jsonl": "expected one of response, output, answer, completion, got",
    "llamafactory_demos/glaive_toolcall_en_demo.json": "expected a role of user, .* got 'function_call'",
    "llamafactory_demos/kto_en_demo.json": "expected a reply to learn, got one labelled false",
}


@pytest.mark.parametrize("name", BAD_REAL)
def test_real_files_of_other_kinds_say_what_is_missing(name: str, shared_data: Path, bytewise: Tokenizer) -> None:
    with pytest.raises(FileError, match=rf"^{BAD_REAL[name]}.*\({Path(name).name}, (line|row) \d+\)$"):
        load(shared_data / "tuning" / name, bytewise, length=100_000)
