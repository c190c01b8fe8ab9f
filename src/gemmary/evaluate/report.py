# SPDX-License-Identifier: Apache-2.0
"""Results as a file, a table and a picture, and two of them compared item by item.

Measured ─► results.json ─► table() Markdown    draw() PNG    compare(A, B): paired differences
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmary.base.errors import FileError, MissingExtraError
from gemmary.evaluate.intervals import Z, mean_and_error
from gemmary.evaluate.tasks import Benchmark
from gemmary.formats.storage import read_json, write_json, written_whole


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of a benchmark: a value for every item, by a name that is the same in every run.

    >>> measured = Measured(benchmark=Benchmark(title="Coin"), values={"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0})
    >>> measured.mean, round(measured.stderr, 3), [round(end, 3) for end in measured.interval]
    (0.75, 0.25, [0.26, 1.24])
    """

    benchmark: Benchmark
    values: Mapping[str, float]  # of the benchmark's metric, 0 to 1
    other: Mapping[str, float] | None = None  # means of lm-eval's other metrics
    num_too_long: int = 0  # items that did not fit in the context and count as wrong
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """The mean of the values, 0 to 1; items weigh alike whatever part they are of.

        >>> Measured(benchmark=Benchmark(title="Coin"), values={"a": 1.0, "b": 0.0}).mean
        0.5
        """
        return mean_and_error([*self.values.values()])[0]

    @property
    def stderr(self) -> float:
        """The standard error of the mean; 0 for a single item.

        >>> Measured(benchmark=Benchmark(title="Coin"), values={"a": 1.0, "b": 0.0}).stderr
        0.5
        """
        return mean_and_error([*self.values.values()])[1]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the mean, by the normal distribution.

        >>> Measured(benchmark=Benchmark(title="Coin"), values={"a": 1.0, "b": 1.0}).interval
        (1.0, 1.0)
        """
        return self.mean - Z * self.stderr, self.mean + Z * self.stderr

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it, the protocol beside the figure.

        >>> Measured(benchmark=Benchmark(title="Coin", shots=5), values={"a": 1.0}).to_dict()["shots"]
        5
        """
        about = self.benchmark
        return {
            "title": about.title,
            "tasks": list(about.tasks),
            "shots": about.shots,
            "metric": about.metric,
            "filter": about.filter,
            "protocol": about.protocol,
            "published": dict(about.published),
            "num_items": len(self.values),
            "mean": self.mean,
            "stderr": self.stderr,
            "interval": list(self.interval),
            "num_too_long": self.num_too_long,
            "seconds": self.seconds,
            "other": dict(self.other or {}),
            "values": dict(self.values),
        }


def write_results(results: Mapping[str, Any], folder: Path) -> None:
    """results.json, results.md and, where something was measured, results.png, each whole or as it was before.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     write_results({"benchmarks": {}, "not_run": {"bold": "needs a classifier"}}, Path(name))
    ...     sorted(path.name for path in Path(name).iterdir())
    ['results.json', 'results.md']
    """
    write_json(folder / "results.json", results)
    with written_whole(folder / "results.md") as file:
        file.write(table(results).encode())
    if results["benchmarks"]:
        draw(results, folder / "results.png")


