"""File names: which suffixes hold code, prose or records, and which names match a recipe's patterns."""

import re
from collections.abc import Sequence
from pathlib import Path

_CODE = (
    ".c .cc .cpp .cs .css .cu .cxx .dart .erl .ex .exs .f90 .go .h .hpp .hs .java .jl .js .jsx .kt .lua .m .ml .mm "
    ".php .pl .ps1 .py .pyi .r .rb .rs .scala .sh .sql .swift .ts .tsx .v .vue .zig"
)
_PROSE = ".txt .text .md .markdown .mdx .rst .tex .org .adoc"
CODE, PROSE = frozenset(_CODE.split()), frozenset(_PROSE.split())
RECORDS = frozenset((".jsonl", ".ndjson", ".parquet"))
PACKED = frozenset((".zst", ".gz", ".xz", ".bz2"))


def suffix(name: str) -> tuple[str, str]:
    """(suffix, suffix of the compression or ""): "a.jsonl.zst" -> (".jsonl", ".zst")."""
    path = Path(name.lower())
    if path.suffix in PACKED:
        return Path(path.stem).suffix, path.suffix
    return path.suffix, ""


def matches(name: str, patterns: Sequence[str], *, folders: bool = False) -> bool:
    """Whether a relative path matches one of the patterns: *, ? and ** as usual.

    A pattern without a slash is compared with the file's name, or with `folders` with each part of the path.
    """
    parts = name.split("/")
    for pattern in patterns:
        compiled = _pattern(pattern.rstrip("/"))
        if "/" in pattern.rstrip("/"):
            candidates = ["/".join(parts[: i + 1]) for i in range(len(parts))] if folders else [name]
        else:
            candidates = parts if folders else parts[-1:]
        if any(compiled.fullmatch(candidate) for candidate in candidates):
            return True
    return False


def _pattern(pattern: str) -> re.Pattern[str]:
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        else:
            out, i = out + {"*": "[^/]*", "?": "[^/]"}.get(pattern[i], re.escape(pattern[i])), i + 1
    return re.compile(out, re.S)
