"""Renders a model's text as HTML in which nothing runs, loads or links by itself.

There are three gates, each sufficient alone: markdown-it-py treats HTML as text, our rules write no address where a
browser would follow or load it, and nh3 lets only a short list of elements and attributes pass. A link is a `span` and
a picture a `button` that carry their address as data; the page shows it on a click, and a person decides. Formulas
become MathML (maths.py).

Models loop, and others make them: a paragraph that would take a parser's slow paths is shown as plain text.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from html import escape
from typing import Any
from unicodedata import bidirectional

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

from puna.web.markdown import mathml
from puna.web.markdown.addresses import use_bare_addresses
from puna.web.markdown.emphasis import CjkFriendlyState
from puna.web.markdown.maths import CLASSES as MATHS
from puna.web.markdown.maths import use_maths

MAX_TEXT = 200_000  # characters; longer texts are shown as plain text
MAX_LINES = 3000
MAX_INLINE = 10_000  # characters of one paragraph
MAX_HIGHLIGHT = 30_000  # characters of one piece of code
# How often a paragraph may contain a character that parsers look ahead for. 1,000 "[" cost 20 ms, 20,000 cost 13 s
# (markdown-it-py 4.3, one core of an EPYC, 2026-11).
MAX_SIGNS = {
    "[": 400,
    "*": 1000,
    "_": 1000,
    "~": 1000,
    "`": 1000,
    "<": 1000,
    "&": 1000,
    "\\": 2000,
    "$": 1000,
    "@": 400,
}
PLAIN_LINES = 20  # of a plain text in one block
MAX_CELLS = 20_000  # columns times lines: short rows are filled up

_ADDRESS = re.compile(r"(?:https?://|mailto:)[^\s\x00-\x20]+\Z", re.IGNORECASE)
_LANGUAGE = re.compile(r"[A-Za-z0-9+#.-]{1,24}")
# Beyond this depth the parser drops content.
_DEEP = re.compile(r"^[ ]*(?:(?:>[ ]*)|(?:(?:[-*+]|\d+[.)])[ ]+)){15}", re.MULTILINE)
# Characters that reorder others, and control characters: shown by name, so that text cannot disguise itself. The marks
# U+200E, U+200F and U+061C reorder nothing but themselves, and ordinary texts contain them; in code they are shown.
_HIDDEN = re.compile("[\u202a-\u202e\u2066-\u2069]")
_MARKS = re.compile("[\u200e\u200f\u061c]")
_TAG_G, _TAG_B, _TAG_END = "\U000e0067", "\U000e0062", "\U000e007f"
_ENG, _SCT, _WLS = "\U000e0065\U000e006e\U000e0067", "\U000e0073\U000e0063\U000e0074", "\U000e0077\U000e006c\U000e0073"
_FLAG = f"\U0001f3f4{_TAG_G}{_TAG_B}(?:{_ENG}|{_SCT}|{_WLS}){_TAG_END}"
# A tag character hides text, except in the flags of England, Scotland and Wales (UTS 51, RGI emoji tag sequences).
_CONTROL = re.compile(f"({_FLAG})|[\x00-\x08\x0b-\x1f\x7f-\x9f\ufff9-\ufffb\U000e0000-\U000e007f]")

_BLOCKS = [
    "p",
    "h3",
    "h4",
    "h5",
    "h6",
    "blockquote",
    "ul",
    "ol",
    "li",
    "hr",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "div",
    "figure",
    "figcaption",
    "pre",
    "code",
]
_INLINE = ["strong", "em", "s", "br", "span", "button"]
_CELLS = {"right", "center", "left"}
# Markers, bars and columns have a side: that of the text's direction.
_DIRECTED = {"bullet_list_open", "ordered_list_open", "blockquote_open", "table_open"}
_LENGTHS_AND_TRUTHS: dict[str, set[str]] = {name: {*mathml.TRUTHS, *mathml.LENGTHS} for name in mathml.ELEMENTS}
_CLEANER = nh3.Cleaner(
    tags={*_BLOCKS, *_INLINE, *mathml.ELEMENTS},
    clean_content_tags={"script", "style"},
    attributes={
        "span": {"data-url", "data-source"},
        "button": {"data-url"},
        "ol": {"start"},
        **_LENGTHS_AND_TRUTHS,
    },
    tag_attribute_values={
        **dict.fromkeys(mathml.ELEMENTS, mathml.FIXED),
        **{name: {"dir": {"rtl"}} for name in ("ul", "ol", "blockquote")},
        "span": {"role": {"link"}, "tabindex": {"0"}},
        "button": {"type": {"button"}},
        "pre": {"tabindex": {"0"}},
        "div": {"tabindex": {"0"}, "dir": {"rtl"}},
        "math": {"display": {"block", "inline"}},
    },
    allowed_classes={
        **dict.fromkeys(("mrow", "mtable", "mtd"), mathml.CLASSES),
        "span": {"link", "alt", "address", "plain", *MATHS, *filter(None, STANDARD_TYPES.values())},
        "button": {"image"},
        "div": {"table"},
        "figure": {"code"},
        "p": {"plain"},
        "th": _CELLS,
        "td": _CELLS,
    },
    link_rel=None,
    url_schemes=set(),
)
_FORMATTER: HtmlFormatter[str] = HtmlFormatter(nowrap=True)


def visible(text: str) -> str:
    """The text with deceptive invisible characters made visible, and without carriage returns."""
    text = _HIDDEN.sub(_named, text.replace("\r", ""))
    return _CONTROL.sub(lambda found: found[1] or "\ufffd", text)


def _named(found: re.Match[str]) -> str:
    return f"[U+{ord(found[0]):04X}]"


@lru_cache(maxsize=512)
def render(text: str) -> str:
    """A complete text as HTML. Messages are read repeatedly, so recent results are cached."""
    return "".join(blocks(text))


def blocks(text: str) -> list[str]:
    """A text as HTML, one entry a top-level block (a paragraph, a list, a code block …)."""
    return [html for _, html in _blocks(visible(text))]


def render_plain(text: str) -> str:
    """A text as HTML that shows it as it is: a base model's text is no Markdown, and its indentation counts."""
    return "".join(plain_blocks(text))


