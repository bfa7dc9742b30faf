r"""Finds the answer to a mathematics problem in a model's text, and strips it of what does not change its value.

The last statement of the answer counts (`answers`). A box outranks words behind it that are no mathematics:
"\boxed{4}. So the answer is four." Stripped are dollar signs, spacing, size and text commands, separators of thousands,
`x =` before an answer and units behind it. `expressions` parses what is left.
"""

import re

from puna.evals.scoring.answers import Stated, statements, without_markdown
from puna.evals.scoring.expressions import FUNCTIONS, MAX_LENGTH, Node, Unknown, parse

__all__ = ["FUNCTIONS", "MAX_LENGTH", "Node", "Unknown", "final_answer", "parse", "undressed", "unit_letter"]


# -- finding -----------------------------------------------------------------------------------------------------------

_SPANS = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))
_CLAUSE_END = re.compile(
    r"[.!?](?=[\s*\"')\]]|$)|[。！？]|,?\s(?:because|since|as|which|where|so|when|for|therefore|thus|hence|if|obtained)\s"
    r"|,?\s(?:and|but)\s(?=[a-z]{2})"
)
_JOINT = re.compile(r"\s*(?:,|;|and|or|,\s*and|,\s*or|\\text\{\s*(?:and|or)\s*\})\s*", re.IGNORECASE)
# Words that only lead to the answer: "is therefore", "is equal to", "is given by", "is the interval".
_LEADING = re.compile(
    r"(?:(?:is|are|be|equals?|equal to|given by|actually|therefore|thus|hence|so|then|just|simply|exactly|indeed|now"
    r"|the|interval|set|pair|ordered|point|number|value|fraction|expression|that|of|approximately|about|option|choice"
    r"|only)\b[\s:]*|[:=\s])+",
    re.IGNORECASE,
)


def final_answer(text: str) -> str | None:
    r"""Return what a text states as its final answer, as it is written; None if it states none.

    That is the content of \boxed{…}, or the mathematics in a sentence about the answer.
    """
    text = without_markdown(text)
    best: str | None = None
    boxed = False
    for stated in statements(text):
        found = stated.text if stated.kind in ("box", "tag") else _in_words(stated)
        if not found or (stated.kind not in ("box", "tag") and boxed and not _is_mathematics(found)):
            continue
        best, boxed = found.strip(), boxed or stated.kind in ("box", "tag")
    return best


def _in_words(stated: Stated) -> str | None:
    """The answer in the text behind "the answer is"."""
    rest = stated.text[:MAX_LENGTH]
    lead = _LEADING.match(rest)
    rest = rest[lead.end() if lead else 0 :].lstrip()
    if spans := _spans(rest):
        return spans
    line = rest.split("\n", 1)[0]
    end = _CLAUSE_END.search(f"{line} ")
    clause = line[: end.start() if end else None].strip(" *:")
    if "\\boxed" in clause or "\\fbox" in clause:
        return None  # is stated itself
    inner = re.search(r"\$[^$]+\$|\\\([^\n]+?\\\)", clause)
    if inner and not re.search(r"[0-9=]", clause[: inner.start()]):
        return _spans(rest[inner.start() + len(rest) - len(rest.lstrip()) :])
    return clause.rstrip(".,;").strip("$ ") or None


def _spans(text: str) -> str | None:
    """The mathematics that a text begins with: one piece, or several with commas, "and" or "or" between them."""
    if (span := _span(text)) is None:
        return None
    parts, place = [span[0]], span[1]
    while (joint := _JOINT.match(text, place)) and (span := _span(text[joint.end() :])):
        parts.append(span[0])
        place = joint.end() + span[1]
    return ", ".join(parts)


def _span(text: str) -> tuple[str, int] | None:
    """The content of the mathematics that a text begins with, and where it ends."""
    for opening, closing in _SPANS:
        if text.startswith(opening):
            end = text.find(closing, len(opening))
            while end > 0 and closing == "$" and text[end - 1] == "\\":
                end = text.find(closing, end + 1)
            content = text[len(opening) : end].strip() if end > 0 else ""
            return (content.rstrip(".,;"), end + len(closing)) if content and "\\boxed" not in content else None
    return None