def read_results(path: Path) -> dict[str, Any]:
    """The results.json of a folder, or that file itself; raises FileError.

    >>> read_results(Path("no-such-folder"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected the results of gemmary evaluate in no-such-folder, got no such file: ...
    """
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise FileError(f"expected the results of gemmary evaluate in {path}, got no such file: name its --out folder")
    results = read_json(file, limit=1 << 30)
    rows = results.get("benchmarks")
    if not isinstance(rows, dict) or not all(
        isinstance(row, dict) and {"title", "values"} <= row.keys() for row in rows.values()
    ):
        raise FileError(f"expected benchmarks in {file}, got none: name a file that gemmary evaluate wrote")
    return results


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown: ours with its 95% interval, what was published, and how each was measured.

    >>> row = Measured(benchmark=Benchmark(title="Coin", published={"Gemma 2B": 50.0}), values={"a": 1.0, "b": 0.0})
    >>> print(table({"benchmarks": {"coin": row.to_dict()}, "not_run": {}}).splitlines()[2])
    | Coin | 0 | acc | 50.0 ± 98.0 | 2 | 50.0 |
    """
    rows, columns = results["benchmarks"], _columns(results["benchmarks"])
    lines = [f"| benchmark | shots | metric | this model, % | items | {' | '.join(columns)} |"]
    lines.append("| --- |" + " --: |" * (4 + len(columns)))
    for row in rows.values():
        ours = f"{100 * row['mean']:.1f} ± {100 * Z * row['stderr']:.1f}"
        theirs = " | ".join(str(row["published"].get(column, "")) for column in columns)
        lines.append(f"| {row['title']} | {row['shots']} | {row['metric']} | {ours} | {row['num_items']} | {theirs} |")
    notes = [f"- {row['title']}: {note}" for row in rows.values() if (note := _note(row))]
    notes += [f"- {name}: {reason}" for name, reason in results["not_run"].items()]
    return "\n".join([*lines, "", *notes, ""])


def _note(row: Mapping[str, Any]) -> str:
    too_long = f"{row['num_too_long']} items did not fit in the context and count as wrong"
    return "; ".join(part for part in (row["protocol"], too_long if row["num_too_long"] else "") if part)


def _columns(rows: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for row in rows.values() for name in row["published"]))


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The same as a picture: a bar for this model with its interval beside those of the published figures.

    Raises MissingExtraError without matplotlib.

    >>> import tempfile
    >>> row = Measured(benchmark=Benchmark(title="Coin", published={"Gemma 2B": 50.0}), values={"a": 1.0, "b": 0.0})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw({"benchmarks": {"coin": row.to_dict()}, "model": {"name": "mine"}}, Path(folder) / "bars.png")
    ...     (Path(folder) / "bars.png").read_bytes()[:4]
    b'\\x89PNG'
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, and nothing is kept
    except ImportError:
        raise MissingExtraError.of("a picture of results", "matplotlib", "evaluate") from None
    rows, columns = list(results["benchmarks"].values()), _columns(results["benchmarks"])
    figure = Figure(figsize=(max(6, 1.1 * len(rows) + 2), 4.5), layout="constrained")
    axes = figure.add_subplot(ylabel="%", ylim=(0, 100))
    width = 0.85 / (1 + len(columns))
    ours = [100 * row["mean"] for row in rows]
    errors = [100 * Z * row["stderr"] for row in rows]
    places = range(len(rows))
    axes.bar(places, ours, width, yerr=errors, label=results["model"]["name"], color="C3", capsize=2)
    for rank, column in enumerate(columns, start=1):
        there = [at for at, row in enumerate(rows) if column in row["published"]]
        heights = [rows[at]["published"][column] for at in there]
        shade = str(0.3 + 0.6 * rank / (1 + len(columns)))
        axes.bar([at + rank * width for at in there], heights, width, label=f"{column} (published)", color=shade)
    labels = [f"{row['title']}\n{row['shots']}-shot" for row in rows]
    axes.set_xticks([at + width * len(columns) / 2 for at in places], labels, rotation=35, ha="right")
    axes.legend(fontsize="small", ncols=3)
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=120)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better A is than B on the items that both were asked, with the p-value of an exact sign test.

    >>> difference = Difference(title="Coin", num_items=4, mean=0.25, stderr=0.25, p_value=1.0)
    >>> [round(end, 2) for end in difference.interval]
    [-0.24, 0.74]
    """

    title: str
    num_items: int
    mean: float  # of A's value less B's
    stderr: float
    p_value: float  # that the items which differ would lie so far to one side if A and B were alike

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the difference.

        >>> Difference(title="Coin", num_items=4, mean=0.0, stderr=0.0, p_value=1.0).interval
        (0.0, 0.0)
        """
        return self.mean - Z * self.stderr, self.mean + Z * self.stderr


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """A's results less B's, item by item, for the benchmarks in both; raises FileError where there are none.

    >>> row = {"title": "Coin", "values": {"a": 1.0, "b": 1.0}}
    >>> compare({"benchmarks": {"coin": row}}, {"benchmarks": {"coin": {**row, "values": {"a": 1.0, "b": 0.0}}}})
    [Difference(title='Coin', num_items=2, mean=0.5, stderr=0.5, p_value=1.0)]
    """
    found = []
    for name, row in first["benchmarks"].items():
        theirs = second["benchmarks"].get(name, {"values": {}})["values"]
        pairs = [value - theirs[item] for item, value in row["values"].items() if item in theirs]
        if pairs:
            mean, stderr = mean_and_error(pairs)
            wins, losses = sum(pair > 0 for pair in pairs), sum(pair < 0 for pair in pairs)
            found.append(
                Difference(
                    title=row["title"],
                    num_items=len(pairs),
                    mean=mean,
                    stderr=stderr,
                    p_value=_sign_test(wins, losses),
                )
            )
    if not found:
        raise FileError(
            "expected two results with benchmarks and items in common, got none: run both on the same --tasks"
        )
    return found


def _sign_test(wins: int, losses: int) -> float:
    count = wins + losses
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / (1 << count))
