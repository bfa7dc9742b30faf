r"""Maths in a model's text, as MathML: \( \), \[ \], $$ $$, $ $ and LaTeX's own environments.

Browsers draw MathML without a script. latex2mathml reads the LaTeX; its tree is written out here element by element,
from a short list, so nothing in a formula becomes markup. The source stays with the formula, for copying. What is not a
formula, or cannot be read, stays the text that it was.
"""

import re
from functools import lru_cache
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

from puna.web.markdown.mathml import mathml

MAX_FORMULA = 4000  # characters
MAX_LINES = 60  # of a displayed formula that is still open
CLASSES = {"maths", "display", "long"}
LONG = 40  # characters from which an inline formula may scroll, since browsers do not break it

_PARENS = re.compile(r"\\\(((?:\\[^()]|[^\\])+?)\\\)", re.DOTALL)
_BRACKETS = re.compile(r"\\\[((?:\\[^\[\]]|[^\\])+?)\\\](?!\()", re.DOTALL)  # not \[text\](address)
_DOLLARS = re.compile(r"\$\$((?:\\.|[^\\$])+?)\$\$", re.DOTALL)
# Pandoc's rule (tex_math_dollars), and no letter or digit on the outside: $5 and $10, $HOME/$USER are not formulas.
_DOLLAR = re.compile(r"\$(?![\s$])((?:\\.|[^\\$\n])+?)(?<![\s\\])\$(?![A-Za-z0-9_$])")
_WORD = re.compile(r"[A-Za-z0-9_$\\]")
_PROSE = re.compile(r"[A-Za-z]{2,} [A-Za-z]{2,}|\d,? [A-Za-z]{2,} ")
_LATEX = re.compile(r"[\\^_={}<>]")
_ENVIRONMENTS = "align|aligned|alignat|alignedat|array|cases|equation|eqnarray|gather|gathered|multline|split"
_BEGIN = re.compile(rf"\\begin\{{((?:{_ENVIRONMENTS}|[bBpvV]?matrix|smallmatrix)\*?)\}}")
_OPENERS = {"\\[": "\\]", "$$": "$$"}
_AFTER = re.compile(r"\s*[.,;:!?。，；：]?\s*\Z")


