"""A model's text as HTML: what it should look like, and that no text becomes anything that acts."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pygments.token import STANDARD_TYPES
from xss_vectors import VECTORS

from puna.web.markdown import Live, blocks, mathml, render

TAGS = {
    *("p", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li", "hr", "div", "figure", "figcaption", "pre", "code"),
    *("table", "thead", "tbody", "tr", "th", "td", "strong", "em", "s", "br", "span", "button"),
    *mathml.ELEMENTS,
}
CLASSES = {"link", "alt", "address", "image", "table", "code", "plain", "left", "right", "center"}
CLASSES |= {"maths", "display", "long", "boxed", "struck", "ruled"} | set(STANDARD_TYPES.values())
VALUES = {"role": {"link"}, "tabindex": {"0"}, "type": {"button"}, "dir": {"rtl"}, "display": {"block", "inline"}}
VALUES |= {name: {"true", "false"} for name in mathml.TRUTHS} | mathml.FIXED
LENGTH = re.compile(r"-?\d{1,2}(\.\d+)?(em|ex)?")


class Check(HTMLParser):
    """Looks at every element and attribute that a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.urls: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        for name, value in attrs:
            assert value is not None
            if name == "class":
                assert set(value.split()) <= CLASSES
            elif name == "data-url":
                assert tag in ("span", "button")
                assert value.lower().startswith(("http://", "https://", "mailto:"))
                self.urls.append(value)
            elif name == "start":
                assert tag == "ol"
                assert value.isdigit()
            elif name == "data-source":
                assert tag == "span"
            elif name in mathml.LENGTHS:
                assert tag in mathml.ELEMENTS
                assert LENGTH.fullmatch(value)
                assert -1 <= float(value.rstrip("emx")) <= 20
            else:
                assert value in VALUES[name], (tag, name, value)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment  # type: ignore[assignment]


def test_there_are_many_vectors() -> None:
    assert len(set(VECTORS)) >= 60


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_no_text_becomes_anything_that_acts(number: int) -> None:
    html = render(VECTORS[number])
    seen = Check(html)
    for hidden in "\u202e\u2066\u2067\u2069\x00\x1b\U000e0041":
        assert hidden not in html
    assert "".join(seen.text).strip()  # and it is shown, not swallowed


@given(st.text(alphabet=st.sampled_from(list("<>&\"'[]()!`~*_#|- \n\\=/:;abjsx\u202e\0$^{}@.。「")), max_size=200))
@settings(max_examples=150)
def test_any_text_at_all(text: str) -> None:
    Check(render(text))


@given(st.lists(st.sampled_from(VECTORS[:80]), max_size=4), st.integers(1, 40))
@settings(max_examples=25)
def test_half_a_text_is_as_harmless(texts: list[str], step: int) -> None:
    text = "\n\n".join(texts)[:600]
    live = Live()
    for end in range(0, len(text) + step, step):
        Check("".join(live.blocks(text[:end])))


TEXT = """# Title

One *two* **three** ~~four~~ `five` [six](https://a.example/b?c=1&d=2).

- a
- b

  c

3. x

```python
def f(x):
    return 1
```

| n | m |
|:--|--:|
| 1 | 2 |

> said

![a picture](https://a.example/p.png)
"""


def test_what_markdown_becomes() -> None:
    html = render(TEXT)
    for part in (
        "<h3>Title</h3>",
        "<em>two</em> <strong>three</strong> <s>four</s> <code>five</code>",
        '<span class="link" role="link" tabindex="0" data-url="https://a.example/b?c=1&amp;d=2">six</span>',
        '<ol start="3">',
        '<figure class="code"><figcaption>python</figcaption><pre tabindex="0"><code><span class="k">def</span>',
        '<th class="left">n</th>',
        '<td class="right">2</td>',
        "<blockquote>",
        '<button type="button" class="image" data-url="https://a.example/p.png"><span class="alt">a picture</span>',
    ):
        assert part in html
    assert Check(html).urls == ["https://a.example/b?c=1&d=2", "https://a.example/p.png"]


def test_while_it_is_written_it_looks_as_it_will() -> None:
    live = Live()
    for end in range(len(TEXT) + 1):
        shown = live.blocks(TEXT[:end])
    assert shown == blocks(TEXT)
    assert len(live._closed) == len(shown) - 1  # all but the last are not rendered again


def test_an_open_fence_is_code_already() -> None:
    assert "<code>" in "".join(Live().blocks("Look:\n\n```\n<b>"))


def test_a_very_long_text_is_plain() -> None:
    assert render("*a*\n" * 60_000).startswith('<p class="plain">*a*')