def _is_mathematics(text: str) -> bool:
    """Whether a text is an expression, and not a sentence that the parser would take for a product of letters."""
    text = undressed(text)
    if re.search(r"(?<![\\A-Za-z])(?!(?:pi|sqrt|infty)\b)[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", " ", text)):
        return False
    try:
        parse(text)
    except (Unknown, RecursionError):
        return False
    return True


# -- stripping ---------------------------------------------------------------------------------------------------------

_TEXT = r"\\(?:text|mbox|mathrm|textrm|textnormal|textbf|textit|mathbf|mathit|mathsf|operatorname|hbox)\*?(?![A-Za-z])"
_FUNCTION = re.compile(_TEXT + rf"\s{{0,3}}\{{\s?({'|'.join(FUNCTIONS)})\s?\}}")
_REPEATING = re.compile(r"([0-9]{0,9})\.([0-9]{0,9})\\(?:overline|bar)\s?\{\s?([0-9]{1,9})\s?\}")
_SPACING = re.compile(
    r"(?<!\\)\\[,:;> ]|~|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick|en)space(?![A-Za-z])|\\[hv]space\*?\{[^{}]{0,20}\}"
    r"|[\u00a0\u202f\u2007\u2009]"
)
_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|rm|bf|it|boldsymbol|mathord)(?![A-Za-z])"
    r"|\\(?:phantom|label|tag)\{[^{}]{0,40}\}"
)
_CURRENCY = re.compile(r"\\\$|[€£¥₹¢]|\\(?:pounds|euro|textdollar)(?![A-Za-z])")
_DEGREES = re.compile(r"\^\s{0,3}(?:\\circ|\{\s{0,3}\\circ\s{0,3}\})|\\degree(?![A-Za-z])|°|\\?%")
_SUPERSCRIPTS = str.maketrans({"²": "^2", "³": "^3", "−": "-", "–": "-", "’": "'"})
_MARKED = "\x02"
"""Marks both ends of what was in a text command."""
_PIECE = re.compile(
    r"(?P<mark>\x02)|(?P<space>\s+)|(?P<power>\^\s{0,2}(?:\{\s?-?[0-9]\s?\}|-?[0-9]))|(?P<command>\\[A-Za-z]+)"
    r"|(?P<word>[A-Za-z][A-Za-z'-]*\.?)|(?P<per>[/·.])|(?P<other>.)",
    re.DOTALL,
)
# Letters that are no unit: functions, constants, and the times of day.
_NAMES = frozenset((*FUNCTIONS, "pi", "sqrt", "infty", "infinity", "mod", "binom", "frac", "theta", "am", "pm"))
_UNITS = (
    "mm cm dm km in ft yd mi mg kg lb lbs oz ml cl dl gal qt pt mph kph kmh sec min hr hrs msec ms deg rad hz khz usd "
    "eur gbp sq cu units unit psi btu kwh kw hp rpm cc ha nm gm gms pts"
)
_SHORT_UNITS = frozenset(_UNITS.split())


def undressed(text: str, *, whole: bool = False) -> str:
    """Strip dollar signs, spacing commands, units behind it and, unless `whole`, `x =` before it."""
    return " ".join(_without_unit(_opened(text), whole=whole).replace(_MARKED, " ").split())


def unit_letter(text: str) -> str:
    r"""Return the unit of an answer if it is one letter in a text command, such as m in 5\text{ m}; else nothing."""
    match = re.search(
        rf"[0-9}})]\s{{0,3}}{_MARKED}\s{{0,3}}([A-DF-HJ-Za-df-hj-z])\.?\s{{0,3}}{_MARKED}[\s^{{}}23]{{0,6}}$",
        _opened(text),
    )
    return match[1] if match else ""


def _opened(text: str) -> str:
    """The text without commands for spaces, sizes and fonts; the ends of a text command are marked."""
    text = text.strip()
    for opening, closing in _SPANS:
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip()
    text = text.strip("$").strip().rstrip(".").strip().translate(_SUPERSCRIPTS)
    text = _CURRENCY.sub("", re.sub(r"\{\s?,\s?\}", ",", text))
    text = re.sub(r",\s*\\!\s*(?=[0-9]{3})", ",", text).replace("\\!", "")
    text = _SIZES.sub("", _SPACING.sub(" ", text))
    text = _FUNCTION.sub(r"\\\1 ", text)
    text = _REPEATING.sub(_as_fraction, text)
    for _ in range(2):
        text = re.sub(_TEXT + r"\s{0,3}\{([^{}]{0,500})\}", rf"{_MARKED}\1{_MARKED}", text)
    text = re.sub(r"\\[dtc](frac|binom)(?![A-Za-z])", r"\\\1", text)
    return _DEGREES.sub("", text).replace("\\&", "&").strip()


