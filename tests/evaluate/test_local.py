# SPDX-License-Identifier: Apache-2.0
"""Files as their authors publish them are read as the rows that lm-eval's tasks ask for."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemmary.base.errors import FileError
from gemmary.evaluate import harness
from gemmary.evaluate.local import read
from gemmary.evaluate.programs import humaneval, mbpp
from gemmary.evaluate.tasks import GROUPS

ABSENT = ("piqa", "boolq", "winogrande", "mbpp")  # of the 18, from the data sets beside the checkout


def written(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")


def test_a_prompt_as_it_is_asked_becomes_the_question_again(tmp_path: Path) -> None:
    asked = {"id": "1", "query": "Question: Why?\nAnswer:", "choices": ["a", "b", "c"], "gold": 1}
    plain = {
        "id": "1",
        "question": "Why?",
        "choices": {"text": ["a", "b", "c"], "label": list("ABC")},
        "answerKey": "B",
    }
    written(tmp_path / "arc_easy" / "test.jsonl", asked)
    written(tmp_path / "arc_easy" / "validation.jsonl", plain)
    found = read(tmp_path, "arc_easy")
    assert found["validation"] == [plain] and found["test"] == [{k: v for k, v in plain.items() if k != "id"}]


def test_agieval_is_asked_as_its_authors_do(tmp_path: Path) -> None:
    row = {"passage": "P. ", "question": "Which?", "options": ["(A)x", "(B)y"], "label": "B", "answer": None}
    written(tmp_path / "agieval" / "v1" / "sat-en.jsonl", row)
    written(
        tmp_path / "agieval" / "v1" / "math.jsonl", {"passage": None, "question": "2?", "options": None, "answer": "2"}
    )
    [found] = read(tmp_path, "agieval_sat_en")["test"]
    assert found["query"] == "P. Q: Which? Answer Choices: (A)x (B)y\nA: Among A through B, the answer is"
    assert (found["choices"], found["gold"]) == (["(A)x", "(B)y"], [1])
    assert read(tmp_path, "agieval_math")["test"] == [{"query": "Q: 2?\nA: The answer is", "answer": "2"}]


def test_parts_are_told_apart_by_subject_kind_and_number(tmp_path: Path) -> None:
    written(tmp_path / "mmlu" / "test.jsonl", {"subject": "anatomy", "n": 1}, {"subject": "virology", "n": 2})
    written(tmp_path / "math" / "test.jsonl", {"type": "Number Theory", "n": 1}, {"type": "Precalculus", "n": 2})
    written(tmp_path / "mbpp" / "mbpp.jsonl", *({"task_id": n} for n in (1, 10, 11, 510, 511, 600, 601, 974)))
    assert [row["n"] for row in read(tmp_path, "mmlu_virology")["test"]] == [2]
    assert [row["n"] for row in read(tmp_path, "minerva_math_num_theory")["test"]] == [1]
    assert [row["n"] for row in read(tmp_path, "minerva_math_precalc")["test"]] == [2]
    assert {split: len(rows) for split, rows in read(tmp_path, "gemmary_mbpp").items()} == dict.fromkeys(
        ("prompt", "test", "validation", "train"), 2
    )


def test_lines_end_where_json_says(tmp_path: Path) -> None:
    written(tmp_path / "gsm8k" / "test.jsonl", {"question": "a\u2028b\x85c", "answer": "#### 1"})
    assert read(tmp_path, "gsm8k")["test"][0]["question"] == "a\u2028b\x85c"


def test_damaged_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    with pytest.raises(FileError, match=r"expected rows of gsm8k in .*gsm8k, got none"):
        read(tmp_path, "gsm8k")
    (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question": "cut', "utf-8")
    with pytest.raises(FileError, match=r"expected JSON on every line of .*test\.jsonl"):
        read(tmp_path, "gsm8k")
    for name, row in {"mmlu/test": {"question": "?"}, "math/test": [1], "triviaqa/validation": {"question": 1}}.items():
        written(tmp_path / f"{name}.jsonl", row)
    for task in ("mmlu_anatomy", "minerva_math_algebra", "triviaqa"):
        with pytest.raises(FileError, match=f"expected rows of {task} in .* as the guide says, but: "):
            read(tmp_path, task)
    written(tmp_path / "hellaswag" / "val.jsonl", {"ctx_a": "named otherwise"})
    with pytest.raises(FileError, match=r"expected the data of HellaSwag in .*, whole and as its task asks for it"):
        harness.tasks_of(GROUPS["report"]["hellaswag"], data=tmp_path)
    with pytest.raises(FileError, match="expected a task that can be read from a folder, got toxigen"):
        read(tmp_path, "toxigen")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GROUPS["report"] if name not in ABSENT])
def test_the_shared_data_make_requests(name: str, shared_data: Path) -> None:
    """lm-eval makes a prompt and an answer of the first row of each part."""
    for task in harness.tasks_of(GROUPS["report"][name], data=shared_data / "benchmarks").values():
        task.build_all_requests(limit=1)
        assert task.instances and all(isinstance(each.args[0], str) for each in task.instances)
        assert task.doc_to_target(task.instances[0].doc) is not None


@pytest.mark.slow
def test_the_authors_own_solutions_pass_and_broken_ones_fail(shared_data: Path) -> None:
    rows = read(shared_data / "benchmarks", "gemmary_humaneval")["test"][::10]
    assert [humaneval(row, [row["canonical_solution"]])["pass@1"] for row in rows] == [1.0] * len(rows)
    assert [humaneval(row, ["    return None\n"])["pass@1"] for row in rows] == [0.0] * len(rows)


def test_a_reply_passes_if_all_assertions_hold() -> None:
    doc = {"test_setup_code": "limit = 2", "test_list": ["assert least() == 1", "assert least() < limit"]}
    assert mbpp(doc, ["def least():\n    return 1\n"]) == {"pass@1": 1.0}
    assert mbpp(doc, ["def least():\n    return 2\n"]) == mbpp(doc, ["raise SystemExit(0)"]) == {"pass@1": 0.0}
