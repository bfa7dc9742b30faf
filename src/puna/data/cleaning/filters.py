"""Quality filters: each document is kept, or dropped for one named reason that the manifest counts.

The rules are those of Gopher, C4, FineWeb and Codex, with the thresholds of the papers. They are implemented here and
not taken from datatrove, whose filters split words with spaCy or NLTK (large downloads, one model per language) and
which is an extra, not a dependency; words here are split at spaces, as in Gopher. The tests compare both. Rules that
count words are not applied to scripts without spaces. Documents are kept or dropped as a whole, never edited.
"""

import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from puna.data.cleaning.language import STOP_WORDS, UNSPACED, guess_language
from puna.data.cleaning.shingles import shingle_hashes
from puna.data.document import Document
from puna.data.recipe import FilterConfig

# Gopher, arXiv 2112.11446, section A.1.1 (quality) and table A1 (repetition).
_GOPHER_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_WORDS, _WORD_LENGTH = (50, 100_000), (3, 10)
_SYMBOLS_PER_WORD, _BULLET_LINES, _ELLIPSIS_LINES, _ALPHABETIC_WORDS, _STOP_WORDS = 0.1, 0.9, 0.3, 0.8, 2
_DUPLICATE_LINES, _DUPLICATE_LINE_CHARACTERS = 0.3, 0.2
_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
# C4, arXiv 1910.10683, section 2.2: a page has at least five sentences, and lines that count have three words.
_SENTENCES, _WORDS_PER_LINE = 5, 3
# FineWeb, arXiv 2406.17557, section 3.6.
_PUNCTUATED_LINES, _REPEATED_LINE_CHARACTERS, _SHORT_LINES, _SHORT_LINE = 0.12, 0.1, 0.67, 30
# Codex, arXiv 2107.03374, section 3.1; the share of alphanumeric characters is SantaCoder's, arXiv 2301.03988.
_LINE_LENGTH, _MEAN_LINE_LENGTH, _ALPHANUMERIC = 1000, 100, 0.25
_GENERATED = re.compile(
    r"@generated|auto-?\s?generated|automatically generated|(?:file|module|code|script) (?:is|was|has been) generated"
    r"|^\W*generated (?:by|from|with)\b|do not (?:edit|modify)",
    re.I | re.M,
)
_GENERATED_LINES = 10  # generated files say so at the top

_TERMINAL = tuple(".!?…。！？؟।॥")
_CLOSING = "\"'”’»)]"


def make_filter(config: FilterConfig) -> Callable[[Document], str]:
    """The filter of a recipe: a function from a document to the reason to drop it, or "" to keep it."""
    ignored = frozenset(config.ignore)
    languages = frozenset(config.languages)

    def reason_to_drop(document: Document) -> str:
        text = document.text
        size = len(text.strip().encode("utf-8", "surrogatepass"))
        if size < config.min_bytes and "short" not in ignored:
            return "short"
        if 0 < config.max_bytes < size and "long" not in ignored:
            return "long"
        if document.is_code:
            return code_reason(text, ignored) if config.code else ""
        language = guess_language(text) if languages or config.gopher or config.gopher_repetition else ""
        if languages and language not in languages and "language" not in ignored:
            return "language"
        return (
            (gopher_reason(text, language, ignored) if config.gopher else "")
            or (repetition_reason(text, language, ignored) if config.gopher_repetition else "")
            or (c4_reason(text, ignored) if config.c4 else "")
            or (fineweb_reason(text, ignored) if config.fineweb else "")
        )

    return reason_to_drop


def gopher_reason(text: str, language: str = "en", ignored: frozenset[str] = frozenset()) -> str:
    """Gopher's quality rules for prose. `language` selects the stop words; "" disables that rule."""
    words = text.split()
    named = [len(word) for word in words if any(map(str.isalnum, word))]  # a dash between spaces is not a word
    lines = text.splitlines() or [""]
    spaced = language not in UNSPACED
    count = len(named) if spaced else sum(map(str.isalpha, text))
    size = max(1, len(words) if spaced else count)
    checks = [
        ("gopher.words", not _WORDS[0] <= count <= _WORDS[1]),
        ("gopher.hashes", text.count("#") / size > _SYMBOLS_PER_WORD),
        ("gopher.ellipses", (text.count("...") + text.count("…")) / size > _SYMBOLS_PER_WORD),
        ("gopher.bullets", sum(s.lstrip()[:1] in ("•", "-") for s in lines if s.strip()) / len(lines) > _BULLET_LINES),
        (
            "gopher.ellipsis_lines",
            sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > _ELLIPSIS_LINES,
        ),
    ]
    if spaced and words:
        mean = sum(named) / max(1, len(named))
        alphabetic = sum(any(map(str.isalpha, word)) for word in words) / len(words)
        checks.append(("gopher.word_length", not _WORD_LENGTH[0] <= mean <= _WORD_LENGTH[1]))
        checks.append(("gopher.alphabetic", alphabetic < _ALPHABETIC_WORDS))
        stop = _GOPHER_STOP_WORDS if language == "en" else STOP_WORDS.get(language)
        if stop:
            found = stop.intersection(re.findall(r"[^\W\d_]+", text.lower()))
            checks.append(("gopher.stop_words", len(found) < _STOP_WORDS))
    return _first(checks, ignored)