def use_maths(parser: MarkdownIt) -> None:
    """Teach a parser to read formulas."""
    parser.block.ruler.before("fence", "maths", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    parser.inline.ruler.before("escape", "maths", _inline)
    parser.add_render_rule("maths", _render)
    parser.add_render_rule("maths_display", _render)


def _inline(state: StateInline, silent: bool) -> bool:
    source, start = state.src, state.pos
    found = _formula_at(source, start, min(state.posMax, start + MAX_FORMULA))
    if found is None:
        return False
    kind, formula, whole = found
    if not silent:
        token = state.push(kind, "math", 0)
        token.content, token.markup = formula, whole
    state.pos += len(whole)
    return True


def _formula_at(source: str, start: int, end: int) -> tuple[str, str, str] | None:
    """(token type, formula, formula with its delimiters) at a place; None when none begins there."""
    two = source[start : start + 2]
    if two == "\\(":
        found, kind = _PARENS.match(source, start, end), "maths"
    elif two == "\\[":
        found, kind = _BRACKETS.match(source, start, end), "maths_display"
    elif two == "$$":
        found, kind = _DOLLARS.match(source, start, end), "maths_display"
    elif two[:1] == "$" and not (start and _WORD.match(source[start - 1])):
        found, kind = _DOLLAR.match(source, start, end), "maths"
        if found and _PROSE.search(found[1]) and not _LATEX.search(found[1]):
            return None
    elif two == "\\b" and (begin := _BEGIN.match(source, start, end)):
        close = f"\\end{{{begin[1]}}}"
        stop = source.find(close, begin.end(), end)
        whole = source[start : stop + len(close)]
        return ("maths_display", whole, whole) if stop >= 0 else None
    else:
        return None
    return (kind, found[1], found[0]) if found and found[1].strip() else None


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""A displayed formula that begins a line: none of its lines begins a list, a quote or a heading."""
    if state.is_code_block(start):
        return False
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    opener, closer = _delimiters(first)
    if not opener:
        return False
    lines: list[str] = []
    for number in range(start, min(end, start + MAX_LINES)):
        line = first if number == start else state.getLines(number, number + 1, state.blkIndent, False)
        if number > start and state.sCount[number] < state.blkIndent and not state.isEmpty(number):
            return False
        at = line.find(closer, len(opener) if number == start else 0)
        if at >= 0:
            after = line[at + len(closer) :]
            if not _AFTER.match(after):
                return False
            lines.append(line[: at + len(closer)])
            return silent or _push(state, start, number + 1, lines, closer, after.strip())
        lines.append(line)
    if not state.env.get("growing") or end - start >= MAX_LINES:
        return False
    return silent or _push(state, start, end, lines, "", "")  # it is still being written


def _delimiters(line: str) -> tuple[str, str]:
    """The opener at the start of a line and what closes it, or two empty strings."""
    if begin := _BEGIN.match(line):
        return begin[0], f"\\end{{{begin[1]}}}"
    closer = _OPENERS.get(line[:2], "")
    return (line[:2], closer) if closer else ("", "")


def _push(state: StateBlock, start: int, end: int, lines: list[str], closer: str, after: str) -> bool:
    whole = "\n".join(lines)
    formula = whole if whole.startswith("\\begin") else whole[2 : len(whole) - len(closer)]
    if len(whole) > MAX_FORMULA or not formula.strip(" \n"):
        return False
    token = state.push("maths_display", "math", 0)
    token.block, token.map = True, [start, end]
    token.content, token.markup, token.info = formula, whole, after
    token.meta = {"open": not closer}
    state.line = end
    return True


def _render(self: Any, tokens: Any, index: int, *_: Any) -> str:
    token = tokens[index]
    display = token.type == "maths_display"
    drawn = None if (token.meta or {}).get("open") else _drawn(token.content, display)
    source = escape(token.markup)
    if drawn is None:
        shown = f'<span class="plain">{source}</span>{escape(token.info)}'
    else:
        kind = "maths display" if display else "maths long" if len(token.content) > LONG else "maths"
        focus = ' tabindex="0"' if kind != "maths" else ""
        shown = f'<span class="{kind}" data-source="{source}"{focus}>{drawn}{escape(token.info)}</span>'
    return f"<p>{shown}</p>\n" if token.block else shown


@lru_cache(maxsize=1024)
def _drawn(formula: str, display: bool) -> str | None:
    """A formula as MathML; None when it cannot be read."""
    from latex2mathml.converter import convert_to_element

    try:
        return mathml(convert_to_element(_known(formula), display="block" if display else "inline"))
    except Exception:  # whatever a library says about a formula it does not know: the person sees the source
        return None


_REWRITTEN = [
    (re.compile(r"\\(begin|end)\{aligned\*?\}"), r"\\\1{align*}"),
    (re.compile(r"\\begin\{align(?:ed)?at\*?\}\s*\{\d+\}"), r"\\begin{align*}"),
    (re.compile(r"\\end\{align(?:ed)?at\*?\}"), r"\\end{align*}"),
    (re.compile(r"\\(begin|end)\{(?:gather|gathered|multline)\*?\}"), r"\\\1{matrix}"),
    (re.compile(r"\\(begin|end)\{eqnarray\*?\}"), r"\\\1{align*}"),
    (re.compile(r"\\operatorname\*"), r"\\operatorname"),
    (re.compile(r"\\label\s*\{[^{}]*\}|\\(?:nonumber|notag|allowbreak|nolimits)(?![A-Za-z])"), ""),
    (re.compile(r"\\arg(?![A-Za-z])"), r"\\operatorname{arg}"),
    (re.compile(r"\\(?:[td]?frac)(?=\d\d)"), r"\\frac"),
]


def _known(formula: str) -> str:
    """The formula in words that latex2mathml 3.81 knows."""
    for pattern, replacement in _REWRITTEN:
        formula = pattern.sub(replacement, formula)
    return formula.strip()
