"""Text helpers: what a database can store, a title, and the passage a search found."""

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
    at = max(text.lower().find(query.lower()), 0)
    start, end = max(at - around, 0), min(at + len(query) + around, len(text))
    words = " ".join(text[start:end].split())
    return ("…" if start else "") + words + ("…" if end < len(text) else "")
