# SPDX-License-Identifier: Apache-2.0
"""Files as passages: a name and bytes in, pieces of about 100 to 150 words out that know where they stand.

    bytes ─► lines ─► blocks ─► passages
      │               │         ├─ blocks under one heading, as many as fit
      │               │         └─ first and last line, page, and the path of headings
      │               └─ paragraphs; some begin a section and have a level and a title
      └─ text, markdown, code: as they are │ html: what is seen │ pdf: what pypdf extracts, lines counted on over pages

A file that cannot be used raises InputError, whatever is in it: it may come from anywhere.
"""

import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from itertools import groupby, pairwise
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from gemmary.base.errors import InputError, MissingExtraError
from gemmary.formats.storage import shown
from gemmary.serve.terms import CJK
from gemmary.text.tokenizer import decode_utf8

Kind = Literal["text", "markdown", "html", "pdf", "code"]

_CODE = (
    "c cc cpp cs css go h hpp ini java js json jsx kt lua php pl ps1 py r rb rs scala sh sql swift toml ts tsx yaml yml"
)
_KINDS: Mapping[str, Kind] = {
    "": "text",  # README, LICENSE
    **dict.fromkeys((".txt", ".text", ".rst", ".log", ".tex", ".csv", ".tsv"), "text"),
    **dict.fromkeys((".md", ".markdown"), "markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".pdf": "pdf",
    **dict.fromkeys((f".{suffix}" for suffix in _CODE.split()), "code"),
}
_MOST_WORDS = 150
_HEADING_WORDS = 30  # a short heading stays with what it is over
_MOST_HEADINGS, _MOST_LETTERS = 8, 200  # of a path, and of each
_WORD_LENGTH = 10  # characters that count as a word where there are no spaces, or many
_MOST_PDF_CHARACTERS = 1 << 25  # a small file may unfold to any length


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A piece of a document, with the lines and the headings it stands under.

    >>> passage = read_passages("notes/eggs.md", b"# Eggs\\n\\nBoil them for six minutes.\\n")[0]
    >>> passage.source, passage.headings
    ('eggs.md, lines 1-3', ('Eggs',))
    """

    name: str
    kind: Kind
    sha256: str  # of the document
    first_line: int  # from 1; of a PDF, in the text that was extracted
    last_line: int
    page: int | None  # of a PDF, from 1; where the passage begins
    headings: tuple[str, ...]  # from the outermost to its own
    text: str
    id: int = 0  # in its library

    @property
    def source(self) -> str:
        """Where it is found, for people: the file's own name, the page if there is one, the lines.

        >>> read_passages("one", b"line")[0].source
        'one, line 1'
        """
        page = "" if self.page is None else f", page {self.page}"
        is_one = self.first_line == self.last_line
        lines = f"line {self.first_line}" if is_one else f"lines {self.first_line}-{self.last_line}"
        return f"{PurePath(self.name).name}{page}, {lines}"

    def described(self) -> dict[str, Any]:
        """What others are told of it: where its document stands on this machine is left out.

        >>> read_passages("/home/a.md", b"# One")[0].described()["document"]
        'a.md'
        """
        return {
            "id": self.id,
            "document": PurePath(self.name).name,
            "first_line": self.first_line,
            "last_line": self.last_line,
            "page": self.page,
            "heading": " > ".join(self.headings),
            "text": self.text,
        }


def read_passages(name: str, data: bytes, sha256: str = "") -> list[Passage]:
    """The passages of a file; its name says what kind it is and is otherwise a label.

    Raises InputError for an unknown kind, for bytes that are no text, for a PDF that is encrypted or damaged, and for a
    file without text; MissingExtraError for a PDF without pypdf.

    >>> [passage.headings for passage in read_passages("a.html", b"<h1>One<h2>Two</h2><p>a<p>b<h1>Three</h1>c")]
    [('One', 'Two'), ('Three',)]
    """
    kind = kind_of(name)
    try:
        found = list(_gathered(_READERS[kind](data)))
        if not found:
            raise InputError("expected text, got none: scanned pages have to be recognised first")
    except InputError as error:
        raise InputError(f"{shown(PurePath(name).name)}: {error}") from None
    return [
        Passage(
            name=name,
            kind=kind,
            sha256=sha256,
            first_line=lines[0].number,
            last_line=lines[-1].number,
            page=lines[0].page,
            headings=headings,
            text=_joined(lines),
        )
        for headings, lines in found
    ]


def kind_of(name: str) -> Kind:
    """What a file is by the end of its name; raises InputError when that is nothing we read.

    >>> kind_of("paper.PDF"), kind_of("src/main.rs"), kind_of("README")
    ('pdf', 'code', 'text')
    """
    kind = _KINDS.get(PurePath(name).suffix.lower())
    if kind is None:
        raise InputError(
            f"expected a name in .txt, .md, .html, .pdf or of source code, got {shown(PurePath(name).name)}: convert it"
        )
    return kind


class _Line(NamedTuple):
    number: int
    text: str
    page: int | None = None


@dataclass
class _Block:
    """Lines that belong together; one with a level begins a section, and may be no more than its heading."""

    lines: list[_Line]
    level: int = 0
    title: str = ""
    is_bare: bool = False


def _gathered(blocks: Iterator[_Block]) -> Iterator[tuple[tuple[str, ...], list[_Line]]]:
    """Lines of passages, each with the headings it stands under."""
    path, lines, words, is_bare = list[tuple[int, str]](), list[_Line](), 0.0, True
    for block in blocks:
        for place, piece in enumerate(_pieces(block)):
            size, begins = sum(_size(line.text) for line in piece), block.level > 0 and place == 0
            room = _MOST_WORDS + _HEADING_WORDS if is_bare else _MOST_WORDS
            if lines and (words + size > room or (begins and not is_bare)):
                yield tuple(title for _, title in path), lines
                lines, words, is_bare = [], 0.0, True
            if begins:
                above = [(level, title) for level, title in path if level < block.level]
                path = [*above[-_MOST_HEADINGS + 1 :], (block.level, block.title[:_MOST_LETTERS])]
            lines, words, is_bare = lines + piece, words + size, is_bare and block.is_bare
    if lines:
        yield tuple(title for _, title in path), lines


def _pieces(block: _Block) -> Iterator[list[_Line]]:
    """A block's lines in runs of at most as many words as a passage has."""
    lines, words = list[_Line](), 0.0
    for line in block.lines:
        for part in _cut(line.text):
            size = _size(part)
            if lines and words + size > _MOST_WORDS:
                yield lines
                lines, words = [], 0.0
            lines.append(line if part is line.text else line._replace(text=part))
            words += size
    if lines:
        yield lines


def _cut(text: str) -> Iterator[str]:
    """A line, or the sentences of one that is longer than a passage, or pieces of what has no sentences."""
    if _size(text) <= _MOST_WORDS:
        yield text
        return
    part, words = "", 0.0
    for sentence in re.findall(r".+?(?:[.!?](?=\s)|[。！？]|$)", text):
        for start in range(0, len(sentence), _MOST_WORDS * _WORD_LENGTH // 2):
            piece = sentence[start : start + _MOST_WORDS * _WORD_LENGTH // 2]
            size = _size(piece)
            if part and words + size > _MOST_WORDS:
                yield part.strip()
                part, words = "", 0.0
            part, words = part + piece, words + size
    yield part.strip()


_WORD = re.compile(rf"[{CJK}]{{1,2}}|[^\W_{CJK}]+")


def _size(text: str) -> float:
    """How many words a text has, or would have if they were of ten characters."""
    return max(len(_WORD.findall(text)), len(text) / _WORD_LENGTH)


def _joined(lines: Sequence[_Line]) -> str:
    """The text of lines, with an empty one where some were left out."""
    parts = [lines[0].text]
    for before, line in pairwise(lines):
        gap = " " if line.number == before.number else "\n" if line.number == before.number + 1 else "\n\n"
        parts.append(gap + line.text)
    return "".join(parts)


def _text(data: bytes) -> str:
    text = decode_utf8(data).removeprefix("\ufeff")
    if "\0" in text:
        raise InputError("expected text, got a binary file: convert it to text")
    return text


def _numbered(text: str, page: int | None = None, before: int = 0) -> list[_Line]:
    lines = re.split(r"\r\n?|\n", text)
    return [_Line(number, line.rstrip(), page) for number, line in enumerate(lines, before + 1)]


def _paragraphs(lines: Sequence[_Line]) -> Iterator[list[_Line]]:
    for is_text, run in groupby(lines, key=lambda line: bool(line.text)):
        if is_text:
            yield list(run)


_PLAIN_HEADING = re.compile(r"(?:(?P<number>\d+(?:\.\d+)+)\.?|(?:Chapter|Appendix|Part)\s\w+[.:])\s+\S")
_UNDERLINES = "=-~^"


def _plain(lines: Sequence[_Line]) -> Iterator[_Block]:
    """Paragraphs; "1.2. Title", "Chapter 1. Title" and what is underlined are headings."""
    for run in _paragraphs(lines):
        level, title = _plain_title([line.text for line in run])
        yield _Block(run, level, title, is_bare=bool(level))


def _plain_title(lines: list[str]) -> tuple[int, str]:
    rule = len(lines) > 1 and re.fullmatch(r"([=\-~^])\1{2,}", lines[-1])
    title = " ".join(" ".join(lines[:-1] if rule else lines).split())
    found = _PLAIN_HEADING.match(lines[0])
    if len(lines) > 3 or not re.match(r"\S*\w", lines[0]) or len(title) > _MOST_LETTERS or not (rule or found):
        return 0, ""
    if found:
        return 1 + (found["number"] or "").count("."), title
    return 1 + _UNDERLINES.index(lines[-1][0]), title


def _read_text(data: bytes) -> Iterator[_Block]:
    return _plain(_numbered(_text(data)))


_MARK = re.compile(r"(#{1,6})\s+(.*?)[\s#]*")


def _read_markdown(data: bytes) -> Iterator[_Block]:
    run, fence = list[_Line](), ""
    for line in [*_numbered(_text(data)), _Line(0, "")]:
        found = None if fence else _MARK.fullmatch(line.text)
        is_end = not line.number
        if run and (found or is_end or (not line.text and not fence)):
            yield from _plain([each for each in run if each.text])
            run = []
        if found:
            yield _Block([line], len(found[1]), found[2], is_bare=True)
        elif line.text:
            run.append(line)
            if not fence and re.fullmatch("=+|-{3,}", line.text):
                yield from _plain(run)
                run = []
        mark = re.match(r"\s*(```|~~~)", line.text)
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]


_DEFINITION = re.compile(
    r"(\s*)(?:(?:export|default|public|private|protected|static|final|abstract|async|pub(?:\(\w+\))?|unsafe)\s+)*"
    r"(?:class|def|func|function|fn|struct|enum|interface|trait|impl|module|namespace|record)\s+(\w+(?:(?:\.|::)\w+)*)"
)


def _read_code(data: bytes) -> Iterator[_Block]:
    """Runs of lines without an empty one; the first definition in a run begins a section, as deep as it is indented."""
    for run in _paragraphs(_numbered(_text(data))):
        found = next((match for match in (_DEFINITION.match(line.text) for line in run) if match), None)
        yield _Block(run, len(found[1].expandtabs()) + 1, found[2]) if found else _Block(run)


# Not html.parser: up to Python 3.13 its time grows with the square of the length, and 100 kB of "<a " take minutes.
# Nothing here can look beyond the next "<" unless it takes all that it has seen.
_MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)|<(?P<hidden>script|style)\b.*?(?:</(?P=hidden)\s*+>|\Z)|<[!?][^<>]*+>"
    r"|<(?P<end>/?)(?P<tag>[a-z][a-z0-9]*+)(?:[^<>\"']|\"[^\"<]*\"|'[^'<]*')*+>",
    re.DOTALL | re.IGNORECASE,
)
_TAGS = """
address article aside blockquote body dd details div dl dt figcaption figure footer form head header hr html li main
nav ol option p pre section summary table title tr ul h1 h2 h3 h4 h5 h6
"""
_BLOCK_TAGS = frozenset(_TAGS.split())


