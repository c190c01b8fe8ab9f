# SPDX-License-Identifier: Apache-2.0
"""Put a benchmark's table into its section of docs/numbers.md, with the day, the commit and the machine."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "numbers.md"
PACKAGES = (
    "numpy",
    "keras",
    "jax",
    "torch",
    "tensorflow",
    "transformers",
    "xllamacpp",
    "ctranslate2",
    "peft",
    "keras-hub",
)


def record(section: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, command: str) -> None:
    """Print the table and write it between the section's markers; the first column is text, the others are numbers.

    Raises SystemExit when the page has no such section.
    """
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    text = "\n".join([f"`{command}`, {origin()}", "", *lines])
    print(text)
    begin, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    page, found = re.subn(
        f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})",
        lambda _: f"\n{text}\n\n",
        PAGE.read_text("utf-8"),
        flags=re.DOTALL,
    )
    if found != 1:
        raise SystemExit(f"expected one section {begin} ... {end} in {PAGE.name}, got {found}: add it")
    PAGE.write_text(page, "utf-8")


def origin() -> str:
    """The day, the commit, the machine and the versions, on one line."""
    day = datetime.now(UTC).date()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{os.cpu_count()} × {processor()}, {memory:.0f} GiB, Python {platform.python_version()}"
    return f"{day}, commit {commit.strip() or 'unknown'}; {machine}, {', '.join(installed())}"


def processor() -> str:
    """The processor's name as Linux gives it; elsewhere the architecture."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.*)", info.read_text()) if info.is_file() else []
    return names[0].strip() if names else platform.machine()


def installed() -> list[str]:
    """The packages that decide speed, with their versions, where they are installed."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
