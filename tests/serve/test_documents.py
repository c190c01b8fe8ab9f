# SPDX-License-Identifier: Apache-2.0
"""A library keeps documents whole, finds the passage that answers, and says when there is none."""

import os
import runpy
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmary.base.errors import FileError, InputError
from gemmary.serve.documents import Library, context, default_library

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "documents.py"
TEA = b"# Tea\n\n## Green\n\nGreen tea is brewed at 80 degrees.\n\n## Black\n\nBlack tea takes boiling water.\n"
ADDING = """
import sys
from pathlib import Path
from gemmary.serve.documents import Library
with Library(Path(sys.argv[1])) as library:
    for number in range(10_000):
        library.add_bytes("same.txt", f"{number} apples and pears. ".encode() * 200)
        library.add_bytes(f"{number}.txt", f"{number} plums and figs. ".encode() * 200)
"""


@pytest.fixture
def library() -> Iterator[Library]:
    with Library(Path(":memory:")) as library:
        yield library


def texts(library: Library, question: str) -> list[str]:
    return [found.passage.text for found in library.search(question)]


def test_a_passage_found_names_its_file_its_lines_and_its_headings(library: Library) -> None:
    library.add_bytes("tea.md", TEA)
    first, second = library.search("How hot is the water for black tea?")
    assert first.passage.source == "tea.md, lines 7-9" and first.passage.headings == ("Tea", "Black")
    assert first.score > second.score and library.passage(first.passage.id) == first.passage
    assert first.passage.described()["heading"] == "Tea > Black"
    assert len(library.search("How hot is the water for black tea?", limit=1)) == 1


def test_the_same_content_is_one_document_and_new_content_takes_the_place_of_old(library: Library) -> None:
    tea = library.add_bytes("tea.md", TEA)
    assert library.add_bytes("copy.md", TEA) == tea and library.documents() == [tea]
    new = library.add_bytes("tea.md", b"White tea is brewed at 75 degrees.")
    assert library.documents() == [new] and new.id > tea.id
    assert texts(library, "white tea") == ["White tea is brewed at 75 degrees."]
    assert texts(library, "black tea boiling water") == []


def test_content_that_is_there_takes_the_place_of_what_had_the_name(library: Library) -> None:
    tea = library.add_bytes("tea.md", TEA)
    library.add_bytes("other.md", b"Something else.")
    assert library.add_bytes("other.md", TEA) == tea and library.documents() == [tea]


def test_ids_of_what_was_removed_are_never_given_again(library: Library) -> None:
    old = library.add_bytes("tea.md", TEA)
    passage = library.search("green tea")[0].passage.id
    library.remove(old.id)
    new = library.add_bytes("tea.md", TEA)
    assert new.id != old.id and library.search("green tea")[0].passage.id != passage
    with pytest.raises(InputError, match="expected the id of a document"):
        library.remove(old.id)
    with pytest.raises(InputError, match="expected the id of a passage"):
        library.passage(passage)


def test_a_folder_is_added_with_all_that_can_be_read_and_the_rest_is_reported(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".git").mkdir(parents=True)
    for name, data in {
        "tea.md": TEA,
        "deep/code.py": b"def brew() -> None: ...\n",
        "deep/photo.png": b"\x89PNG",
        "deep/bytes.txt": b"\xff\x00",
        "deep/long.txt": b"x " * 600,
        "deep/.git/config.txt": b"hidden",
        ".hidden.txt": b"hidden too",
    }.items():
        (tmp_path / name).write_bytes(data)
    with Library(tmp_path / "library.db", max_bytes=1000) as library:
        added = library.add(tmp_path)
        assert [Path(each.name).name for each in added.documents] == ["tea.md", "code.py"]
        assert {Path(each.name).name: each.reason.split(",")[0] for each in added.refused} == {
            "library.db": "expected a name in .txt",
            "library.db-wal": "expected a name in .txt",
            "library.db-shm": "expected a name in .txt",
            "photo.png": "expected a name in .txt",
            "bytes.txt": "bytes.txt: expected UTF-8 text",
            "long.txt": "expected at most 1",
        }
        assert library.documents()[1].name == (tmp_path / "tea.md").as_posix()
        assert library.documents()[1].described()["name"] == "tea.md"  # where it stands is told to nobody
        with pytest.raises(InputError, match="expected at most 1,000 bytes"):
            library.add(tmp_path / "deep" / "long.txt")
        with pytest.raises(FileError, match="expected a file or a folder, got none at"):
            library.add(tmp_path / "nothing.txt")
        with pytest.raises(FileError, match="File name too long"):
            library.add(Path("x" * 5000))


def test_the_name_of_an_upload_is_no_path(tmp_path: Path, library: Library) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("The password is swordfish.")
    library.add_bytes(str(secret), b"Nothing to see.")
    library.add_bytes("../../secret.txt", b"Nor here.")
    assert texts(library, "password swordfish") == [] and secret.read_text() == "The password is swordfish."
    for name in ("", "a\nb.txt", "a\udcff.txt", "x" * 5000):
        with pytest.raises(InputError, match="expected a name of printable characters"):
            library.add_bytes(name, TEA)