def repetition_reason(text: str, language: str = "en", ignored: frozenset[str] = frozenset()) -> str:
    """Gopher's repetition rules: repeated lines, paragraphs and runs of words, by count and by characters."""
    size = max(1, len(text))
    paragraphs = re.split(r"\n{2,}", text.strip())
    lines = re.split(r"\n+", text)
    paragraph_count, paragraph_characters = _repeats(paragraphs)
    line_count, line_characters = _repeats(lines)
    reason = _first(
        [
            ("repetition.paragraphs", paragraph_count / len(paragraphs) > _DUPLICATE_LINES),
            ("repetition.paragraph_characters", paragraph_characters / size > _DUPLICATE_LINE_CHARACTERS),
            ("repetition.lines", line_count / len(lines) > _DUPLICATE_LINES),
            ("repetition.line_characters", line_characters / size > _DUPLICATE_LINE_CHARACTERS),
        ],
        ignored,
    )
    if reason or language in UNSPACED:
        return reason
    words = text.split()
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.uint64)
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    checks = [(f"repetition.top_{n}_gram", _top_ngram(ids, lengths, n) / size > most) for n, most in _TOP_NGRAM.items()]
    checks += [
        (f"repetition.{n}_grams", _repeated_ngrams(ids, lengths, n) / size > most)
        for n, most in _DUPLICATE_NGRAMS.items()
    ]
    return _first(checks, ignored)


def c4_reason(text: str, ignored: frozenset[str] = frozenset()) -> str:
    """C4's rules that drop a page. Its rules that remove single lines are not applied."""
    sentences = 0
    for line in text.splitlines():
        line = line.rstrip().rstrip(_CLOSING)
        if line.endswith(_TERMINAL) and len(line.split()) >= _WORDS_PER_LINE:
            sentences += max(1, len(re.findall(r"[.!?…][\"'”’»)\]]*(?:\s|$)|[。！？؟।॥]", line)))
    return _first(
        [
            ("c4.lorem_ipsum", "lorem ipsum" in text.lower()),
            ("c4.curly_bracket", "{" in text),
            ("c4.sentences", sentences < _SENTENCES),
        ],
        ignored,
    )


def fineweb_reason(text: str, ignored: frozenset[str] = frozenset()) -> str:
    """FineWeb's three rules about lines."""
    lines = [line for line in text.split("\n") if line.strip()] or [""]
    punctuated = sum(line.rstrip().rstrip(_CLOSING).endswith(_TERMINAL) for line in lines)
    characters = max(1, len(text) - text.count("\n"))
    return _first(
        [
            ("fineweb.punctuation", punctuated / len(lines) <= _PUNCTUATED_LINES),
            ("fineweb.repeated_lines", _repeats(lines)[1] / characters >= _REPEATED_LINE_CHARACTERS),
            ("fineweb.short_lines", sum(len(line) < _SHORT_LINE for line in lines) / len(lines) >= _SHORT_LINES),
        ],
        ignored,
    )


def code_reason(text: str, ignored: frozenset[str] = frozenset()) -> str:
    """Codex's rules for source files: generated, very long lines, few letters or digits."""
    lines = text.splitlines() or [""]
    alphanumeric = sum(map(str.isalnum, text)) / max(1, len(text))
    return _first(
        [
            ("code.generated", bool(_GENERATED.search("\n".join(lines[:_GENERATED_LINES])))),
            ("code.line_length", max(map(len, lines)) > _LINE_LENGTH),
            ("code.mean_line_length", sum(map(len, lines)) / len(lines) > _MEAN_LINE_LENGTH),
            ("code.alphanumeric", alphanumeric < _ALPHANUMERIC),
        ],
        ignored,
    )


def _first(checks: list[tuple[str, bool]], ignored: frozenset[str]) -> str:
    return next((reason for reason, failed in checks if failed and reason not in ignored), "")


def _repeats(parts: list[str]) -> tuple[int, int]:
    """Number of repeated parts, and their characters."""
    again = [(number - 1, len(part)) for part, number in Counter(parts).items() if number > 1]
    return sum(number for number, _ in again), sum(number * length for number, length in again)


def _top_ngram(ids: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters in all occurrences of the most common run of n words, including the spaces between them."""
    hashes = shingle_hashes(ids, n)
    if not len(hashes):
        return 0
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    top = counts.max()
    # Of several equally common runs, the first in the text counts.
    start = first[counts == top].min()
    return int(top) * int(lengths[start : start + n].sum() + n - 1)


def _repeated_ngrams(ids: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters of words within a repeated run of n words; overlaps count once."""
    hashes = shingle_hashes(ids, n)
    if not len(hashes):
        return 0
    again = np.ones(len(hashes), dtype=bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    edge = np.zeros(len(ids) + 1, dtype=np.int64)
    starts = np.flatnonzero(again)
    np.add.at(edge, starts, 1)
    np.add.at(edge, starts + n, -1)
    return int(lengths[np.cumsum(edge[:-1]) > 0].sum())
