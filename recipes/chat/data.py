# SPDX-License-Identifier: Apache-2.0
"""The data of the chat adapter: five files of four projects, the same rows and the same split every time.

    python recipes/chat/data.py OUTPUT [--from FOLDER]

Writes OUTPUT/train.jsonl and OUTPUT/held_back.jsonl, rows of `prompt`, `response` and `source`. The files come from
GitHub at fixed commits, or from FOLDER, where each lies under its own name; either way their SHA-256 is checked.
Standard library only.
"""

import argparse
import hashlib
import json
import random
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 20261125
LONGEST = 1200  # characters of a prompt with its reply: a small model learns short answers best

Row = tuple[str, str]  # prompt, reply


@dataclass(frozen=True)
class Source:
    """A file, what is taken of it, and how a record becomes rows."""

    url: str
    sha256: str
    licence: str
    train: int
    held_back: int
    rows: Callable[[Any], Iterator[Row]]

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


def instructed(record: dict[str, Any]) -> Iterator[Row]:
    """Alpaca's fields, as rasbt's and GPTeacher's files have them."""
    reply = record.get("output") or record.get("response") or ""
    yield joined(record["instruction"], record.get("input") or ""), reply


def of_instances(record: dict[str, Any]) -> Iterator[Row]:
    """An instruction with its first instance, as Self-Instruct has them."""
    instance = record["instances"][0]
    yield joined(record["instruction"], instance["input"]), instance["output"]


def worked_out(record: dict[str, Any]) -> Iterator[Row]:
    """A sum in words: without the calculator's notes, and with its result as a sentence."""
    steps, _, result = record["answer"].partition("\n#### ")
    yield record["question"], re.sub(r"<<.*?>>", "", steps) + f"\nThe answer is {result}."


def joined(instruction: str, given: str) -> str:
    return f"{instruction.strip()}\n\n{given.strip()}" if given.strip() else instruction.strip()


GITHUB = "https://raw.githubusercontent.com/"
SOURCES = (
    Source(
        url=GITHUB + "rasbt/LLMs-from-scratch/28c65cdfbc3338e2e040016eea4b7fdf556e4d57/"
        "ch07/01_main-chapter-code/instruction-data.json",
        sha256="7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
        licence="Apache-2.0",
        train=1000,
        held_back=60,
        rows=instructed,
    ),
    Source(
        url=GITHUB + "yizhongw/self-instruct/0b26ccaa415992100fa32df62d41b994cf928e23/data/seed_tasks.jsonl",
        sha256="7779004fa198fdf27cf70a159363879d8a26c53329e11b436af17b3941875f48",
        licence="Apache-2.0",
        train=150,
        held_back=20,
        rows=of_instances,
    ),
    Source(
        url=GITHUB + "yizhongw/self-instruct/0b26ccaa415992100fa32df62d41b994cf928e23/"
        "human_eval/user_oriented_instructions.jsonl",
        sha256="81d60a117db495cecedecd9193504fd07c5b5a42f6699ef6b0f9da10fc22f42e",
        licence="Apache-2.0",
        train=180,
        held_back=30,
        rows=of_instances,
    ),
    Source(
        url=GITHUB + "teknium1/GPTeacher/481075123c29854bddb82655badeef6a438f2436/"
        "Roleplay/roleplay-simple-deduped-roleplay-instruct.json",
        sha256="b5d57a0d92162fd0b78988fe352e8512b435363919caf63efc3759d5a1555023",
        licence="MIT; written by GPT-4",
        train=400,
        held_back=30,
        rows=instructed,
    ),
    Source(
        url=GITHUB + "teknium1/GPTeacher/481075123c29854bddb82655badeef6a438f2436/Codegen/codegen-instruct.json",
        sha256="8b0be81f22b86bccab30f573351b62efb3391da229d2ee817a65ce0abb08b29d",
        licence="MIT; written by GPT-4",
        train=350,
        held_back=30,
        rows=instructed,
    ),
    Source(
        url=GITHUB + "openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
        "grade_school_math/data/train.jsonl",
        sha256="17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        licence="MIT",
        train=600,
        held_back=30,
        rows=worked_out,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--from", dest="folder", type=Path, help="a folder with the files, searched at any depth")
    arguments = parser.parse_args()
    train, held_back = [], []
    for source in SOURCES:
        rows = chosen(source, content(source, arguments.folder))
        held_back += rows[: source.held_back]
        train += rows[source.held_back :]
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("held_back", held_back)):
        path = arguments.output / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        print(f"{path}: {len(rows):,} rows")


def content(source: Source, folder: Path | None) -> bytes:
    """The bytes of a source's file; ends with a line that says why, if they are not those that are known."""
    if folder is None:
        with urllib.request.urlopen(source.url, timeout=60) as answer:
            data = answer.read()
        return (
            data
            if is_known(source, data)
            else sys.exit(f"expected the file of {source.sha256}, got another: {source.url}")
        )
    for path in sorted(folder.rglob(source.name)):
        data = path.read_bytes()
        if is_known(source, data):
            return data
    sys.exit(f"expected {source.name} of SHA-256 {source.sha256} in {folder}, got none: fetch {source.url}")


def is_known(source: Source, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == source.sha256


def chosen(source: Source, data: bytes) -> list[dict[str, str]]:
    """The rows taken of a file, in an order drawn by the seed; those held back stand first."""
    text = data.decode("utf-8")
    records = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    rows = dict.fromkeys((prompt.strip(), reply.strip()) for record in records for prompt, reply in source.rows(record))
    fitting = [row for row in rows if all(row) and len(row[0]) + len(row[1]) <= LONGEST]
    random.Random(SEED).shuffle(fitting)
    wanted = source.train + source.held_back
    return [{"prompt": prompt, "response": reply, "source": source.name} for prompt, reply in fitting[:wanted]]


if __name__ == "__main__":
    main()
