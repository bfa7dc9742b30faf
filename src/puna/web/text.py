"""Text helpers: what a database can store, a title, and the passage a search found."""

from bisect import bisect_left
from unicodedata import normalize

TITLE_LENGTH = 64


def clean(text: str) -> str:
    """Replace what a database cannot store: NUL (Postgres) and lone surrogates (UTF-8)."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def title_of(text: str) -> str:
    """A title: the first line with content, cut at a word."""
    first = next((line.strip(" #>*-`\t") for line in text.splitlines() if line.strip(" #>*-`\t")), "")
    first = " ".join(first.split())
    if len(first) <= TITLE_LENGTH:
        return first
    cut = first[:TITLE_LENGTH]
    return (cut.rpartition(" ")[0] if " " in cut[TITLE_LENGTH // 2 :] else cut) + "…"


def snippet(text: str, query: str, around: int = 40) -> str:
    """The text around the first occurrence of `query`, in one line."""
    begin, end = _place(text, query)
    start, end = max(begin - around, 0), min(end + around, len(text))
    words = " ".join(text[start:end].split())
    return ("…" if start else "") + words + ("…" if end < len(text) else "")


def fold(text: str) -> str:
    """The text as a search compares it: without case, and without forms of one letter (Unicode's NFKC and casefold).

    The dot that İ keeps in lower case is left out, since nobody types it.
    """
    if text.isascii():
        return text.lower()
    return normalize("NFKC", normalize("NFKC", text).casefold()).replace("i\u0307", "i")


def _place(text: str, query: str) -> tuple[int, int]:
    """Where the folded query first occurs, in characters of the text itself; its start when it does not."""
    wanted = fold(query)
    if wanted not in fold(text):
        return 0, 0
    # A longer start of the text contains it as soon as a shorter one does, and so does an earlier end.
    end = bisect_left(range(len(text) + 1), True, key=lambda length: wanted in fold(text[:length]))
    behind = bisect_left(range(end + 1), True, key=lambda cut: wanted not in fold(text[cut:end]))
    return max(behind - 1, 0), end
