r"""Reads the number that a text gives as its answer, as people and models write numbers, and compares numbers exactly.

A number may have separators ("1,234.50", "1.234,50", "70 000", "70'000", "1,00,000", `70{,}000`, `1\,000`), a sign, a
currency, a fraction ("2 1/2", `\frac{1}{2}`), a power of ten or a word for one ("2 million", "7万"). Whether a single
separator before three digits groups them or begins decimals depends on the language: "70.000" is seventy thousand in
German and seventy in English. As questions and instructions are in English, its commas group in every language.

`answers` finds where the answer is stated; of "5 x 3 = 15" it is what follows the last equals sign. A text that states
none has its last number, not counting an offer of more help behind it. Nothing is evaluated.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from puna.evals.scoring.answers import Stated, statements, without_markdown

MAX_DIGITS = 400
"""The longest number that is compared, in digits."""
MAX_CLAUSE = 600
"""How far behind "the answer is" a number may be, in characters."""

_GROUPS = {"de": ".", "es": ".", "fr": ".", "ru": "."}
"""What groups digits, besides English's comma and, in every language, a space or an apostrophe."""
_DECIMALS = {"de": ",", "es": ",", "fr": ",", "ru": ","}
"""What begins decimals, besides a full stop."""


class Number(NamedTuple):
    """A number in a text. text: decimal digits, or a fraction as a/b. signed: whether the sign was attached to it."""

    text: str
    start: int
    end: int


def last_number(text: str, language: str = "en") -> str | None:
    """Return the number that a text gives as its answer, in plain digits: "−1,234.50 €" is "-1234.50".

    language: the text's, for its separators (a code such as "de"). None if there is no number.
    """
    text = without_markdown(text)
    for stated in reversed(statements(text)):
        found = _stated_number(stated, {language, stated.language})
        if found is not None:
            return found
    numbers = list(_numbers(_without_offer(plain(text)), {language})) or list(_numbers(plain(text), {language}))
    return numbers[-1].text if numbers else None


def same_number(one: str, other: str) -> bool:
    """Whether two texts are exactly the same number: 7 is 7.00, 1/2 is 0.5, and 0.1 is not rounded."""
    first, second = value(one), value(other)
    return first is not None and first == second


def value(text: str) -> Fraction | None:
    """Return the number that plain digits or a/b state; None if they do not, or are too long."""
    if len(text) > MAX_DIGITS or not re.fullmatch(r"-?[0-9]+(?:\.[0-9]+|/0*[1-9][0-9]*)?", text):
        return None
    return Fraction(text)


# -- from LaTeX and other scripts to plain characters ------------------------------------------------------------------

