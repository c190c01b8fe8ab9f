# SPDX-License-Identifier: Apache-2.0
"""The chat adapter beside the model it was learnt on: do replies end, IFEval (strict), GSM8K; all else the same.

    python recipes/chat/evaluate.py OUTPUT --adapter FOLDER --held-back FILE --ifeval FILE --gsm8k FILE [--every I G]

Needs `pip install if-verifiable pysbd`: IFEval's own checkers as a package, and a splitter of sentences that needs no
download, in the place of NLTK's Punkt. Replies go to OUTPUT as JSON lines, where those that are there are not asked
for again; the table is printed.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import gemmary
from gemmary.cli.chat import OURS
from gemmary.generate.request import Request, Sampling
from gemmary.text.chat import Message, prompt_ids

Row = dict[str, Any]
EVERY = "ask only one in so many of IFEval and of GSM8K"
BLOCK = 40  # prompts between two lines of progress
SAMPLING = Sampling(temperature=OURS[0], top_k=64, top_p=0.95, repetition_penalty=OURS[1])  # as `gemmary chat` draws


@dataclass(frozen=True)
class Task:
    """Prompts, how long a reply may be, and what share of which units is right."""

    name: str
    rows: list[Row]  # each with its `prompt`
    max_tokens: int
    judge: Callable[[Row, Row], Iterable[bool]]  # of a row and its reply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    for name in ("adapter", "held-back", "ifeval", "gsm8k"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--every", type=int, nargs=2, default=(1, 1), metavar=("I", "G"), help=EVERY)
    arguments = parser.parse_args()
    asked, ruled = rows_of(arguments.held_back), rows_of(arguments.ifeval)[:: arguments.every[0]]
    problems = [{"prompt": row["question"], **row} for row in rows_of(arguments.gsm8k)[:: arguments.every[1]]]
    tasks = (
        Task("ends its turn", asked, 384, ends),
        Task("GSM8K", problems, 256, is_right),
        Task("IFEval, prompts", ruled, 256, lambda row, reply: [all(follows(row, reply))]),
        Task("IFEval, instructions", ruled, 256, follows),
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, adapter in (("chat", str(arguments.adapter)), ("base", None)):
        for task in tasks:
            known = arguments.output / f"{name}-{task.name.split(',')[0].replace(' ', '-')}.jsonl"
            replies = said(adapter, task, known)
            right = [each for row, reply in zip(task.rows, replies, strict=True) for each in task.judge(row, reply)]
            low, high = interval(sum(right), len(right))
            print(f"{name:5} {task.name:21} {sum(right) / len(right):6.1%} of {len(right):,}, {low:.1%} to {high:.1%}")


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def said(adapter: str | None, task: Task, path: Path) -> list[Row]:
    """The replies, those in the file first."""
    replies = rows_of(path) if path.exists() else []
    if len(replies) == len(task.rows):
        return replies
    generator = gemmary.load(adapter=adapter, engine="native", max_length=2048, num_slots=16)
    while len(replies) < len(task.rows):
        rows = task.rows[len(replies) : len(replies) + BLOCK]
        ids = [prompt_ids(generator.tokenizer, [Message("user", row["prompt"])]) for row in rows]
        done = generator.complete([Request(each, max_tokens=task.max_tokens, sampling=SAMPLING) for each in ids])
        new = [
            {"prompt": row["prompt"], "reply": each.text, "why": each.finish_reason}
            for row, each in zip(rows, done, strict=True)
        ]
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in new)
        replies += new
        print(f"{path.stem}: {len(replies)} of {len(task.rows)}", flush=True)
    return replies


def ends(row: Row, reply: Row) -> Iterator[bool]:
    yield reply["why"] == "stop" and bool(reply["reply"].strip())


def is_right(row: Row, reply: Row) -> Iterator[bool]:
    """Whether the last number of the reply is the answer."""
    numbers = re.findall(r"-?\d[\d,]*\.?\d*", reply["reply"])
    expected = float(row["answer"].rsplit("#### ", 1)[1].replace(",", ""))
    yield bool(numbers) and float(numbers[-1].replace(",", "").rstrip(".")) == expected


def follows(row: Row, reply: Row) -> list[bool]:
    """Of each instruction of a prompt, whether the reply follows it."""
    instructions = checkers()
    found = []
    for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        instruction = instructions[name](name)
        instruction.build_description(**{key: value for key, value in given.items() if value is not None})
        known = instruction.get_instruction_args()
        if known and "prompt" in known:
            instruction.build_description(prompt=row["prompt"])
        found.append(bool(reply["reply"].strip()) and bool(instruction.check_following(reply["reply"])))
    return found


def checkers() -> dict[str, Any]:
    """IFEval's instructions; where they ask NLTK for data that has to be downloaded, these ask without it."""
    import pysbd
    from if_verifiable.ifeval import instructions_registry, instructions_util
    from nltk.tokenize import NLTKWordTokenizer

    splitter = pysbd.Segmenter(language="en", clean=False)
    instructions_util.count_sentences = lambda text: len(splitter.segment(text))
    instructions_util.nltk.word_tokenize = NLTKWordTokenizer().tokenize
    found: dict[str, Any] = instructions_registry.INSTRUCTION_DICT
    return found


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's, at 95%."""
    share, z = right / count, 1.96
    middle, half = share + z * z / (2 * count), z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (middle - half) / scale, (middle + half) / scale


if __name__ == "__main__":
    main()
