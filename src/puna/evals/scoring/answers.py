r"""Finds where a text states its final answer, in nine languages, whatever markup is around it.

A final answer is stated by

- `\boxed{…}` that is closed and not empty, `<answer>…</answer>`, or GSM8K's `####`;
- a sentence about the answer: the word for it, a few more words, and a verb, a colon, a dash or an equals sign ("The
  final answer is", "Antwort:", "Ответ —", "答えは"). A sentence about what it is not, or about an earlier one, is none.

All of them are equal in rank, and the last one counts, because whoever corrects himself does so later. What follows the
answer, such as an offer of more help, is ignored. `numbers` and `latex` read what is stated.
"""

import re
from typing import NamedTuple

MAX_TEXT = 50_000
"""The end of a text, in characters, that is searched."""
MAX_STATED = 2_000
"""The longest content of a box or tag, in characters."""
MAX_STATEMENTS = 64
"""How many statements, the last ones, are read."""


class Stated(NamedTuple):
    """One statement of the answer.

    start: its place in the text. text: the content of a box or tag, or everything after the words. kind: "box", "tag",
    "mark" (####), "verb", or "sign" (a colon, a dash or an equals sign). language: of the words; "" without any.
    """

    start: int
    text: str
    kind: str
    language: str = ""


class _Words(NamedTuple):
    """How a language states an answer. noun: for the answer. verbs: between noun and answer. spaced: between words."""

    noun: str
    verbs: str
    spaced: bool = True


_WORDS = {
    "en": _Words(
        r"answers?|ans|final (?:result|solution|value|total)",
        r"is|are|was|equals?|(?:should|must|would|will) be|comes? (?:out )?to|becomes?|remains?",
    ),
    "de": _Words(
        r"(?:end)?antwort(?:en)?|endergebnis|ergebnis(?= (?:ist|lautet|beträgt))|(?:endgültige|finale) lösung",
        r"ist|sind|war|lautete?|beträgt|wäre|ergibt|bleibt",
    ),
    "es": _Words(
        r"respuestas?|resultado final|resultado(?= es)", r"es|son|era|fue|sería|será|debe ser|equivale a|queda en"
    ),
    "fr": _Words(
        r"réponses?|reponses?|résultat final|résultat(?= est)", r"est|sont|était|serait|sera|vaut|doit être|devient"
    ),
    "ru": _Words(
        r"ответ(?:ом|ы)?|итоговый результат|конечный результат",
        r"равен|равняется|равны|это|есть|является|составляет|будет|получается",
    ),
    "sw": _Words(r"jibu|majibu|jawabu", r"ni|litakuwa|lilikuwa|linakuwa|itakuwa|ilikuwa"),
    "ja": _Words(r"答え|答(?=[ \t]{0,2}[:：は])|解答|回答|正解", r"は|が", spaced=False),
    "zh": _Words(
        r"答案|答(?=[ \t]{0,2}[:：])|解答|回答",
        r"应该是|應該是|应该为|就是|便是|是|应为|應為|为|為|等于|等於",
        spaced=False,
    ),
    "th": _Words(r"คำตอบ|ตอบ", r"คือ|เท่ากับ|เป็น|ได้แก่|จะเป็น|ควรเป็น", spaced=False),
}
LANGUAGES = tuple(_WORDS)
"""The languages whose sentences are known."""

_SIGN = r"[:：=＝—–→⇒]|-(?=\s)|-{2,3}"
_SPACE = r"[ \t\"'»*_}]"
# Between noun and verb: words in no other sentence, or an aside in brackets; without spaces a few characters.
_BETWEEN = rf"(?:{_SPACE}{{1,4}}(?:\([^()\n]{{1,60}}\)|[^\s,;:.!?=()]{{1,24}})){{0,6}}?"
_BETWEEN_UNSPACED = r"[^\n,;:。！？；，、：＝=0-9]{0,12}?"

_DENIED = re.compile(
    r"\b(?:not|never|no|cannot|nicht|kein\w{0,2}|ne|не|si|previous|earlier|anterior|inicial|précédente|initiale)\b"
    r"|n['’]|不|没|沒|ไม่",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"\s{0,4}(?:(?:not|no longer|wrong|incorrect|nicht|falsch|keine?|incorrecta|pas|fausse|не|неверн\w*"
    r"|неправильн\w*)\b|ではな|じゃな|不对|错|ไม่)",
    re.IGNORECASE,
)
_EARLIER = re.compile(
    r"(?:\b(?:previous|first|initial|earlier|original|old|wrong|incorrect|other|vorherige|erste|falsche|primera"
    r"|première|предыдущий|первый|неверный|неправильный)\s|之前的|先前的|原来的|原來的|前の|最初の)\s{0,2}$",
    re.IGNORECASE,
)