_DIGITS = {first + digit: str(digit) for first in (0xFF10, 0x0E50) for digit in range(10)}  # full width, Thai
_PLAIN = str.maketrans(
    _DIGITS
    | dict(zip(map(ord, "，．：；＝＋－％＄￥（）　"), ",.:;=+-%$¥() ", strict=True))
    | {0x00A0: " ", 0x202F: " ", 0x2007: " ", 0x2009: " ", 0x200B: "", 0x2060: ""}
    | dict(zip(map(ord, "½⅓⅔¼¾⅕⅛"), (" 1/2", " 1/3", " 2/3", " 1/4", " 3/4", " 1/5", " 1/8"), strict=True))
)
_REPLACED = (
    (r"<<[^<>\n]{0,200}>>|</?[A-Za-z]{1,10}>|&nbsp;", " "),  # GSM8K's calculator, HTML
    (r"\\\\", "\n"),
    (r"\{\s?([,.])\s?\}", r"\1"),
    (r"(?<=[,.])\s?\\!\s?|\\!", ""),
    (r"\\[,:;> ]|~|\\q?quad(?![A-Za-z])|\\(?:thin|en|med|thick)space(?![A-Za-z])|\\[hv]space\*?\{[^{}]{0,20}\}", " "),
    (r"\\[dtc]?frac\s?\{\s?([0-9]{1,40})\s?\}\s?\{\s?([0-9]{1,40})\s?\}", r" \1/\2"),
    (r"\\[dtc]?frac\s?([0-9])\s?([0-9])", r" \1/\2"),
    (r"\^\s?\{?\s?\\circ\s?\}?|\\degree(?![A-Za-z])", "°"),
    (r"\\(?:times|cdot|ast)(?![A-Za-z])", " × "),
    (r"\\div(?![A-Za-z])", " ÷ "),
    (r"\\(?:approx|simeq|sim|implies|Rightarrow|Longrightarrow|rightarrow|to|equiv)(?![A-Za-z])", " = "),
    (r"\\([$%&#_])", r"\1"),
    (r"\\[\[\]()]", " "),
    (r"\\[A-Za-z]{1,24}", " "),
    (r"[{}&]", ""),
    (r" {2,}", " "),
)
_SUPERSCRIPT = {ord(raised): str(digit) for digit, raised in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
_COMPILED = tuple((re.compile(pattern), new) for pattern, new in _REPLACED)


def plain(text: str) -> str:
    """Return a text in which LaTeX's spaces, fractions, units and delimiters are plain characters, and digits ASCII."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda one: "^" + one[0].translate(_SUPERSCRIPT), text.translate(_PLAIN))
    for pattern, new in _COMPILED:
        text = pattern.sub(new, text)
    return text


# -- one number --------------------------------------------------------------------------------------------------------

_LETTER = "A-Za-zÀ-ÖØ-öø-ɏЀ-ӿ"
_CURRENCY = (
    r"(?:[A-Z]{1,3})?[$€£¥฿₹₽₩]"
    r"|(?:USD|EUR|GBP|CHF|RMB|CNY|JPY|INR|THB|RUB|KES|TZS|Rs\.?|K[Ss]h\.?|TSh\.?|Sh\.?)(?=[ 0-9])"
)
_MINUS = "-−–﹣"
_SIGN_WORDS = r"(?:minus|negative|menos|moins|минус|hasi) |负|負|マイナス|ลบ ?"
_BEFORE_SCALE = {"elfu": 3, "laki": 5, "milioni": 6, "bilioni": 9}
_NUMBER = re.compile(
    rf"(?:(?P<sign>[{_MINUS}] ?|{_SIGN_WORDS}))?"
    rf"(?:(?P<scale>{'|'.join(_BEFORE_SCALE)}) )?"
    rf"(?:(?<![{_LETTER}])(?:{_CURRENCY}) ?(?P<inner>[{_MINUS}] ?)?|(?<![{_LETTER}0-9_^]))"
    rf"(?P<digits>[0-9]{{1,{MAX_DIGITS}}}(?![0-9])(?:[.,'’_ ][0-9]{{1,{MAX_DIGITS}}}(?![0-9])){{0,40}}"
    rf"|(?<![0-9.])\.[0-9]{{1,{MAX_DIGITS}}}(?![0-9]))",
    re.IGNORECASE,
)
_SCALES = tuple(
    (re.compile(pattern, re.IGNORECASE), places)
    for pattern, places in (
        (rf"k(?![{_LETTER}])", 3),
        (rf" ?(?:mil millones|billions?|milliarden?|milliards?|миллиард(?:а|ов)?|млрд\.?)(?![{_LETTER}])", 9),
        (rf" ?(?:trillions?)(?![{_LETTER}])", 12),
        (rf" ?(?:thousands?|tausend|mil|mille|тысяч[аиу]?|тыс\.?)(?![{_LETTER}])", 3),
        (rf" ?(?:million(?:s|en)?|millón|millones|миллион(?:а|ов)?|млн\.?|mln)(?![{_LETTER}])", 6),
        (r" ?(?:พัน)", 3), (r" ?(?:หมื่น)", 4), (r" ?(?:แสน)", 5), (r" ?(?:ล้าน)", 6),
    )
)  # fmt: skip
# 千克, 千米 and the like are units, 百分 is a percentage.
_MYRIADS = re.compile(r" ?(?:([十百])(?!分)|(千)(?![克米瓦卡焦赫字吨])|([万萬亿億])|(兆)(?![赫瓦字比]))")
_PLACES = {"十": 1, "百": 2, "千": 3, "万": 4, "萬": 4, "亿": 8, "億": 8, "兆": 12}
_POWER = re.compile(
    r" ?(?:[x×*·] ?10 ?(?:\^|\*\*) ?\(?([-−+]?[0-9]{1,3})\)?|e([-+]?[0-9]{1,3})(?![0-9A-Za-z]))", re.IGNORECASE
)


def _numbers(text: str, languages: set[str]) -> Iterator[Number]:
    """All numbers of a plain text."""
    place = 0
    while (match := _NUMBER.search(text, place)) is not None:
        number = _number(text, match, languages)
        yield number
        place = number.end


def _number(text: str, match: re.Match[str], languages: set[str]) -> Number:
    """The number of a match of _NUMBER, with what belongs to it behind it."""
    start = match.start("digits")
    digits, length = _ungrouped(match["digits"], languages)
    end = start + length
    if fraction := re.compile(r"/([0-9]{1,40})(?![0-9/]|[.,][0-9])").match(text, end):
        if digits.isdecimal() and int(fraction[1]):
            digits, end = f"{digits}/{int(fraction[1])}", fraction.end()
    elif mixed := re.compile(r" ?([0-9]{1,9})/([0-9]{1,9})(?![0-9/])").match(text, end) if digits.isdecimal() else None:
        if mixed[0][0] == " " and int(mixed[2]):
            top = int(digits) * int(mixed[2]) + int(mixed[1])
            digits, end = f"{top}/{int(mixed[2])}", mixed.end()
    else:
        digits, end = _scaled(text, digits, end)
        if match["scale"]:
            digits = _shifted(digits, _BEFORE_SCALE[match["scale"].lower()])
    return Number(("-" if _negative(text, match) else "") + digits, match.start(), end)


def _ungrouped(raw: str, languages: set[str]) -> tuple[str, int]:
    """The digits of one number, with a full stop before decimals, and how many characters of `raw` they are."""
    whole, *rest = re.split(r"([.,'’_ ])", raw)
    marks, parts = rest[0::2], rest[1::2]
    if not whole:  # .5
        return f"0.{parts[0]}", 1 + len(parts[0])
    used = _groups(whole, marks, parts, languages) if marks else 0
    digits = whole + "".join(parts[:used])
    if used < len(marks) and marks[used] in ".,":
        mark, again = marks[used], marks[used + 1 : used + 2] == [marks[used]]
        decimals = {".", *(_DECIMALS[one] for one in languages if one in _DECIMALS)}
        if (mark != marks[0]) if used else (mark in decimals and not again):
            digits, used = f"{digits}.{parts[used]}", used + 1
    return digits, len(whole) + sum(1 + len(part) for part in parts[:used])


def _groups(whole: str, marks: list[str], parts: list[str], languages: set[str]) -> int:
    """How many parts behind `whole` group its digits: of three each, or as in India of two and at last of three."""
    mark = marks[0]
    run = next((number for number, other in enumerate(marks) if other != mark), len(marks))
    sizes = [len(part) for part in parts[:run]]
    if len(whole) > 3 or whole[0] == "0":
        return 0
    if mark not in ".,":
        return next((number for number, size in enumerate(sizes) if size != 3), run)
    indian = mark == "," and run > 1 and sizes == [2] * (run - 1) + [3]
    if not indian and sizes != [3] * run:
        return 0
    lone = run == 1 and marks[1:2] not in ([","], ["."])
    return 0 if lone and mark not in {",", *(_GROUPS[one] for one in languages if one in _GROUPS)} else run


def _scaled(text: str, digits: str, end: int) -> tuple[str, int]:
    """A number with the power of ten behind it: 1.5 million, 7 x 10^4, 1万2千."""
    if power := _POWER.match(text, end):
        places = int((power[1] or power[2]).replace("−", "-"))
        return _shifted(digits, places), power.end()
    for pattern, places in _SCALES:
        if word := pattern.match(text, end):
            return _shifted(digits, places), word.end()
    total, last = Fraction(0), 99
    while word := _MYRIADS.match(text, end):
        places = _PLACES[word[0].strip()]
        if places >= last:
            break
        total, last, end = total + Fraction(digits) * 10**places, places, word.end()
        more = re.compile(r"[0-9]{1,4}(?![0-9.,])").match(text, end)
        digits = more[0] if more else ""
        end = more.end() if more else end
        if not more:
            break
    if not total:
        return digits, end
    return _decimal(total + Fraction(digits or "0")), end


def _shifted(digits: str, places: int) -> str:
    """A decimal text times a power of ten, exactly."""
    return _decimal(Fraction(digits) * Fraction(10) ** places)


def _decimal(value: Fraction) -> str:
    """A fraction whose denominator divides a power of ten, as decimal digits."""
    places = 0
    while value.denominator != 1:
        value, places = value * 10, places + 1
    digits = str(value.numerator).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}" if places else digits


def _negative(text: str, match: re.Match[str]) -> bool:
    """Whether the sign before a number is its own: not a difference, a range, a dash between words or a hyphen."""
    if match["inner"]:
        return True
    if not match["sign"]:
        return False
    before = text[max(0, match.start() - 3) : match.start()]
    operand = before.rstrip(" ")[-1:]
    if match["sign"][0] not in _MINUS:
        return not operand.isdigit()
    if operand.isdigit() or operand in tuple(")]%°"):
        return False
    if (operand.isalpha() and operand.isascii()) or re.fullmatch(rf"[{_LETTER}]", operand):
        # "gain - 5" is a dash, "gain -5" a negative number, "level-5" a hyphen.
        return before != before.rstrip(" ") and not match["sign"].endswith(" ")
    return True


# -- the number of a statement -----------------------------------------------------------------------------------------

_STEP = re.compile(
    r"(?P<line>\n)|(?P<equals>[=≈≃≅⇒→])|(?P<operator>[-−–+*/×÷·^x](?![^\W\d_]))|(?P<end>[.!?](?=\s|$)|[。！？।])"
    r"|(?P<pause>[,;:、；])|(?P<word>[^\W\d_]+(?:['’-][^\W\d_]+){0,4})|(?P<other>.)",
    re.IGNORECASE | re.DOTALL,
)
_LEADING = (
    "about approximately around roughly exactly just only actually therefore thus so simply indeed equal to now the a "
    "an total of circa ca etwa ungefähr also genau environ exactement donc aproximadamente unos exactamente около "
    "примерно takriban"
)
_ABOUT = frozenset(_LEADING.split())
_OPERATORS = frozenset(("times", "plus", "over", "mal", "fois", "por", "más", "на", "плюс", "jumlisha", "mara"))
_EQUALS = frozenset(("equals", "equal", "gleich", "égale", "равно"))
_COPULAS = frozenset(("is", "gives", "makes", "ist", "ergibt", "es", "son", "est", "fait", "font", "ni"))
MAX_WORDS = 4
"""The most words between a number and the equals sign behind it."""


def _stated_number(stated: Stated, languages: set[str]) -> str | None:
    """The number that a statement gives; None if it has none."""
    if stated.kind in ("box", "tag"):
        return _first(plain(stated.text), languages)
    clause = plain(stated.text[:MAX_CLAUSE])
    if stated.kind == "sign" and (prose := _prose(clause)):
        # A sentence, or the whole solution when it begins on a line of its own.
        whole = prose if clause[: len(clause) - len(clause.lstrip())].count("\n") == 0 else plain(stated.text)
        found = list(_numbers(_without_offer(whole), languages))
        return found[-1].text if found else None
    return _first(clause, languages)


def _prose(clause: str) -> str:
    """The first line of a clause if words come before its first number, else nothing."""
    line = clause.lstrip().split("\n", 1)[0]
    before = line[: match.start()] if (match := _NUMBER.search(line)) else ""
    words = [word for word in re.findall(r"[^\W\d_]{2,}", before) if word.lower() not in _ABOUT]
    return line if words else ""


def _first(clause: str, languages: set[str]) -> str | None:
    """The first number of a clause, or what it is equal to: 15 for "5 x 3 = 15 apples"; None if a clause has none."""
    found: str | None = None
    words, awaiting, place, operated, computed = 0, "", 0, False, False
    while place < len(clause):
        match = None if found and _operator_next(clause, place) else _NUMBER.match(clause, place)
        if match:
            number = _number(clause, match, languages)
            if found is None or awaiting == "equals":
                found, computed = number.text, awaiting == "equals"
            elif not awaiting and not match["sign"]:
                break  # another number, which no operator joins
            else:
                operated = True
            awaiting, words, place = "", 0, number.end
            continue
        step = _STEP.match(clause, place)
        assert step is not None
        kind, place = step.lastgroup, step.end()
        if kind in ("equals", "operator"):
            awaiting = kind if found else ""
        elif kind == "word":
            words += 1
            awaiting = _meant(step.group().lower(), operated) or awaiting if found else ""
            if found and words > MAX_WORDS:
                break
        elif kind == "line":
            following = clause[place:].lstrip()[:1]
            if (found and following not in ("=", "≈")) or (words and not found):
                break
        elif kind == "pause" and computed and _NUMBER.match(clause[place:].lstrip(" ")):
            # The next computation: 16 - 7 = 9; 9 * 2 = 18.
            following = clause[place:].lstrip(" ").split("\n", 1)[0]
            return (_first(following, languages) if "=" in following else None) or found
        elif kind == "pause" and operated and not computed:
            continue  # 6 * 7, which equals 42
        elif (kind == "pause" and found) or (kind == "end" and (found or (words and not _abbreviated(clause, step)))):
            break
    return found


def _meant(word: str, operated: bool) -> str:
    """The sign that a word between numbers stands for: 6 times 7 equals 42."""
    if word in _OPERATORS:
        return "operator"
    return "equals" if word in _EQUALS or (operated and word in _COPULAS) else ""


def _operator_next(clause: str, place: int) -> bool:
    """Whether a minus here is between two operands."""
    return clause[place] in _MINUS and clause[:place].rstrip(" ")[-1:] not in (
        "",
        "=",
        "≈",
        "(",
        "×",
        "*",
        "/",
        "÷",
        "+",
    )


def _abbreviated(clause: str, step: re.Match[str]) -> bool:
    """Whether a full stop is behind a short word and before a number: approx. 5."""
    before = re.search(r"([^\W\d_]{1,7})$", clause[: step.start()])
    return before is not None and re.match(rf"\s?(?:{_CURRENCY})?\s?[0-9]", clause[step.end() :]) is not None


# -- what follows an answer --------------------------------------------------------------------------------------------

_OFFER = re.compile(
    r"\W{0,4}(?:let me know|(?:i )?hope (?:this|that|it)|if you|feel free|do you|would you|can i|is there any|please"
    r"|thank|would like|don't hesitate|lass mich|lassen sie|sag mir|ich hoffe|wenn (?:du|sie)|falls|möchtest|möchten"
    r"|gib bescheid|si (?:quieres|necesitas|tienes|deseas)|espero|avísame|déjame|dime|no dudes|¿"
    r"|si (?:vous|tu)|n['’]hésite|j['’]espère|dites|dis-moi|faites-moi|voulez|souhaitez"
    r"|если (?:вы|вам|у вас|хотите|нужно)|дайте знать|надеюсь|сообщите|хотите|"
    r"ikiwa (?:una|unahitaji)|natumaini|niambie|tafadhali|kama (?:una|unahitaji)"
    r"|如果(?:你|您|需要|还)|希望|请|需要|您|要不要|还有|もし|他に|お知らせ|何か|ご質問|หาก|ถ้าคุณ|หวัง|แจ้ง|ต้องการ)",
    re.IGNORECASE,
)


def _without_offer(text: str) -> str:
    """Return a text without the last sentences that only offer help or wish something."""
    sentences = re.findall(r"[^\n]*?(?:[.!?](?=\s)|[。！？]|\n|$)\s*", text)
    while sentences and (not sentences[-1].strip() or _OFFER.match(sentences[-1])):
        sentences.pop()
    return "".join(sentences)