def _as_fraction(match: re.Match[str]) -> str:
    r"""A repeating decimal: 0.1\overline{6} is \frac{15}{90}."""
    whole, fixed, repeated = match[1] or "0", match[2], match[3]
    bottom = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    return f"\\frac{{{int(whole + fixed + repeated) - int(whole + fixed)}}}{{{bottom}}}"


def _without_unit(text: str, *, whole: bool) -> str:
    """Join grouped digits, read "and" as a comma, and strip a unit and `x =`."""
    text = re.sub(r"(?i)(?<=[0-9])[\s\x02]{0,4}([ap])\.?\s?m\b\.?", lambda one: f" {one[1].lower()}m", text)
    text = re.sub(r"\s{0,3},?[\s\x02]{1,6}(?:and|or)[\s\x02]{1,6}", ", ", text)
    text = re.sub(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3}){1,100}(?![0-9])", lambda one: one[0].replace(",", ""), text)
    text = re.sub(r"(?<![0-9.,])(?<![0-9.,] )[1-9][0-9]{0,2}(?: [0-9]{3}){1,100}(?! ?[0-9])",
                  lambda one: one[0].replace(" ", ""), text)  # fmt: skip
    text = re.sub(r"(?<![0-9./])([0-9]{1,9}) ([0-9]{1,9})/([0-9]{1,9})(?![0-9/])", r"\1 \\frac{\2}{\3}", text)
    text = text[: _unit_start(text)].replace(_MARKED, " ").strip()
    if not whole:
        text = re.sub(r"^[A-Za-z]\s{0,3}\\in(?![A-Za-z])\s{0,9}", "", text)
        names = re.findall(r"(?:^|,)\s{0,9}([A-Za-z](?:\([a-z]\))?)\s{0,3}=", text)
        if names and len(set(names)) == 1 and text.count("=") == len(names) > text.count(",") * (len(names) > 1):
            text = re.sub(r"(^|,)\s{0,9}[A-Za-z](?:\([a-z]\))?\s{0,3}=\s{0,9}", r"\1 ", text)
    return text


def _unit_start(text: str) -> int:
    """Where the unit begins that a text ends with, or the text's length without one.

    A unit is words of a text command, or words as people write them behind a number: not a product of letters.
    """
    pieces = list(_PIECE.finditer(text[-200:]))
    offset, marked = max(0, len(text) - 200), False
    start, number = len(text), len(pieces) - 1
    certain = False
    while number >= 0:
        piece, kind = pieces[number], pieces[number].lastgroup
        if kind == "mark":
            marked = not marked
        elif kind == "word":
            word = piece.group().rstrip(".")
            glued = number > 0 and pieces[number - 1].lastgroup == "other"
            if not _counts(word, marked=marked, follows=start < len(text), glued=glued):
                break
            start, certain = offset + piece.start(), certain or marked
        elif kind not in ("space", "power", "per") or (kind == "power" and start < len(text) and not certain):
            break
        number -= 1
    before = text[:start].replace(_MARKED, " ").strip()
    unit_only = not before or before.endswith(("+", "-", "*", "/", "=", "^", ",", "(", "_"))
    return len(text) if unit_only or not (certain or re.search(r"[0-9]|\\[A-Za-z]", before)) else start


def _counts(word: str, *, marked: bool, follows: bool, glued: bool) -> bool:
    """Whether letters are a unit or another word, not variables, a function or a constant."""
    if marked:
        return word not in ("am", "pm", "e", "i")
    if word.lower() in _NAMES:
        return False
    if word.lower() in _SHORT_UNITS:
        return True
    return (follows and len(word) == 1) or (
        len(word) > 2 + glued and re.search(r"[aeiou]", word, re.IGNORECASE) is not None
    )
