# SPDX-License-Identifier: Apache-2.0
"""What a model writes, Markdown, as HTML that cannot do anything: for the page.

text ─► markdown-it (HTML in it is text) ─► Pygments colours code ─► nh3 keeps what is listed here ─► HTML

No script, no style, no image, no address but http, https and mailto; so a page may take the result as it is.
"""

from collections.abc import Sequence
from functools import lru_cache
from html import escape

try:
    import nh3
    from markdown_it import MarkdownIt
    from markdown_it.renderer import RendererHTML
    from markdown_it.token import Token
    from markdown_it.utils import EnvType, OptionsDict
    from pygments import highlight  # type: ignore[import-untyped]  # Pygments brings no types
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.token import STANDARD_TYPES  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]
except ImportError as error:
    from gemmary.base.errors import MissingExtraError

    raise MissingExtraError.of("showing what a model writes", "markdown-it, Pygments and nh3", "serve") from error

# Lexers are many regular expressions, whose time can grow with the square of a text's length (some lexers' with its
# cube: they are not listed). So much takes a second at worst, a few milliseconds as a rule.
_MOST_COLOURED = 6000
_LANGUAGES = """
bash batch c clojure cmake common-lisp console cpp csharp css dart diff docker elixir fortran go graphql haskell html
http ini java javascript json jsx julia kotlin lua markdown matlab nginx objective-c ocaml perl php powershell pycon
python ruby rust scala scheme splus sql swift tex toml tsx typescript xml yaml zig"""
_TAGS = "a blockquote br code em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul"
_ALIGNED = {"left", "center", "right"}


def render(text: str) -> str:
    """Markdown as safe HTML: CommonMark with tables and strikethrough; an image becomes a link to it.

    >>> render("*Hello* <script>alert(1)</script>")
    '<p><em>Hello</em> &lt;script&gt;alert(1)&lt;/script&gt;</p>\\n'
    >>> render("```python\\nx = 1\\n```")
    '<pre><code><span class="n">x</span> <span class="o">=</span> <span class="mi">1</span>\\n</code></pre>\\n'
    """
    return nh3.clean(
        _markdown().render(text.encode("utf-8", "replace").decode()),  # half a surrogate pair is no text
        tags=set(_TAGS.split()),
        attributes={"a": {"href", "title"}, "ol": {"start"}},
        allowed_classes={"span": set(STANDARD_TYPES.values()), "th": _ALIGNED, "td": _ALIGNED},
        set_tag_attribute_values={"a": {"target": "_blank"}},
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
    )


def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "highlight": _highlighted})
    markdown.enable(["table", "strikethrough"])
    markdown.add_render_rule("image", _image_link)
    for cell in ("th_open", "td_open"):
        markdown.add_render_rule(cell, _aligned)
    return markdown


def _highlighted(code: str, language: str, attributes: str) -> str:
    """A block's code with its words in spans of Pygments' classes, or as plain text."""
    return escape(code) if len(code) > _MOST_COLOURED else _coloured(code, language)


@lru_cache(maxsize=64)  # a reply is rendered again and again as it grows, mostly with the same code
def _coloured(code: str, language: str) -> str:
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return escape(code)
    if lexer.aliases[0] not in _LANGUAGES.split():
        return escape(code)
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True)))


def _image_link(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """An image would be fetched from anywhere, and so tell where and when the reply was read."""
    token = tokens[index]
    address = str(token.attrGet("src") or "")
    label = renderer.renderInlineAsText(token.children, options, env) or address
    return f'<a href="{escape(address)}">{escape(label)}</a>'


def _aligned(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """A cell of a table, aligned by a class: a page's policy forbids styles in HTML."""
    side = str(tokens[index].attrGet("style") or "").removeprefix("text-align:")
    return f'<{tokens[index].tag} class="{side}">' if side else f"<{tokens[index].tag}>"