def plain_blocks(text: str) -> list[str]:
    """The same, one entry every PLAIN_LINES lines, so that of a growing text only the end changes."""
    lines = _MARKS.sub(_named, visible(text)).splitlines(keepends=True) if text else []
    parts = ["".join(lines[at : at + PLAIN_LINES]) for at in range(0, len(lines), PLAIN_LINES)]
    return [f'<span class="plain">{escape(part)}</span>' for part in parts]


class Live:
    """A growing text. Complete blocks are rendered once; only the last block is rendered again."""

    def __init__(self) -> None:
        self._closed: list[str] = []
        self._start = 0  # characters of the (visible) text that the closed blocks cover

    def blocks(self, text: str) -> list[str]:
        """The blocks of the text so far, which must start with the text of the previous call."""
        rest = visible(text)[self._start :]
        found = list(_blocks(rest, growing=True))
        *whole, last = found or [(0, "")]
        if whole:
            self._closed += [html for _, html in whole]
            lines = rest.split("\n")
            self._start += sum(len(line) + 1 for line in lines[: last[0]])
        return [*self._closed, last[1]] if found else list(self._closed)


def _blocks(text: str, *, growing: bool = False) -> Iterator[tuple[int, str]]:
    """(first line, HTML) of each top-level block. growing: more text will follow."""
    lines = text.split("\n")
    if len(text) > MAX_TEXT or len(lines) > MAX_LINES or _DEEP.search(text):
        yield 0, _plain(text)
        return
    cells = max(line.count("|") for line in lines) * len(lines)
    parser = _PARSER if cells <= MAX_CELLS else _WITHOUT_TABLES
    env: dict[str, Any] = {"growing": growing}
    begin = 0
    tokens = parser.parse(text, env)
    for index, token in enumerate(tokens):
        if token.level == 0 and token.nesting <= 0:
            if tokens[begin].type in _DIRECTED and _right_to_left(tokens[begin : index + 1]):
                tokens[begin].attrSet("dir", "rtl")
            html = parser.renderer.render(tokens[begin : index + 1], parser.options, env)
            first = tokens[begin].map
            begin = index + 1
            yield (first[0] if first else 0), _CLEANER.clean(html)


def _right_to_left(tokens: Sequence[Token]) -> bool:
    """Whether the first letter is of a script that is written from right to left (Unicode bidi, rules P2 and P3)."""
    for token in tokens:
        for child in token.children or ():
            for char in child.content if child.type == "text" else "":
                if (kind := bidirectional(char)) in ("L", "R", "AL"):
                    return kind != "L"
    return False


def _plain(text: str) -> str:
    return _CLEANER.clean(f'<p class="plain">{escape(text)}</p>')


# -- markdown-it: parsing ---------------------------------------------------------------------------------------------