def _read_html(data: bytes) -> Iterator[_Block]:
    """What is seen of a page, at the lines of its source; a paragraph ends where a tag says so."""
    text, place, number = _text(data), 0, 1
    lines, level, is_pre = list[_Line](), 0, False
    for found in [*_MARKUP.finditer(text), None]:
        end = found.start() if found else len(text)
        pieces = text[place:end].split("\n")
        lines += (_Line(number + more, piece) for more, piece in enumerate(pieces))
        tag = (found["tag"] or "").lower() if found else "html"
        if tag in _BLOCK_TAGS:
            yield from _seen(lines, level, is_pre)
            is_open = found is not None and not found["end"]
            level = int(tag[1]) if is_open and re.fullmatch("h[1-6]", tag) else int(is_open and tag == "title")
            lines, is_pre = [], is_open if tag == "pre" else is_pre
        elif tag in ("br", "td", "th"):
            lines.append(_Line(number + len(pieces) - 1, " "))
        if found:
            place = found.end()
            number += len(pieces) - 1 + found[0].count("\n")


def _seen(pieces: Sequence[_Line], level: int, is_pre: bool) -> Iterator[_Block]:
    """The block of pieces between two tags, with nothing left of what is not seen."""
    lines = []
    for number, parts in groupby(pieces, key=lambda piece: piece.number):
        text = unescape("".join(part.text for part in parts))
        text = text.rstrip() if is_pre else " ".join(text.split())
        if text:
            lines.append(_Line(number, text))
    if lines:
        yield _Block(lines, level, " ".join(line.text for line in lines) if level else "", is_bare=bool(level))


