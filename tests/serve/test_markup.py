# SPDX-License-Identifier: Apache-2.0
"""Markdown becomes HTML that can do nothing, whatever a model writes; another parser looks at what comes out."""

from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmary.serve.markup import render

HARMLESS = {
    "a": "href title target rel",
    "ol": "start",
    "span": "class",
    "th": "class",
    "td": "class",
}  # and attributes
PLAIN = "blockquote br code em h1 h2 h3 h4 h5 h6 hr li p pre s strong table tbody thead tr ul"  # without attributes
ATTACKS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    '<iframe srcdoc="<script>alert(1)</script>">',
    "<style>body { display: none }</style>",
    "<!-- --><a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt&colon;alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:x 'onmouseover=alert(1)')",
    '[x](https://a "b\\" onclick=\\"alert(1)")',
    "<javascript:alert(1)>",
    "![x](https://evil.example/seen.png)",
    "![x](javascript:alert(1))",
    "[x][1]\n\n[1]: javascript:alert(1)",
    '```html onload=x"><script>alert(1)</script>\n<script>alert(1)</script>\n```',
    '```"><img src=x onerror=alert(1)>\nx\n```',
    "| <b>a |\n|:-:|\n| <script>alert(1)</script> |",
    "    <script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
)
LANGUAGES = ("python", "javascript", "html", "c", "java", "json", "bash", "diff", "sql", "yaml", "tex", "css")


class Parsed(HTMLParser):
    """What is in some HTML: elements with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def assert_harmless(text: str) -> None:
    html = render(text)
    for tag, attributes in Parsed(html).elements:
        assert tag in HARMLESS or tag in PLAIN.split(), html
        assert attributes.keys() <= set(HARMLESS.get(tag, "").split()), html
        address = attributes.get("href")
        assert address is None or urlsplit(address).scheme in ("http", "https", "mailto"), html


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**bold** and *leaning*", "<p><strong>bold</strong> and <em>leaning</em></p>\n"),
        ("~~gone~~ `code`", "<p><s>gone</s> <code>code</code></p>\n"),
        ("# Title", "<h1>Title</h1>\n"),
        ("3. a\n4. b", '<ol start="3">\n<li>a</li>\n<li>b</li>\n</ol>\n'),
        ("> said", "<blockquote>\n<p>said</p>\n</blockquote>\n"),
        ("a < b & c", "<p>a &lt; b &amp; c</p>\n"),
        ("中文 **粗体**", "<p>中文 <strong>粗体</strong></p>\n"),
        ("```nope\n<b>\n```", "<pre><code>&lt;b&gt;\n</code></pre>\n"),
        ("", ""),
    ],
)
def test_markdown_becomes_html(text: str, html: str) -> None:
    assert render(text) == html


def test_a_table_is_aligned_by_classes_since_a_page_forbids_styles() -> None:
    cells = [each for each in Parsed(render("|a|b|c|\n|:-|-:|---|\n|1|2|3|")).elements if each[0] in ("th", "td")]
    left, right = {"class": "left"}, {"class": "right"}
    assert cells == [("th", left), ("th", right), ("th", {}), ("td", left), ("td", right), ("td", {})]


def test_a_link_opens_elsewhere_and_tells_nothing_of_where_it_was() -> None:
    rel = "noopener noreferrer nofollow"
    assert Parsed(render("[x](https://example.com)")).elements[1] == (
        "a",
        {"href": "https://example.com", "target": "_blank", "rel": rel},
    )


def test_an_image_is_only_a_link_so_that_nothing_is_fetched() -> None:
    elements = Parsed(render("![a *map*](https://example.com/map.png)")).elements
    assert [(tag, attributes.get("href")) for tag, attributes in elements] == [
        ("p", None),
        ("a", "https://example.com/map.png"),
    ]


def test_an_address_within_this_server_is_no_link() -> None:
    assert all(
        "href" not in each for _, each in Parsed(render("[x](/documents) [y](//example.com) [z](#top)")).elements
    )


@pytest.mark.parametrize("text", ATTACKS)
def test_an_attack_comes_out_harmless(text: str) -> None:
    assert_harmless(text)


@given(st.lists(st.sampled_from((*ATTACKS, *"<>[]()!`*_|#-\"'&;:/= \n\t", "```", "\n\n", "a", "\x00", "\ud800"))))
def test_no_mixture_of_attacks_gets_through(parts: list[str]) -> None:
    assert_harmless("".join(parts))


@given(st.sampled_from(LANGUAGES), st.text(alphabet="ab1 \n\t\"'<>&{}()=/*#.;\\é中", max_size=200))
def test_colours_change_no_character_of_code(language: str, code: str) -> None:
    assert Parsed(render(f"````{language}\n{code}\n````")).text.rstrip("\n") == f"{code}\n".rstrip("\n")


def test_code_has_the_classes_of_its_language_and_none_where_that_is_unknown() -> None:
    assert ("span", {"class": "k"}) in Parsed(render("```python\nreturn 1\n```")).elements
    assert "<span" not in render("```no-such-language\nreturn 1\n```")


def test_code_that_would_take_long_to_colour_stays_plain() -> None:
    code = "a " * 50_000  # minutes for Pygments' Java
    assert "<span" not in render(f"```java\n{code}\n```")
    assert "<span" not in render("```systemd\n[Unit]\n```")  # whose time grows with the cube
