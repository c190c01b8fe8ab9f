# SPDX-License-Identifier: Apache-2.0
"""Means, errors and the sign test are those of SciPy; results that are no results are refused."""

import math
import random
from pathlib import Path

import pytest

from gemmary.base.errors import FileError
from gemmary.evaluate.report import Measured, compare, read_results, table, write_results
from gemmary.evaluate.tasks import Benchmark

COIN = Benchmark(title="Coin", shots=2, published={"Gemma 2B": 50.0}, protocol="thrown once")


def measured(values: list[float], **more: int) -> Measured:
    return Measured(benchmark=COIN, values={str(n): value for n, value in enumerate(values)}, **more)


def test_the_error_of_a_mean_and_its_interval_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [random.Random(n).random() for n in range(50)]
    one = measured(values)
    assert one.stderr == pytest.approx(stats.sem(values))
    low, high = stats.norm.interval(0.95, loc=one.mean, scale=one.stderr)
    assert one.interval == pytest.approx((low, high), rel=1e-4)
    assert measured([1.0]).stderr == 0


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 1), (7, 7), (300, 240), (2000, 1)])
def test_the_p_value_is_that_of_an_exact_sign_test(wins: int, losses: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    ours, theirs = [1.0] * wins + [0.0] * losses + [1.0], [0.0] * wins + [1.0] * losses + [1.0]
    first, second = ({"benchmarks": {"coin": measured(each).to_dict()}} for each in (ours, theirs))
    [found] = compare(first, second)
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert found.mean == pytest.approx((wins - losses) / (wins + losses + 1))


def test_the_table_says_how_each_was_measured_and_what_was_not() -> None:
    row = measured([1.0, 0.0, 1.0, 0.0], num_too_long=3)
    text = table({"benchmarks": {"coin": row.to_dict()}, "not_run": {"dice": "no dice"}})
    assert "| Coin | 2 | acc | 50.0 ± 56.6 | 4 | 50.0 |" in text
    assert "- Coin: thrown once; 3 items did not fit in the context and count as wrong" in text
    assert "- dice: no dice" in text


def test_results_go_to_the_disk_and_come_back(tmp_path: Path) -> None:
    results = {"model": {"name": "m"}, "benchmarks": {"coin": measured([1.0, 0.5]).to_dict()}, "not_run": {}}
    write_results(results, tmp_path)
    assert read_results(tmp_path) == read_results(tmp_path / "results.json") == results
    assert math.isclose(read_results(tmp_path)["benchmarks"]["coin"]["mean"], 0.75)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmarks": 3}', '{"benchmarks": {'])
def test_what_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text, "utf-8")
    with pytest.raises(FileError):
        read_results(tmp_path)
