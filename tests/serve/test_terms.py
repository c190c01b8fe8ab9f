# SPDX-License-Identifier: Apache-2.0
"""Terms are what a question is about, and nothing in them is an operator."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmary.serve.terms import MAX_TERMS, joined, spaced, terms


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How do I use it, and why?", []),
        ("What's the user's PATH?", ["user", "path"]),
        ("Where is /etc/apt/sources.list?", ["etc", "apt", "sources", "list", "etc apt sources list"]),
        ("eggs, eggs, EGGS", ["eggs"]),
        ("naïve cafe\u0301", ["naïve", "café"]),
        ("怎么安装软件包？", ["安 装", "装 软", "软 件", "件 包"]),
        ("apt 的依赖 b", ["apt", "依 赖", "b"]),
        ("水", ["水"]),
        ("東京とpython3", ["東 京", "京 と", "python3"]),
        ("NEAR(a b) OR c* NOT text:x ^y", ["near", "b", "c", "text", "x", "y", "text x"]),
        ('") DROP', ["drop"]),
    ],
)
def test_a_question_is_cut_into_what_it_asks_for(question: str, expected: list[str]) -> None:
    assert terms(question) == [f'"{term}"' for term in expected]


@given(st.text())
def test_any_question_is_a_query_that_fts5_takes(question: str) -> None:
    file = sqlite3.connect(":memory:")
    file.execute("CREATE VIRTUAL TABLE texts USING fts5(text, tokenize = 'porter unicode61 remove_diacritics 2')")
    file.execute("INSERT INTO texts VALUES (?)", ("text",))
    for term in terms(question):
        assert file.execute("SELECT count(*) FROM texts WHERE texts MATCH ?", (term,)).fetchone()[0] in (0, 1)
    file.close()


@given(st.text(alphabet="ab 軟件パ한\u200b"))
def test_texts_come_back_from_the_file_as_they_were(text: str) -> None:
    assert joined(spaced(text)) == text.replace("\u200b", "")


def test_a_question_of_any_length_has_so_many_terms_at_most() -> None:
    assert len(terms(" ".join(f"word{number}" for number in range(10_000)))) == MAX_TERMS
