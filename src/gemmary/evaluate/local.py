# SPDX-License-Identifier: Apache-2.0
"""Benchmarks from a folder: files as their authors publish them, read as the rows that lm-eval's tasks expect.

    DIR/gsm8k/{train,test}.jsonl    DIR/mmlu/{dev,test}.jsonl    DIR/bbh/bbh/*.json    DIR/agieval/v1/*.jsonl    ...
        └─► {"test": [{"question": ..., "answer": ...}, ...], ...}: the splits that are there

What is not there is an error that names the file; nothing is ever taken from elsewhere instead.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gemmary.base.errors import FileError

Doc = dict[str, Any]
Splits = dict[str, list[Doc]]

_MATH_TYPES = {
    "counting_and_prob": "Counting & Probability",
    "num_theory": "Number Theory",
    "precalc": "Precalculus",
}  # the others are named as they are spelt


def read(folder: Path, task: str) -> Splits:
    """The rows of a task of lm-eval by split, from a folder of benchmarks; raises FileError for what is not there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     (Path(name) / "gsm8k").mkdir()
    ...     _ = (Path(name) / "gsm8k" / "test.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\\n')
    ...     read(Path(name), "gsm8k")
    {'test': [{'question': '1 + 1?', 'answer': '#### 2'}]}
    """
    for prefix, (place, reader) in _READERS.items():
        if task.startswith(prefix):
            source = folder / place
            if not source.is_dir():
                raise FileError(
                    f"expected the data of {task} in {source}, got no such folder: put its files there, or leave out "
                    "--data and they come from the Hugging Face hub"
                )
            try:
                splits = {split: rows for split, rows in reader(source, task.removeprefix(prefix)).items() if rows}
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
                raise FileError(f"expected rows of {task} in {source} as the guide says, but: {error!r}") from None
            if not splits:
                raise FileError(f"expected rows of {task} in {source}, got none: look whether its files are whole")
            return splits
    raise FileError(f"expected a task that can be read from a folder, got {task}: leave out --data for this one")


def _lines(path: Path) -> list[Doc]:
    """The rows of a .jsonl file, none where there is no file."""
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
    except ValueError as error:
        raise FileError(f"expected JSON on every line of {path}, but: {error}") from None


def _jsonl(convert: Callable[[Doc], Doc] = lambda row: row) -> Callable[[Path, str], Splits]:
    def reader(source: Path, rest: str) -> Splits:
        return {path.stem: [convert(row) for row in _lines(path)] for path in sorted(source.glob("*.jsonl"))}

    return reader


def _choices(question: str) -> Callable[[Doc], Doc]:
    """ARC and OpenBookQA: test files may hold the prompt as it is asked, with the place of the answer."""

    def convert(row: Doc) -> Doc:
        if "query" not in row:
            return row
        letters = list("ABCDE"[: len(row["choices"])])
        text = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        return {
            question: text,
            "choices": {"text": row["choices"], "label": letters},
            "answerKey": letters[row["gold"]],
        }

    return convert


def _triviaqa(row: Doc) -> Doc:
    return {"question": row["question"], "answer": {"value": row["answer"], "aliases": row["aliases"]}}


def _nq(source: Path, rest: str) -> Splits:
    return {"validation": _lines(source / "NQ-open.dev.jsonl")}


def _humaneval(source: Path, rest: str) -> Splits:
    return {"test": _lines(source / "HumanEval.jsonl")}


def _mbpp(source: Path, rest: str) -> Splits:
    """The parts are by number, as in the paper (arXiv 2108.07732, appendix A.1)."""
    rows = _lines(source / "mbpp.jsonl")
    parts = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
    return {name: [row for row in rows if first <= row["task_id"] <= last] for name, (first, last) in parts.items()}


def _math(source: Path, rest: str) -> Splits:
    kind = _MATH_TYPES.get(rest, rest.replace("_", " ").title())
    return {"test": [row for row in _lines(source / "test.jsonl") if row["type"] == kind]}


def _mmlu(source: Path, rest: str) -> Splits:
    names = ("dev", "validation", "test")
    return {name: [row for row in _lines(source / f"{name}.jsonl") if row["subject"] == rest] for name in names}


def _bbh(source: Path, rest: str) -> Splits:
    path = source / "bbh" / f"{rest}.json"
    return {"test": json.loads(path.read_text("utf-8"))["examples"] if path.is_file() else []}


def _agieval(source: Path, rest: str) -> Splits:
    """Rows as AGIEval's own code asks them (github.com/ruixiangcui/AGIEval, zero shots, English)."""
    rows = _lines(source / "v1" / f"{rest.replace('_', '-')}.jsonl")
    return {"test": [_agieval_row(row) for row in rows]}


def _agieval_row(row: Doc) -> Doc:
    passage, options = row.get("passage") or "", row.get("options")
    if not options:
        return {"query": f"{passage}Q: {row['question']}\nA: The answer is", "answer": row["answer"]}
    last = "ABCDEFG"[len(options) - 1]
    asked = (
        f"{passage}Q: {row['question']} Answer Choices: {' '.join(options)}\nA: Among A through {last}, the answer is"
    )
    return {"query": asked, "choices": options, "gold": ["ABCDEFG".index(letter) for letter in row["label"]]}


def _truthfulqa(source: Path, rest: str) -> Splits:
    return {"validation": [_truthfulqa_row(row) for row in _table(source / "TruthfulQA.csv", ",")]}


def _truthfulqa_row(row: Mapping[str, str]) -> Doc:
    true, false = ([part.strip() for part in row[name].split(";") if part.strip()] for name in _TRUE_FALSE)
    targets = {"choices": [*true, *false], "labels": [1] * len(true) + [0] * len(false)}
    return {"question": row["Question"], "mc2_targets": targets}


def _crows_pairs(source: Path, rest: str) -> Splits:
    return {"test": [dict(row) for row in _table(source / "crows_pairs_anonymized.csv", ",")]}


def _winogender(source: Path, rest: str) -> Splits:
    return {"test": [_winogender_row(row) for row in _table(source / "all_sentences.tsv", "\t")]}


def _winogender_row(row: Mapping[str, str]) -> Doc:
    occupation, participant, answer, *_ = row["sentid"].split(".")
    pronoun = re.search(r"\b(he|she|they|him|her|them|his|their)\b", row["sentence"], re.IGNORECASE)
    return {
        "sentence": row["sentence"],
        "pronoun": pronoun.group(1) if pronoun else "they",
        "occupation": occupation,
        "participant": participant,
        "label": int(answer),
    }


def _table(path: Path, delimiter: str) -> Iterator[Mapping[str, str]]:
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file, delimiter=delimiter)


