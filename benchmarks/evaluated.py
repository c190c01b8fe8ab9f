# SPDX-License-Identifier: Apache-2.0
"""Put what `gemmary evaluate` found into docs/numbers.md, with its picture beside the page.

    python benchmarks/evaluated.py card FOLDER [FOLDER ...]

Each FOLDER is the --out of one evaluation of the same model; the first word names the page's section and the picture.
"""

import argparse
from pathlib import Path
from typing import Any

from record import PAGE, record

from gemmary.evaluate.report import draw, read_results, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section")
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    found = [read_results(folder) for folder in options.folders]
    merged: dict[str, Any] = {**found[0], "benchmarks": {}, "not_run": {}}
    for each in found:
        if each["model"]["sha256"] != merged["model"]["sha256"]:
            raise SystemExit("expected results of one model, got others: name folders of the same")
        merged["benchmarks"] |= each["benchmarks"]
        merged["not_run"] |= each["not_run"]
    draw(merged, PAGE.parent / f"{options.section}.png")
    head, _, *lines = table(merged).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    columns = head.strip("| ").split(" | ")
    command = f"gemmary evaluate --tasks {','.join(merged['benchmarks'])}"
    record(options.section, columns, [pad(row, len(columns)) for row in rows], command=command)


def pad(row: list[str], count: int) -> list[str]:
    return [*row, *[""] * (count - len(row))]


if __name__ == "__main__":
    main()