def test_a_document_is_found_by_the_end_of_its_path_where_that_is_enough(library: Library) -> None:
    first, second = library.add_bytes("/a/b/tea.md", TEA), library.add_bytes("/a/c/tea.md", b"Other tea.")
    assert library.find("/a/b/tea.md") == library.find("b/tea.md") == first and library.find("c/tea.md") == second
    for name, number in (("tea.md", "2: give more of its path"), ("ea.md", "none: list them")):
        with pytest.raises(InputError, match=f"expected the name of one document, got '{name}', of {number}"):
            library.find(name)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Two CAFÉS were closed.", "closing the cafe"),
        ("软件包管理系统会自动安装依赖。", "怎么安装软件包？"),
        ("東京の天気は晴れです。", "東京の天気"),
        ("서울의 날씨가 맑습니다.", "서울의 날씨"),
        ("Погода в Москве хорошая.", "погода в москве"),
        ("Settings stand in /etc/apt/sources.list there.", "what is sources.list"),
    ],
)
def test_words_are_found_in_other_forms_and_scripts(library: Library, text: str, question: str) -> None:
    library.add_bytes("other.txt", "Another document about the weather. 另一个文件。".encode())
    library.add_bytes("a.txt", text.encode())
    assert texts(library, question)[:1] == [text]


@given(st.text() | st.lists(st.sampled_from(["AND", "NOT", "NEAR(", '"', "*", "tea:", "^", "-", "tea"])).map(" ".join))
def test_no_question_is_anything_but_a_question(question: str) -> None:
    with Library(Path(":memory:")) as library:
        library.add_bytes("tea.md", TEA)
        assert len(library.search(question)) <= 2


@pytest.mark.parametrize(
    ("question", "number"),
    [
        ("degrees", 1),  # one term, and it is there
        ("green degrees", 1),
        ("degrees fahrenheit", 0),  # of two terms one is not enough
        ("green degrees fahrenheit", 1),
        ("green degrees fahrenheit celsius kelvin reaumur", 0),  # less than a fair share
        ("Who wrote Hamlet?", 0),
        ("Why is that so?", 0),  # asks for nothing
        ("", 0),
    ],
)
def test_there_is_no_answer_where_no_passage_covers_the_question(library: Library, question: str, number: int) -> None:
    library.add_bytes("tea.txt", b"Green tea is brewed at 80 degrees.")
    assert len(library.search(question)) == number


def test_a_heading_counts_more_than_the_text(library: Library) -> None:
    library.add_bytes("a.md", b"# Coffee\n\nIt is hot, and so is tea.\n\n# Tea\n\nIt is hot, and so is coffee.\n")
    library.add_bytes("b.md", b"Nothing of the kind.\n\n# Other\n\nNothing at all.\n\n# More\n\nEven less.")
    assert [found.passage.headings for found in library.search("tea")] == [("Tea",), ("Coffee",)]


@pytest.fixture(scope="module")
def books(shared_data: Path) -> tuple[dict[str, Any], Library]:
    """The benchmark's questions and the three books they are about."""
    benchmark = runpy.run_path(str(BENCHMARK))
    library = Library(Path(":memory:"))
    for book in benchmark["BOOKS"]:
        library.add(shared_data / "corpora" / "debian_docs" / book)
    return benchmark, library


def test_the_words_that_answer_stand_in_one_place(books: tuple[dict[str, Any], Library], shared_data: Path) -> None:
    benchmark, folder = books[0], shared_data / "corpora" / "debian_docs"
    whole = {book: " ".join((folder / book).read_text("utf-8").split()) for book in benchmark["BOOKS"]}
    for name in ("QUESTIONS", "CHOOSING", "FRESH"):
        for _, book, words in benchmark[name]:
            assert {each: text.count(words) for each, text in whole.items() if words in text} == {book: 1}, words


@pytest.mark.parametrize(("name", "least"), [("QUESTIONS", 18), ("FRESH", 18)])
def test_the_answer_is_among_five_passages(books: tuple[dict[str, Any], Library], name: str, least: int) -> None:
    benchmark, library = books
    missed = [each[0] for each in benchmark[name] if benchmark["rank"](library, each) is None]
    assert len(benchmark[name]) == 20 and 20 - len(missed) >= least, missed


def test_what_stands_nowhere_in_the_books_is_not_answered(books: tuple[dict[str, Any], Library]) -> None:
    benchmark, library = books
    assert [each for each in benchmark["ELSEWHERE_FRESH"] if library.search(each)] == []
    assert sum(bool(library.search(each)) for each in benchmark["ELSEWHERE"]) <= 1


def test_a_model_is_given_numbered_passages_and_the_question(library: Library) -> None:
    library.add_bytes("tea.md", TEA)
    question = "How hot is the water for black tea?"
    found = library.search(question)
    text, used = context(question, found, 1000, len)
    assert used == found and text.endswith(f"\n\nQuestion: {question}") and "as [1]" in text and "hold no" in text
    assert "\n\n[1] tea.md, lines 7-9 > Tea > Black\n## Black\n" in text
    assert "\n\n[2] tea.md, lines 1-5 > Tea > Green\n# Tea\n" in text