def _safe_address(url: str) -> bool:
    """Whether this is a complete external address; anything else stays text."""
    return bool(_ADDRESS.match(url)) and len(url) < 4000


def _parse_inline(state: StateCore) -> None:
    """markdown-it's own rule, except for paragraphs that would take too long."""
    for token in state.tokens:
        if token.type == "inline":
            content = token.content
            wild = len(content) > MAX_INLINE or any(content.count(sign) > most for sign, most in MAX_SIGNS.items())
            if wild:
                token.children = [Token("text", "", 0, content=content)]
            else:
                token.children = _inline(state, content)


def _inline(state: StateCore, content: str) -> list[Token]:
    """markdown-it's `ParserInline.parse`, with our rule for emphasis next to CJK characters."""
    inline = state.md.inline
    within: StateInline = CjkFriendlyState(content, state.md, state.env, [])
    inline.tokenize(within)
    for rule in inline.ruler2.getRules(""):
        rule(within)
    return within.tokens


def _tame(state: StateCore) -> None:
    """Lower headings below the page's own; replace pictures in links by their description."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
        depth = 0
        for child in token.children or ():
            depth += {"link_open": 1, "link_close": -1}.get(child.type, 0)
            if child.type == "image" and depth:
                child.type, child.content, child.children = "text", child.content or str(child.attrGet("src")), None


# -- markdown-it: rendering -------------------------------------------------------------------------------------------


def _link_open(self: RendererHTML, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return f'<span class="link" role="link" tabindex="0" data-url="{escape(str(tokens[index].attrGet("href")))}">'


def _link_close(*_: Any) -> str:
    return "</span>"


def _image(self: RendererHTML, tokens: Sequence[Token], index: int, *_: Any) -> str:
    token = tokens[index]
    url = escape(str(token.attrGet("src")))
    alt = escape(token.content)
    return (
        f'<button type="button" class="image" data-url="{url}"><span class="alt">{alt}</span> '
        f'<span class="address">{url}</span></button>'
    )


def _code(self: RendererHTML, tokens: Sequence[Token], index: int, *_: Any) -> str:
    named = _LANGUAGE.match(tokens[index].info.strip())
    language = named[0] if named else ""
    caption = f"<figcaption>{escape(language)}</figcaption>"
    body = highlighted(_MARKS.sub(_named, tokens[index].content), language.lower())
    return f'<figure class="code">{caption}<pre tabindex="0"><code>{body}</code></pre></figure>\n'


def _code_inline(self: RendererHTML, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return f"<code>{escape(_MARKS.sub(_named, tokens[index].content))}</code>"


@lru_cache(maxsize=256)
def highlighted(code: str, language: str) -> str:
    """Code as HTML with Pygments' classes; plain for unknown languages and very long code."""
    if not language or len(code) > MAX_HIGHLIGHT:
        return escape(code)
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return escape(code)
    return highlight(code, lexer, _FORMATTER)


def _table_open(self: RendererHTML, tokens: Sequence[Token], index: int, *_: Any) -> str:
    direction = ' dir="rtl"' if tokens[index].attrGet("dir") else ""
    return f'<div class="table" tabindex="0"{direction}><table>\n'


def _table_close(*_: Any) -> str:
    return "</table></div>\n"


def _cell(self: RendererHTML, tokens: Sequence[Token], index: int, *_: Any) -> str:
    side = str(tokens[index].attrGet("style") or "").removeprefix("text-align:")
    return f'<{tokens[index].tag} class="{side}">' if side in _CELLS else f"<{tokens[index].tag}>"


def _parser(*, tables: bool) -> MarkdownIt:
    # A single line break is one: models write verses, addresses and lines of a dialogue so.
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("strikethrough")
    if tables:
        parser.enable("table")
    parser.validateLink = _safe_address  # type: ignore[method-assign]
    parser.core.ruler.at("inline", _parse_inline)
    parser.core.ruler.push("tame", _tame)
    use_maths(parser)
    use_bare_addresses(parser)
    rules = {"link_open": _link_open, "link_close": _link_close, "image": _image, "fence": _code, "code_block": _code}
    rules["code_inline"] = _code_inline
    rules |= {"table_open": _table_open, "table_close": _table_close, "th_open": _cell, "td_open": _cell}
    for name, rule in rules.items():
        parser.add_render_rule(name, rule)
    return parser


_PARSER = _parser(tables=True)
_WITHOUT_TABLES = _parser(tables=False)
