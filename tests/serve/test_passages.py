# SPDX-License-Identifier: Apache-2.0
"""Passages lose nothing of a document, know where they stand, and no file makes more than an InputError."""

import io
from pathlib import Path

import pypdf
import pytest

from gemmary.base.errors import InputError
from gemmary.serve.passages import read_passages

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
HTML = b"""<!doctype html><title>Tea &amp; more</title>
<script>var tea = "<h1>no</h1>";</script><style>p { color: green }</style>
<h1>Tea</h1><p>Green tea wants
water of <b>80</b>&nbsp;degrees.<!-- or so -->
<h2 class="a>b">Black</h2><table><tr><td>Assam<td>95</table><pre>
  one
    two</pre>"""


def pdf(*pages: str) -> bytes:
    """A PDF with these lines on its pages, as small as the format allows."""
    bodies = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    for page in pages:
        lines = "".join(f"({line}) Tj T* " for line in page.split("\n"))
        stream = f"BT /F1 12 Tf 14 TL 50 700 Td {lines}ET".encode()
        bodies.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % (len(bodies) + 2)
        )
        bodies.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    kids = b" ".join(b"%d 0 R" % (4 + 2 * number) for number in range(len(pages)))
    bodies[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages))
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(bodies) + 1, table)
    return out + head + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(bodies) + 1, len(out))


def test_nothing_is_lost_or_said_twice_and_lines_are_those_of_the_file() -> None:
    whole = DESIGN.read_text("utf-8")
    passages = read_passages("design.md", whole.encode())
    assert [word for each in passages for word in each.text.split()] == whole.split()
    lines = whole.split("\n")
    for each in passages:
        assert each.text.split() == " ".join(lines[each.first_line - 1 : each.last_line]).split()
        assert 0 < len(each.text.split()) <= 180
    assert ("Design", "The seams") in {each.headings for each in passages}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "Chapter\u00a01. Tea\n\n1.1. Green\n\nEighty degrees.", [("Chapter\u00a01. Tea", "1.1. Green")]),
        ("a.txt", "Tea\n===\n\nHot.\n\nGreen\n-----\n\nWarm.", [("Tea",), ("Tea", "Green")]),
        ("a.txt", "1. first item\n\n2. second item", [()]),  # a list
        ("a.md", "# A\n## B\ntext\n# C\ntext", [("A", "B"), ("C",)]),
        ("a.md", "A\n---\ntext\n```\n# no heading\n\n# nor this\n```\n", [("A",)]),
        ("a.html", "<h1>A<p>text<h3>B</h3>text<h2>C</h2>text", [("A",), ("A", "B"), ("A", "C")]),
        ("a.py", "import os\n\n\nclass A:\n    x = 1\n\n    def f(self):\n        pass\n", [(), ("A",), ("A", "f")]),
        ("a.rs", "pub struct A {\n}\n\npub(crate) async fn f() {\n}\n", [("A",), ("f",)]),
    ],
)
def test_passages_know_the_headings_they_stand_under(name: str, text: str, expected: list[tuple[str, ...]]) -> None:
    found = [each.headings for each in read_passages(name, text.encode())]
    assert [tuple(" ".join(title.split()) for title in path) for path in expected] == found


def test_of_html_what_is_seen_stays_at_the_lines_of_its_source() -> None:
    found = read_passages("tea.html", HTML)
    assert [(each.first_line, each.last_line, each.text) for each in found] == [
        (1, 4, "Tea & more\n\nTea Green tea wants\nwater of 80 degrees."),
        (5, 7, "Black Assam 95\n  one\n    two"),
    ]


def test_of_pdf_the_page_is_known_and_lines_are_counted_on() -> None:
    first, second = "1.1. Tea\n" + "Green leaves.\n" * 90, "Black tea is hot."
    found = read_passages("tea.pdf", pdf(first, second))
    assert [each.page for each in found] == [1, 1] and found[-1].text.endswith("hot.")
    other = read_passages("tea.pdf", pdf("1.1. Green\nWarm.", "1.2. Black\nHot."))
    assert [(each.page, each.headings) for each in other] == [(1, ("1.1. Green",)), (2, ("1.2. Black",))]
    assert found[0].first_line == 1 and found[0].last_line < found[1].first_line < found[1].last_line


def test_a_pdf_with_a_password_or_without_text_is_refused() -> None:
    writer, locked = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("Secret."))), io.BytesIO()
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(locked)
    with pytest.raises(InputError, match=r"^a\.pdf: expected a PDF without a password"):
        read_passages("a.pdf", locked.getvalue())
    with pytest.raises(InputError, match=r"expected text, got none: scanned pages"):
        read_passages("a.pdf", pdf(""))


def test_a_damaged_pdf_is_read_or_refused() -> None:
    whole, refused = pdf("Green tea.", "Black tea."), 0
    for length in range(0, len(whole), 23):
        try:
            read_passages("a.pdf", whole[:length] + whole[length + 7 :])
            read_passages("a.pdf", whole[:length])
        except InputError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "a.txt: expected text, got none"),
        ("a.html", b"<script>only()</script>", "a.html: expected text, got none"),
        ("a.txt", b"a\x00b", "a.txt: expected text, got a binary file"),
        ("folder/a.py", b"\xff\xfe", "a.py: expected UTF-8 text, got the byte 0xFF at offset 0"),
        ("a.png", b"text", "expected a name in .txt, .md, .html, .pdf or of source code, got a.png: convert it"),
        ("a.pdf", b"text", "a.pdf: expected a PDF, got one that pypdf cannot read"),
    ],
)
def test_what_is_no_text_is_refused(name: str, data: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_passages(name, data)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_they_do_anywhere(end: str) -> None:
    passages = read_passages("a.txt", f"\ufeffone{end}two{end}{end}three{end}".encode())
    assert [(each.first_line, each.last_line, each.text) for each in passages] == [(1, 4, "one\ntwo\n\nthree")]


@pytest.mark.parametrize("text", ["word ", "x", "软件包。", "Short. ", "=", "1.1 a\n\n"])
def test_a_passage_is_short_however_long_lines_and_headings_are(text: str) -> None:
    passages = read_passages("a.txt", (text * 20_000).encode())
    assert max(len(each.text) for each in passages) <= 2000
    assert "".join("".join(each.text.split()) for each in passages) == "".join((text * 20_000).split())


def test_headings_stay_short_however_long_and_deep_they_are() -> None:
    deep = "".join(f"{'1.' * level}1. A\n\ntext\n\n" for level in range(1, 40))
    assert max(len(each.headings) for each in read_passages("a.txt", deep.encode())) == 8
    assert len(read_passages("a.html", b"<h1>" + b"long " * 9999 + b"</h1>text")[-1].headings[0]) == 200


@pytest.mark.parametrize(
    "text", ["<", "<a ", "<!--", "</", '<a b="', "<script>", "</script ", "<![CDATA[", "<aaaa", "&"]
)
def test_markup_that_never_ends_is_read_once(text: str) -> None:
    """html.parser, for one, reads the rest of the file anew at each of them: hours for this."""
    data = f"<p>Tea.</p>{text * (500_000 // len(text))}".encode()
    assert read_passages("a.html", data)[0].text.startswith("Tea.")