def test_what_a_model_is_given_has_room(library: Library) -> None:
    library.add_bytes("tea.md", TEA)
    question = "How hot is the water for black tea?"
    found, most = library.search(question), len(context(question, library.search(question), 10_000, len)[0])
    lengths = list[int]()
    for room in range(most + 10, 0, -1):
        try:
            text, used = context(question, found, room, len)
        except InputError as error:
            assert str(error).startswith("expected max_tokens for the question and a passage, got")
            break
        assert len(text) <= room and used == found[: len(used)] and len(used) >= 1 and text.endswith(question)
        lengths.append(len(used))
    assert lengths == sorted(lengths, reverse=True) and set(lengths) == {1, 2} and room > 300
    assert "no answer" in context(question, [], 1000, len)[0]


def test_threads_add_and_search_at_once(tmp_path: Path) -> None:
    def work(number: int) -> int:
        library.add_bytes(f"{number}.txt", f"Recipe {number} takes saffron and plums. ".encode() * 20)
        library.add_bytes("same.txt", f"Now it is {number} o'clock.".encode())
        return len(library.search("saffron and plums", limit=3))

    with Library(tmp_path / "library.db") as library, ThreadPoolExecutor(8) as pool:
        assert min(pool.map(work, range(40))) >= 1
        assert len(library.documents()) == 41


def test_a_killed_process_leaves_whole_documents(tmp_path: Path) -> None:
    path = tmp_path / "library.db"
    child = subprocess.Popen([sys.executable, "-c", ADDING, str(path)])
    while child.poll() is None and (not path.exists() or path.stat().st_size < 400_000):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with Library(path) as library:
        documents = library.documents()
        assert len(documents) > 2 and library.search("plums and figs")
        library.remove(documents[0].id)
        library.add_bytes("new.txt", b"Still working.")
    file = sqlite3.connect(path)
    assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    counts = file.execute("SELECT sum(num_passages) FROM documents").fetchone()
    assert file.execute("SELECT count(*) FROM passages").fetchone() == counts
    file.close()


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    code = ADDING.replace("10_000", "5").replace('f"{number}.txt"', 'f"{number}-{sys.argv[2]}.txt"')
    code = code.replace("figs. ", "figs {sys.argv[2]}. ")
    run = [[sys.executable, "-c", code, str(tmp_path / "library.db"), name] for name in ("one", "two")]
    children = [subprocess.Popen(each) for each in run]
    assert [each.wait() for each in children] == [0, 0]
    with Library(tmp_path / "library.db") as library:
        assert len(library.documents()) == 11


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def work(path: Path) -> int:
        together.wait(60)
        with Library(path) as library:  # each has a connection and so a lock of its own, as a process has
            return len(library.documents())

    with ThreadPoolExecutor(8) as pool:
        for number in range(30):
            assert list(pool.map(work, [tmp_path / f"{number}.db"] * 8)) == [0] * 8


def test_a_file_that_is_damaged_or_not_ours_is_said_to_be(tmp_path: Path) -> None:
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE documents (name TEXT)")
    foreign.close()
    (tmp_path / "text.db").write_bytes(b"This is no database, but it is long enough to be one. " * 40)
    (tmp_path / "folder.db").mkdir()
    for name in ("foreign", "text", "folder"):
        with pytest.raises(FileError, match="expected a file of documents"):
            Library(tmp_path / f"{name}.db")
    assert (tmp_path / "text.db").read_bytes().startswith(b"This is no database")  # and is left as it was
    with pytest.raises(FileError, match="expected a file of documents"):
        Library(tmp_path / "text.db" / "inside.db")


def test_damage_is_told_and_never_a_traceback(tmp_path: Path) -> None:
    path, told = tmp_path / "library.db", 0
    with Library(path) as library:
        for number in range(20):
            library.add_bytes(f"{number}.md", f"# Title {number}\n\n{'plums and figs. ' * 100}".encode())
    whole = path.read_bytes()
    for place in range(0, len(whole), 2039):
        path.write_bytes(
            whole[:place] + bytes(byte ^ 0x5A for byte in whole[place : place + 200]) + whole[place + 200 :]
        )
        try:
            with Library(path) as library:
                library.search("figs and plums of title 3")
                library.add_bytes("new.txt", b"New words.")
                library.remove(library.find("4.md").id)
        except (FileError, InputError):
            told += 1
        for rest in tmp_path.glob("library.db-*"):
            rest.unlink()
    assert told > 5


def test_documents_are_kept_in_the_users_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with Library() as library:
        library.add_bytes("tea.md", TEA)
    assert default_library() == tmp_path / "data" / "gemmary" / "documents.db" and default_library().is_file()
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_library() == Path.home() / ".local" / "share" / "gemmary" / "documents.db"


def test_a_closed_library_says_so(library: Library) -> None:
    library.close()
    with pytest.raises(FileError, match="closed database"):
        library.search("tea")
    with pytest.raises(InputError, match="expected a limit >= 1, got 0"):
        library.search("tea", limit=0)
