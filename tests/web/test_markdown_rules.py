"""What the page's Markdown adds to CommonMark: maths, line breaks, emphasis in CJK text, bare addresses, directions."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from puna.web.live_markdown import LiveMarkdown
from puna.web.markdown import blocks, render


def formulas(text: str) -> list[str]:
    """The sources of the formulas in a text, as they are copied."""
    found = re.findall(r'data-source="([^"]*)"', render(text))
    return [one.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for one in found]


def letters(text: str) -> str:
    """What a formula shows, without its markup."""
    (drawn,) = re.findall(r"<math.*</math>", render(text), re.DOTALL)
    return "".join(ElementTree.fromstring(drawn.replace("&nbsp;", "\xa0")).itertext())


# -- maths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"so \(x^2 + 1\) is", [r"\(x^2 + 1\)"]),
        (r"so \[x^2\] is", [r"\[x^2\]"]),
        ("so $$x^2$$ is", ["$$x^2$$"]),
        (r"so $\frac{1}{2}$ is", [r"$\frac{1}{2}$"]),
        (r"\(a\)\(b\), $c$; $d$.", [r"\(a\)", r"\(b\)", "$c$", "$d$"]),
        (r"**bold \(a_1 * b_2 * c_3\)**", [r"\(a_1 * b_2 * c_3\)"]),
        (r"| a |" + "\n|---|\n" + r"| \(x_1\) |", [r"\(x_1\)"]),
        ("\\[\n\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}\n\\]", None),
        ("$$\n- a\n+ b\n= c\n> d\n$$", None),
        ("\\[\nx = 1\n\n\\]", None),
        ("\\begin{align*}\na &= b \\\\\n  &= c\n\\end{align*}", None),
        ("1. First:\n   \\[\n   x\n   \\]\n2. Second: \\(y\\)", ["\\[\nx\n\\]", r"\(y\)"]),
        ("> $$\n> x\n> $$", ["$$\nx\n$$"]),
        (r"数式は\(x\)です。价格是$y$元。", [r"\(x\)", "$y$"]),
    ],
)
def test_formulas_are_found_and_keep_their_source(text: str, wanted: list[str] | None) -> None:
    assert formulas(text) == (wanted if wanted is not None else [text])
    assert render(text).count("<math ") == len(formulas(text))


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $10, or $1,000 - $2,000.",
        "between $5-$10, US$7 or 7$ each",
        "set $HOME/$USER and $PATH",
        "a `$x$` and ``\\(y\\)``",
        "```\n$x$ \\(y\\)\n```",
        "\\$x\\$ and $ x $",
        "It costs $5, not 6$.",
        r"\[a link\](https://x.example)",
        r"only \( opened",
        "$",
        "$$$$",
        r"\(\)",
    ],
)
def test_what_is_not_a_formula_stays_text(text: str) -> None:
    assert "<math" not in render(text)


def test_a_formula_that_cannot_be_read_is_shown_as_it_is() -> None:
    for text in (r"\(\frac{1}\)", r"\[x^2^3\]", r"\(\left( x\)", "$$" + "{" * 2000 + "$$"):
        html = render(text)
        assert text.replace("&", "&amp;") in html
        assert "<math" not in html


@pytest.mark.parametrize(
    ("formula", "shows"),
    [
        (r"\frac{-b \pm \sqrt{b^2-4ac}}{2a}", "−b±b2−4ac2a"),
        (r"\begin{aligned} a &= b \\ &= c \end{aligned}", "a=b=c"),
        (r"\begin{gather} a \\ b \end{gather}", "ab"),
        (r"\boxed{42}", "42"),
        (r"\text{if } x < 5", "if\xa0x<5"),
        (r"\operatorname*{softmax}(z)", "softmax(z)"),
        (r"\mathbb{R}^n \to \mathbf{x1}", "ℝn→𝐱𝟏"),
        (r"a \\ b", "ab"),
        (r"5\% \$", "5%$"),
        (r"\alpha \leq \infty \tag{1}", "α≤∞(1)"),
    ],
)
def test_formulas_show_what_they_say(formula: str, shows: str) -> None:
    assert letters(rf"\[{formula}\]") == letters(rf"$${formula}$$") == letters(rf"\({formula}\)") == shows


def test_operators_are_operators() -> None:
    html = render(r"\(a \pm b \sin x + \mathrm{d} + \lim_{x} y\)")
    for part in ("<mo>±</mo>", 'rspace="0.167em">sin</mo>', '<mi mathvariant="normal">d</mi>', "<munder>"):
        assert part in html
    assert '<mrow class="boxed">' in render(r"\(\boxed{4}\)")


MATHS = "Before\n\n\\[\nx\n- y\n\n= z\n\\]\n\n1. one\n\n   $$\n   a\n   $$\n\nand \\(b\\) after"


def test_a_growing_formula_is_one_block() -> None:
    live = LiveMarkdown()
    for end in range(len(MATHS) + 1):
        shown = live.render(MATHS[:end])
        assert not any("<ul>" in html or "<h4>" in html for html in shown)
    assert shown == blocks(MATHS)


@given(
    st.lists(st.sampled_from([r"\(", r"\)", r"\[", r"\]", "$$", "$", "\n", "x", "- ", "\\\\", "{", "}", r"\frac", "|"]))
)
@settings(max_examples=200)
def test_no_delimiters_break_anything(parts: list[str]) -> None:
    live = LiveMarkdown()
    text = "".join(parts)
    for end in range(0, len(text) + 1, 3):
        live.render(text[:end])
    assert live.render(text, final=True) == blocks(text)


# -- line breaks -------------------------------------------------------------------------------------------------------


def test_single_line_breaks_are_kept() -> None:
    assert render("Roses are red\nviolets are blue") == "<p>Roses are red<br>\nviolets are blue</p>\n"
    assert render("- a\n  b").count("<br>") == render("> a\n> b").count("<br>") == 1


# -- emphasis next to CJK text -----------------------------------------------------------------------------------------

# From markdown-it-cjk-friendly's own cases (testcases/*.md, 2026-11), with what its snapshots say.
FRIENDLY = """
これは**「強調」**です。
これは**私のやりたかったこと。**だからするの。
カッコに注意**（太字にならない）**文が続く場合に要警戒。
税込**¥10,000**で入手できます。
正解は**④**です。
太郎は**"こんにちわ"**といった
**C#**や**F#**は**「.NET」**というプラットフォーム上で動作します。
Go**「初心者」**を対象とした記事です。
**真“**她
真**（她**
**真—**她
**真·**她
.NET**（.NET Frameworkは不可）**では、
𰻞𰻞**(ビャンビャン)**麺
葛󠄀**(こちらが正式表記)**城市
大塚︀**(U+585A U+FE00)** 大塚**(U+FA10)**
**推荐几个框架：**React、Vue等前端框架。
**스크립트(script)**라고
**이 별표는 그대로 표시됩니다(이 괄호 때문에)**이 문장 때문에.
a**〽**a
**“︁Git”︁**Hub
""".strip().splitlines()


@pytest.mark.parametrize("text", FRIENDLY)
def test_emphasis_next_to_cjk_text(text: str) -> None:
    html = render(text)
    assert "*" not in html
    assert html.count("<strong>") == text.count("**") // 2
    assert "~" not in render(text.replace("**", "~~"))


@pytest.mark.parametrize(
    "text", ["a**a«**a", "a**∇a**a", "a**𝜵a**a", "2 ** 3 ** 4", "これは**「", "a**😀a**a", "文字_（強調）_文字"]
)
def test_what_is_not_emphasis_there_is_not_here(text: str) -> None:
    assert "<strong>" not in render(text)
    assert "<em>" not in render(text)


@given(st.text(alphabet='ab .,(*_~"', max_size=40))
@settings(max_examples=300)
def test_without_cjk_text_emphasis_is_commonmarks(text: str) -> None:
    theirs = MarkdownIt("commonmark").enable("strikethrough").render(f"a {text}")
    assert render(f"a {text}") == theirs.replace("&quot;", '"')


# -- bare addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("see https://a.example/b.", ["https://a.example/b"]),
        ("(https://a.example/b_(c)) http://b.example?q=1&r=2#s!", ["https://a.example/b_(c)", "http://b.example?q=1&r=2#s"]),
        ("www.example.com, www.x", ["https://www.example.com"]),
        ("mail me_too@x.example; a@b", ["mailto:me_too@x.example"]),
        ("**https://a.example/x** and *https://a.example/y*", ["https://a.example/x", "https://a.example/y"]),
        ("http://localhost:8000/docs http://127.0.0.1:80/", ["http://localhost:8000/docs", "http://127.0.0.1:80/"]),
        ("请看https://a.example/x。然后https://b.example的文档（https://c.example）",
         ["https://a.example/x", "https://b.example", "https://c.example"]),
        ("“https://a.example” «https://b.example»", ["https://a.example", "https://b.example"]),
        ("| a |\n|---|\n| https://a.example |", ["https://a.example"]),
        ("[https://a.example](https://b.example) <https://c.example>", ["https://b.example", "https://c.example"]),
        ("`https://a.example` README.md node.js xhttps://a.example javascript://a.example ftp://a.example", []),
        ("https:// http://. https://user@evil https://-.example", []),
    ],
)  # fmt: skip
def test_bare_addresses_are_links_that_wait_for_a_click(text: str, urls: list[str]) -> None:
    html = render(text)
    assert [one.replace("&amp;", "&") for one in re.findall(r'data-url="([^"]*)"', html)] == urls
    assert "href" not in html


# -- directions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["- {}\n- b", "1. {}", "> {}", "| {} | b |\n|---|---|\n| c | d |", "- **{}** b", "- 1. {}"]
)
@pytest.mark.parametrize("word", ["שלום", "مرحبا", "\u200f- ‏12 سلام"])
def test_lists_tables_and_quotes_take_the_direction_of_their_text(text: str, word: str) -> None:
    assert render(text.format(word)).count('dir="rtl"') == 1
    assert "dir=" not in render(text.format("hello " + word))


def test_marks_of_direction_stay_invisible_in_prose_and_show_in_code() -> None:
    text = "\u200fשלום\u200e a\u200eb\u061c"
    assert text in render(text)
    assert "[U+200F]" in render("`\u200fx`")
    assert "[U+200E]" in render("```\na\u200eb\n```")
    assert "[U+202E]" in render("a\u202eb")


@pytest.mark.parametrize("place", ["gbeng", "gbsct", "gbwls"])
def test_the_flags_of_england_scotland_and_wales(place: str) -> None:
    flag = "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in place) + "\U000e007f"
    assert flag in render(f"Hello {flag}!")
    assert "\U000e0067" not in render(flag[1:])  # tags without the flag hide a text
