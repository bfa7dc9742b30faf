"""IFEval: 25 kinds of instructions that a program can check (Zhou et al. 2023, arXiv 2311.07911).

The checks are written from the paper's description of each kind. An answer follows its prompt strictly if it follows
every instruction as it is; loosely if one of eight lenient readings does (without the first line, the last line,
asterisks). The value is the share of prompts followed strictly; the paper's other three figures are reported too.

Where the paper relies on a library, this module uses rules of its own: sentences end at . ! ? and their full-width
forms, except after common abbreviations and single letters; words are runs of letters, digits, and inner apostrophes
and hyphens; a language is recognized by its script and, for shared scripts, by frequent words or letters of its own.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from puna.core.errors import DataError
from puna.data.cleaning.language import LANGUAGES, guess_language
from puna.evals.contract import Benchmark, Item, Score, Text
from puna.evals.datasets import EvalData, OnHub, Row

Arguments = dict[str, Any]
Check = Callable[[str, Arguments], bool]

_SHORT = "mr mrs ms dr prof st sr jr vs etc e.g i.e eg ie inc ltd co corp no vol fig dept approx est a.m p.m u.s u.k"
_ABBREVIATIONS = frozenset(_SHORT.split())
_SENTENCE_END = re.compile(r"[.!?。！？｡।॥؟…]{1,20}[\"'”’)\]]{0,5}(?=\s|$)")


def words(text: str) -> list[str]:
    """Words: runs of word characters, with apostrophes and hyphens inside."""
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def sentences(text: str) -> list[str]:
    """Sentences, by their end; the rest after the last end is one too if it has a word."""
    found, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        before = text[start : match.start()].split()
        last = before[-1].lower().lstrip("(\"'“‘[") if before else ""
        if match.group() == "." and (last in _ABBREVIATIONS or re.fullmatch(r"[a-z]|\d{1,3}", last)):
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    rest = text[start:].strip()
    return [one for one in [*found, rest] if words(one)]


def paragraphs(text: str, separator: str) -> list[str]:
    return [part.strip() for part in re.split(separator, text)]


def _compared(count: int, relation: str | None, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


def _keyword_count(text: str, keyword: str) -> int:
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _paragraph_count(text: str, a: Arguments) -> bool:
    """Paragraphs are separated by the Markdown divider ***."""
    parts = paragraphs(text, r"\s?\*\*\*\s?")
    parts = parts[1:] if parts and not parts[0] else parts
    parts = parts[:-1] if parts and not parts[-1] else parts
    return all(parts) and len(parts) == a["num_paragraphs"]


def _first_word(text: str, a: Arguments) -> bool:
    """There are that many paragraphs, separated by empty lines, and the n-th begins with this word."""
    parts = [part for part in paragraphs(text, r"\n\n") if part]
    at = a["nth_paragraph"]
    if len(parts) != a["num_paragraphs"] or at > len(parts):
        return False
    first = parts[at - 1].split()[0].lstrip("'\"“‘")
    return re.split(r"[.,?!'\"”’:;]", first)[0].lower() == str(a["first_word"]).lower()


def _postscript(text: str, a: Arguments) -> bool:
    letters = str(a["postscript_marker"]).replace(".", "").lower()
    return re.search(r"\b" + r"\.\s?".join(letters) + r"(?!\w)", text.lower()) is not None


def _sections(text: str, a: Arguments) -> bool:
    return len(re.findall(rf"\s?{re.escape(a['section_spliter'])}\s?\d+\s?", text)) >= a["num_sections"]


def _highlights(text: str, a: Arguments) -> bool:
    found = [one for one in re.findall(r"\*([^\n*]*)\*", text) if one.strip()]
    found += [one for one in re.findall(r"\*\*([^\n*]*)\*\*", text) if one.strip()]
    return len(found) >= a["num_highlights"]


def _json(text: str, a: Arguments) -> bool:
    body = re.sub(r"^```(?:json|JSON|Json)?|```$", "", text.strip()).strip()
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str, a: Arguments) -> bool:
    """Two different answers, separated by six asterisks; empty ones at the ends do not count."""
    parts = [part.strip() for part in text.split("******")]
    if any(not part for part in parts[1:-1]):
        return False
    parts = [part for part in parts if part]
    return len(parts) == 2 and parts[0] != parts[1]


_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

# Scripts that identify a language, or a few languages.
_SCRIPTS = {
    "kn": "\u0c80-\u0cff", "pa": "\u0a00-\u0a7f", "gu": "\u0a80-\u0aff", "te": "\u0c00-\u0c7f", "ta": "\u0b80-\u0bff",
    "ml": "\u0d00-\u0d7f", "bn": "\u0980-\u09ff", "th": "\u0e00-\u0e7f", "he": "\u0590-\u05ff", "el": "\u0370-\u03ff",
    "hi": "\u0900-\u097f", "mr": "\u0900-\u097f", "ne": "\u0900-\u097f", "ar": "\u0600-\u06ff", "fa": "\u0600-\u06ff",
    "ur": "\u0600-\u06ff", "ko": "\uac00-\ud7af\u1100-\u11ff",
}  # fmt: skip
_OWN_LETTERS = {"ur": "ٹڈڑںےہھ", "fa": "پچژگ", "mr": "ळ", "ar": "ةىإأ"}


def _language(text: str, a: Arguments) -> bool:
    wanted = str(a["language"]).split("-")[0].lower()
    if wanted in _SCRIPTS:
        letters = [c for c in text if c.isalpha()]
        inside = sum(1 for c in letters if re.match(f"[{_SCRIPTS[wanted]}]", c))
        if not letters or inside <= 0.5 * len(letters):
            return False
        # Among languages of one script, letters that only one of them uses decide, if the text has any.
        family = [one for one, script in _SCRIPTS.items() if script == _SCRIPTS[wanted] and one in _OWN_LETTERS]
        hits = {one: sum(text.count(c) for c in _OWN_LETTERS[one]) for one in family}
        if wanted == "ar":
            return not any(hits.get(one) for one in ("fa", "ur"))
        if wanted == "fa":
            return hits["ur"] <= hits["fa"]
        return wanted != "ur" or hits["ur"] > 0
    # A language that is not known here passes with any text that has letters.
    return guess_language(text) == wanted if wanted in LANGUAGES else any(map(str.isalpha, text))


def _all_capital(text: str, a: Arguments) -> bool:
    return text.isupper() and guess_language(text.lower()) in ("en", "")


def _all_lower(text: str, a: Arguments) -> bool:
    return text.islower() and guess_language(text) in ("en", "")


def _capital_words(text: str, a: Arguments) -> bool:
    return _compared(sum(word.isupper() for word in words(text)), a["capital_relation"], a["capital_frequency"])


def _forbidden(text: str, a: Arguments) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in a["forbidden_words"])


def _end(text: str, a: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(str(a["end_phrase"]).strip().lower())


CHECKS: dict[str, Check] = {
    "keywords:existence": lambda text, a: all(_keyword_count(text, word) for word in a["keywords"]),
    "keywords:frequency": lambda text, a: _compared(_keyword_count(text, a["keyword"]), a["relation"], a["frequency"]),
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": lambda text, a: _compared(
        text.lower().count(str(a["letter"]).lower()), a["let_relation"], a["let_frequency"]
    ),
    "language:response_language": _language,
    "length_constraints:number_sentences": lambda text, a: _compared(
        len(sentences(text)), a["relation"], a["num_sentences"]
    ),
    "length_constraints:number_paragraphs": _paragraph_count,
    "length_constraints:number_words": lambda text, a: _compared(len(words(text)), a["relation"], a["num_words"]),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, a: (
        len(re.findall(r"\[[^\[\]]*\]", text)) >= a["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": lambda text, a: (
        len(re.findall(r"^\s*(?:\*[^*\n]|-)[^\n]*$", text, re.MULTILINE)) == a["num_bullets"]
    ),
    "detectable_format:constrained_response": lambda text, a: any(one in text for one in _CONSTRAINED),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda text, a: any(one.strip(" <>") for one in re.findall(r"<<[^\n]+?>>", text)),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, a: text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    "startend:end_checker": _end,
    "startend:quotation": lambda text, a: len(t := text.strip()) > 1 and t.startswith('"') and t.endswith('"'),
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _all_capital,
    "change_case:english_lowercase": _all_lower,
    "punctuation:no_comma": lambda text, a: "," not in text,
}


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_text, value))


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _relation(value: object) -> bool:
    return value in ("at least", "less than")


_FORMS: dict[Callable[[object], bool], str] = {
    _text: "a text",
    _texts: "a list of texts",
    _count: "a count",
    _relation: "'at least' or 'less than'",
}
ARGUMENTS: dict[str, dict[str, Callable[[object], bool]]] = {
    **{kind: {} for kind in CHECKS},
    "keywords:existence": {"keywords": _texts},
    "keywords:frequency": {"keyword": _text, "frequency": _count, "relation": _relation},
    "keywords:forbidden_words": {"forbidden_words": _texts},
    "keywords:letter_frequency": {"letter": _text, "let_frequency": _count, "let_relation": _relation},
    "language:response_language": {"language": _text},
    "length_constraints:number_sentences": {"num_sentences": _count, "relation": _relation},
    "length_constraints:number_paragraphs": {"num_paragraphs": _count},
    "length_constraints:number_words": {"num_words": _count, "relation": _relation},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": _count,
        "nth_paragraph": _count,
        "first_word": _text,
    },
    "detectable_content:number_placeholders": {"num_placeholders": _count},
    "detectable_content:postscript": {"postscript_marker": _text},
    "detectable_format:number_bullet_lists": {"num_bullets": _count},
    "detectable_format:number_highlighted_sections": {"num_highlights": _count},
    "detectable_format:multiple_sections": {"section_spliter": _text, "num_sections": _count},
    "combination:repeat_prompt": {"prompt_to_repeat": _text},
    "startend:end_checker": {"end_phrase": _text},
    "change_case:capital_word_frequency": {"capital_frequency": _count, "capital_relation": _relation},
}
"""What each kind of instruction needs to be checked."""


def wrong_arguments(kind: str, arguments: Arguments) -> str:
    """Say what is wrong with an instruction in the data; "" if it can be checked.

    The original code draws values at random for arguments that are missing, and then judges by those; here an
    instruction that is not known in full is a fault of the file.
    """
    if kind not in CHECKS:
        return f"there is no instruction '{kind}'"
    wanted = ARGUMENTS[kind]
    for name, fits in wanted.items():
        if name not in arguments:
            return f"{kind} lacks '{name}'"
        if not fits(arguments[name]):
            return f"'{name}' of {kind} is not {_FORMS[fits]}"
    other = next((name for name in arguments if name not in wanted), None)
    return "" if other is None else f"{kind} takes no '{other}'"


def follows(kind: str, text: str, arguments: Arguments) -> bool:
    """Whether an answer follows one instruction. An empty answer follows none."""
    return bool(text.strip()) and CHECKS[kind](text, arguments)


def lenient(text: str) -> Iterator[str]:
    """The readings of an answer in the loose measure: with or without first line, last line and asterisks."""
    lines = text.split("\n")
    for first, last, stars in product((0, 1), (0, 1), (False, True)):
        part = "\n".join(lines[first : len(lines) - last]).strip()
        yield part.replace("*", "") if stars else part


def instructions_followed(item: Item, response: str) -> Score:
    """Score 1 if every instruction is followed strictly. parts: the loose measure, and counts of instructions."""
    kinds: Sequence[tuple[str, Arguments]] = [tuple(pair) for pair in item.target]
    wrong = next((wrong for kind, arguments in kinds if (wrong := wrong_arguments(kind, arguments))), "")
    if wrong:
        return Score(0.0, "", f"cannot be checked: {wrong}")
    strict = [follows(kind, response, arguments) for kind, arguments in kinds]
    readings = list(lenient(response))
    loose = [any(follows(kind, text, arguments) for text in readings) for kind, arguments in kinds]
    broken = [kind for (kind, _), fine in zip(kinds, strict, strict=True) if not fine]
    parts = {
        "loose_prompt": float(all(loose)),
        "instructions": float(len(kinds)),
        "strict": float(sum(strict)),
        "loose": float(sum(loose)),
    }
    return Score(float(all(strict)), "", ", ".join(broken), parts)


def _load(data: EvalData) -> list[Item]:
    rows = data.rows("ifeval/ifeval_input_data.jsonl", "key", "prompt", "instruction_id_list", "kwargs",
                     hub=OnHub("google/IFEval", "default", "train"))  # fmt: skip
    return [_item(row) for row in rows]


def _item(row: Row) -> Item:
    """Raises DataError for an instruction that cannot be checked."""
    kinds, given = row["instruction_id_list"], row["kwargs"]
    if not isinstance(kinds, list) or not isinstance(given, list) or not kinds or len(kinds) != len(given):
        raise DataError(f"IFEval, key {row['key']}: it needs one kwargs for each instruction.", "Fetch its file again.")
    target = []
    for kind, values in zip(kinds, given, strict=True):
        # Tables fill what a row does not have with null, and turn whole numbers into floats.
        arguments = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in (values or {}).items()
            if value is not None
        }
        if wrong := wrong_arguments(kind, arguments):
            raise DataError(f"IFEval, key {row['key']}: {wrong}.", "Fetch its file again, or fix that row.")
        target.append([kind, arguments])
    prompt = row["prompt"]
    ask = Text(f"{prompt.strip()}\n\n", (), max_tokens=1024, messages=({"role": "user", "content": prompt},))
    return Item(str(row["key"]), ask, target, kinds[0].split(":")[0], prompt)


def loose_and_instruction_level(rows: Sequence[Any]) -> dict[str, float]:
    """Return the paper's other figures: prompts followed loosely; instructions, strictly and loosely."""
    parts = [row["parts"] for row in rows if row["parts"]]
    total = sum(one["instructions"] for one in parts) or 1.0
    return {
        "loose_prompt": sum(one["loose_prompt"] for one in parts) / max(1, len(rows)),
        "strict_instructions": sum(one["strict"] for one in parts) / total,
        "loose_instructions": sum(one["loose"] for one in parts) / total,
    }


BENCHMARKS = (
    Benchmark("ifeval", "IFEval", ("instruction",), _load, instructions_followed,
              "zero-shot, the prompt as it is", "every instruction is followed, strictly",
              "Zhou et al. 2023 (arXiv 2311.07911), Apache-2.0",
              constants=("Hello.", "My answer is maybe.", '"my answer is no."'),
              corpus_metric=loose_and_instruction_level),
)  # fmt: skip
