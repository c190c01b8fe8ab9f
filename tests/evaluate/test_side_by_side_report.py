# SPDX-License-Identifier: Apache-2.0
"""LLM Comparator can read the JSON, and the page shows what models wrote as text, whatever they wrote."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gemmary.base.errors import FileError
from gemmary.evaluate.side_by_side import Pair, Rating, SideBySide, compare
from gemmary.evaluate.side_by_side_report import write_comparator, write_html

HOSTILE = (
    '</pre></article><script src="https://evil.example/x.js">alert(1)</script><img src=x onerror=alert(1)>&amp;"\''
)

# llm-comparator 0.1: README.md (what is required), python/src/llm_comparator/types.py (what each value is)
NULL = type(None)
EXAMPLE: dict[str, tuple[type, ...]] = {
    "input_text": (str,),
    "tags": (list,),
    "output_text_a": (str,),
    "output_text_b": (str,),
    "score": (float, NULL),
    "individual_rater_scores": (list,),
    "rationale_list": (list,),
    "custom_fields": (dict,),
}
RATING: dict[str, tuple[type, ...]] = {
    "score": (float, NULL),
    "rating_label": (str, NULL),
    "is_flipped": (bool, NULL),
    "rationale": (str, NULL),
    "custom_fields": (dict,),
}


def fits(value: dict[str, Any], shape: dict[str, tuple[type, ...]]) -> bool:
    return value.keys() == shape.keys() and all(isinstance(value[name], kinds) for name, kinds in shape.items())


@pytest.fixture
def result() -> SideBySide:
    """A win, a tie by verdicts that differ, a loss, an unreadable one and equal replies; all of them hostile."""

    def pair(*ratings: Rating) -> Pair:
        return Pair(prompt=f"Say {HOSTILE}", reply_a=f"a {HOSTILE}", reply_b=f"b {HOSTILE}", ratings=ratings)

    win = Rating(is_flipped=False, verdict="win", text=f"{HOSTILE}\nVerdict: 1")
    loss = Rating(is_flipped=True, verdict="loss", text="Verdict: 1")
    unreadable = Rating(is_flipped=False, verdict="unreadable", text="Who knows? 🙈 \ud83d")
    return SideBySide(pairs=(pair(win), pair(win, loss), pair(loss), pair(unreadable), pair()))


def test_the_json_is_what_llm_comparator_documents(result: SideBySide, tmp_path: Path) -> None:
    write_comparator(result, tmp_path / "out.json", ("tuned", "base"))
    content = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert content.keys() == {"metadata", "models", "examples"}
    assert content["metadata"] == {"source_path": "out.json", "custom_fields_schema": []}
    assert content["models"] == [{"name": "tuned"}, {"name": "base"}]
    assert all(fits(example, EXAMPLE) for example in content["examples"])
    ratings = [rating for example in content["examples"] for rating in example["individual_rater_scores"]]
    assert all(fits(rating, RATING) for rating in ratings)
    assert [example["score"] for example in content["examples"]] == [0.5, 0.0, -0.5, None, 0.0]
    assert [(rating["is_flipped"], rating["score"]) for rating in ratings] == [
        (False, 0.5),
        (False, 0.5),
        (True, -0.5),
        (True, -0.5),
        (False, None),
    ]
    assert content["examples"][0]["output_text_a"] == f"a {HOSTILE}"
    assert ratings[-1]["rationale"] == "Who knows? 🙈 \ud83d"


def test_a_clean_sweep_stays_on_the_scale_around_zero(tmp_path: Path) -> None:
    # state_service.ts, determineHistogramSpecForScores: when the smallest score is 1 or more it is "unknown scheme",
    # whose middle is not 0; isWinnerFromScore: a win is more than 0.25 above the middle
    rating = Rating(is_flipped=False, verdict="win", text="")
    won = SideBySide(pairs=(Pair(prompt="p", reply_a="a", reply_b="b", ratings=(rating,)),) * 2)
    write_comparator(won, tmp_path / "out.json")
    examples = json.loads((tmp_path / "out.json").read_text("utf-8"))["examples"]
    scores = [each["score"] for example in examples for each in (example, *example["individual_rater_scores"])]
    assert len(scores) == 4 and all(0.25 < score < 1 for score in scores)


class Elements(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(path: Path) -> Elements:
    elements = Elements()
    elements.feed(path.read_text("utf-8"))
    return elements


def test_what_models_and_names_say_stays_text(result: SideBySide, tmp_path: Path) -> None:
    write_html(result, tmp_path / "out.html", (f"A{HOSTILE}", f"B{HOSTILE}"))
    page = parsed(tmp_path / "out.html")
    assert {"script", "img", "link", "iframe"}.isdisjoint(tag for tag, _ in page.found)
    attributes = {name for _, attrs in page.found for name in attrs}
    assert attributes == {"lang", "charset", "name", "content", "http-equiv", "class", "style"}
    for text in (f"a {HOSTILE}", f"b {HOSTILE}", f"Say {HOSTILE}", f"{HOSTILE}\nVerdict: 1", f"A{HOSTILE} is better"):
        assert text in page.text
    assert "url(" not in page.text and "@import" not in page.text
    assert "default-src 'none'" in str(page.found)


def test_the_page_says_who_won_how_often_and_why(result: SideBySide, tmp_path: Path) -> None:
    write_html(result, tmp_path / "out.html", ("tuned", "base"))
    page = parsed(tmp_path / "out.html")
    low, high = result.interval
    for text in (
        f"tuned wins 50.0%, ties split evenly (95% interval {low:.1%} to {high:.1%})",
        "tuned is better 25.0%",
        "tie 50.0%",
        "base is better 25.0%",
        "Prompts: 5; without a readable verdict: 1; preferences for the reply that the judge was shown first: 100.0%.",
        "4: no readable verdict",
        "The judge, shown base first: base is better",
        "The replies are equal.",
    ):
        assert text in page.text, text
    widths = [attrs["style"] for tag, attrs in page.found if tag == "div" and "style" in attrs]
    assert widths == ["width:25.000%", "width:50.000%", "width:25.000%"]
    assert sum(tag == "details" for tag, _ in page.found) == 5
    assert "prefers-color-scheme: dark" in page.text


def test_a_page_without_a_verdict_shows_no_rate(tmp_path: Path) -> None:
    write_html(compare(["p"], ["a"], ["b"], lambda asked: ["Hm."]), tmp_path / "out.html")
    page = parsed(tmp_path / "out.html")
    assert "Prompts: 1; without a readable verdict: 1." in page.text
    assert "wins" not in page.text and "None" not in page.text


def test_files_are_written_whole_or_not_at_all(result: SideBySide, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for write in (write_comparator, write_html):
        with pytest.raises(FileError, match=r"^expected a folder to write"):
            write(result, tmp_path / "file" / "out")
        write(result, tmp_path / "new" / "out")
        write(result, tmp_path / "new" / "out")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