def _patterns(words: _Words) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The sentence about the answer, and the line that begins with the noun and has nothing else or a number."""
    if words.spaced:
        noun = rf"(?<![^\W_])(?:{words.noun})(?![^\W_])"
        middle = rf"{_BETWEEN}(?:{_SPACE}{{1,4}}(?P<verb>{words.verbs})\b(?!['’])|{_SPACE}{{0,4}}(?P<sign>{_SIGN}))"
    else:
        noun = rf"(?:{words.noun})"
        middle = rf"{_BETWEEN_UNSPACED}(?:(?P<verb>{words.verbs})|{_SPACE}{{0,4}}(?P<sign>{_SIGN}))"
    number = r"[$€£¥฿\\]{0,3}[-−]?[0-9]"
    line = rf"^[ \t]{{0,4}}(?:the )?(?:final )?{noun}[ \t]{{0,4}}(?:(?P<alone>(?=\n))|(?={number}))"
    return re.compile(noun + middle, re.IGNORECASE), re.compile(line, re.IGNORECASE | re.MULTILINE)


_PATTERNS = {language: _patterns(words) for language, words in _WORDS.items()}
_MARK = re.compile(r"^[ \t]{0,3}#{4}(?![ \t]{0,4}[0-9]{1,3}[.):][ \t]+[^\W\d])(?=[^\w\n]{0,12}[0-9])", re.MULTILINE)
_NOTHING = re.compile(r"\\(?:text|mbox|mathrm|q?quad|[ ,;:!]|$)|[\s{}~$?.…]|_{2,}|\\(?:ldots|dots|cdots|square)")
_TAG = re.compile(rf"<answer>(.{{1,{MAX_STATED}}}?)</answer>", re.IGNORECASE | re.DOTALL)


def statements(text: str) -> list[Stated]:
    """Return the statements of the answer, the last ones in their order. text: as `without_markdown` returns it."""
    found = [*_boxes(text), *(Stated(match.start(), match[1], "tag") for match in _TAG.finditer(text))]
    found += [Stated(match.start(), text[match.end() :], "mark") for match in _MARK.finditer(text)]
    for language, (sentence, line) in _PATTERNS.items():
        for match in sentence.finditer(text):
            before, after = text[max(0, match.start() - 24) : match.start()], text[match.end() :]
            if not (_DENIED.search(match.group()) or _WRONG.match(after) or _EARLIER.search(before)):
                found.append(Stated(match.start(), after, "verb" if match["verb"] else "sign", language))
        for match in line.finditer(text):
            found.append(
                Stated(match.start(), text[match.end() :], "sign" if match["alone"] is not None else "verb", language)
            )
    return sorted(found, key=lambda one: one.start)[-MAX_STATEMENTS:]


def _boxes(text: str) -> list[Stated]:
    r"""The content of each closed \boxed{…} or \fbox{…} that has any, and of \boxed before a bare value."""
    found, closing = [], _braces(text)
    for match in re.finditer(r"\\(?:boxed|fbox)(?![A-Za-z])[ \t]{0,3}", text):
        place = match.end()
        if text[place : place + 1] != "{":
            content = re.split(r"[$\n]", text[place : place + MAX_STATED], maxsplit=1)[0].strip()
        else:
            content = text[place + 1 : closing.get(place, place)].strip()
        if _NOTHING.sub("", content) and len(content) <= MAX_STATED:
            found.append(Stated(match.start(), content, "box"))
    return found


def _braces(text: str) -> dict[int, int]:
    """Where each opened brace is closed; escaped ones are none."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"(?<!\\)[{}]", text):
        if match.group() == "{":
            opened.append(match.start())
        elif opened:
            closing[opened.pop()] = match.start()
    return closing


# -- Markdown ----------------------------------------------------------------------------------------------------------

_EMPHASIS = re.compile(r"(?<![\w*)\]])(\*{1,3}|_{2,3})(?=[^\s*_])([^\n]{0,2000}?[^\s*_\\])\1(?![A-Za-z0-9*_(])")
_STARS = re.compile(r"(?<![\w)\]}*^])\s?\*{2,3}|\*{2,3}(?![\w(\\*-])")
_LINE_START = re.compile(
    r"^[ \t]{0,9}(?:>[ \t]?){0,4}(?:(?:#{1,3}|#{5,6})(?=[ \t])|[-*+•](?=[ \t]+\S))?[ \t]{0,9}", re.MULTILINE
)


def without_markdown(text: str) -> str:
    """Return the end of a text without emphasis, code marks, headings, quotes and bullets; without reasoning.

    A star between operands is a product and stays. A single line is never taken for a list, so that "- 5" is -5.
    """
    text = text[-MAX_TEXT:].replace("\r\n", "\n")
    _, thought, rest = text.rpartition("</think>")
    text = rest if thought and rest.strip() else text
    text = text.replace("`", "")
    for _ in range(2):  # *** and nested emphasis
        text = _EMPHASIS.sub(r"\2", text)
    text = _STARS.sub("", text)
    if len(text.split("\n")) > 1:
        text = _LINE_START.sub("", text)
    return text