_TRUE_FALSE = ("Correct Answers", "Incorrect Answers")
_READERS: Mapping[str, tuple[str, Callable[[Path, str], Splits]]] = {  # by how lm-eval's name begins
    "hellaswag": ("hellaswag", _jsonl()),
    "arc_easy": ("arc_easy", _jsonl(_choices("question"))),
    "arc_challenge": ("arc_challenge", _jsonl(_choices("question"))),
    "openbookqa": ("openbookqa", _jsonl(_choices("question_stem"))),
    "piqa": ("piqa", _jsonl()),
    "social_iqa": ("siqa", _jsonl()),
    "boolq": ("boolq", _jsonl(lambda row: {**row, "label": int(row["answer"])})),
    "winogrande": ("winogrande", _jsonl()),
    "commonsense_qa": ("commonsenseqa", _jsonl()),
    "triviaqa": ("triviaqa", _jsonl(_triviaqa)),
    "nq_open": ("nq_open", _nq),
    "gsm8k": ("gsm8k", _jsonl()),
    "minerva_math_": ("math", _math),
    "mmlu_": ("mmlu", _mmlu),
    "bbh_cot_fewshot_": ("bbh", _bbh),
    "agieval_": ("agieval", _agieval),
    "gemmary_humaneval": ("humaneval", _humaneval),
    "gemmary_mbpp": ("mbpp", _mbpp),
    "truthfulqa_mc2": ("truthfulqa", _truthfulqa),
    "crows_pairs_english": ("crows_pairs", _crows_pairs),
    "winogender_all": ("winogender", _winogender),
}