def _read_pdf(data: bytes) -> Iterator[_Block]:
    try:
        import pypdf
    except ImportError:
        raise MissingExtraError.of("reading PDF files", "pypdf", "serve") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells at length what it mends
    lines, length = list[_Line](), 0
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError("expected a PDF without a password, got an encrypted one: save it without")
        for page, content in enumerate(reader.pages, 1):
            text = content.extract_text().encode("utf-8", "replace").decode().replace("\0", "")
            length += len(text)
            if length > _MOST_PDF_CHARACTERS:
                raise InputError(f"expected at most {_MOST_PDF_CHARACTERS:,} characters in a PDF, got more: split it")
            lines += _numbered(text, page, len(lines))
    except InputError:
        raise
    except Exception as error:  # what pypdf raises for damaged files is of any kind
        raise InputError(
            f"expected a PDF, got one that pypdf cannot read ({shown(str(error))}): save it anew"
        ) from None
    yield from _plain(_set_apart(lines))


_ALONE = re.compile(rf"(?:{_PLAIN_HEADING.pattern}).{{0,80}}[^\d.,;:]")


def _set_apart(lines: Sequence[_Line]) -> list[_Line]:
    """The lines with an empty one before and after each heading: pypdf gives none."""
    apart = list[_Line]()
    for line in lines:
        gap = [line._replace(text="")] if _ALONE.fullmatch(line.text) else []
        apart += [*gap, line, *gap]
    return apart


_READERS: Mapping[Kind, Callable[[bytes], Iterator[_Block]]] = {
    "text": _read_text,
    "markdown": _read_markdown,
    "html": _read_html,
    "pdf": _read_pdf,
    "code": _read_code,
}
