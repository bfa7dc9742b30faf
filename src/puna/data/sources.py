"""Where documents come from: files and folders, the running Python's standard library, datasets of the Hub.

A source is first listed (`list_inputs`: sorted, so that a build is the same everywhere), then read input by input
(`read_documents`), so that many machines can share the inputs of one source. What a file holds is `readers`' matter.
"""

import glob as globbing
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from puna.core.errors import DataError
from puna.data.recipe import SourceConfig

_CODE = (
    ".c .cc .cpp .cs .css .cu .cxx .dart .erl .ex .exs .f90 .go .h .hpp .hs .java .jl .js .jsx .kt .lua .m .ml .mm "
    ".php .pl .ps1 .py .pyi .r .rb .rs .scala .sh .sql .swift .ts .tsx .v .vue .zig"
)
_PROSE = ".txt .text .md .markdown .mdx .rst .tex .org .adoc"
CODE, PROSE = frozenset(_CODE.split()), frozenset(_PROSE.split())
RECORDS = frozenset((".jsonl", ".ndjson", ".parquet"))
PACKED = frozenset((".zst", ".gz", ".xz", ".bz2"))
# What a standard library holds besides the library: tests with deliberate nonsense, installed packages, caches.
_NO_LIBRARY = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True, slots=True)
class Document:
    """One text with its name, the source it is from and its licence."""

    text: str
    name: str
    source: str
    licence: str
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Input:
    """One file of a source: its name inside the source, its size in bytes (0: unknown), and where it lies.

    revision: for a file of the Hub the dataset's commit; `place` is then the file's path inside the dataset.
    """

    name: str
    size: int
    place: str
    revision: str = ""


@dataclass
class Drops:
    """How many documents, and how many bytes of them, were dropped: by source, then by reason."""

    counts: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def add(self, source: str, reason: str, size: int = 0, documents: int = 1) -> None:
        """Count `documents` documents of together `size` bytes."""
        entry = self.counts.setdefault(source, {}).setdefault(reason, [0, 0])
        entry[0] += documents
        entry[1] += size

    def merge(self, counts: dict[str, dict[str, list[int]]]) -> None:
        """Add what another machine counted."""
        for source, reasons in counts.items():
            for reason, (documents, size) in reasons.items():
                self.add(source, reason, size, documents)

    def of(self, source: str) -> str:
        """For a sentence: "near_duplicate 3, binary 1", or "" when nothing was dropped."""
        reasons = sorted(self.counts.get(source, {}).items(), key=lambda item: -item[1][0])
        return ", ".join(f"{reason} {documents}" for reason, (documents, _) in reasons)


def list_inputs(source: SourceConfig, root: str = "") -> list[Input]:
    """The files of a source, sorted by name. Raises PunaError when there are none."""
    if source.kind == "hub":
        from puna.data.hub import list_dataset

        return list_dataset(source)
    if source.kind == "python-stdlib":
        folder = Path(sysconfig.get_paths()["stdlib"])
        # A link of the system's package manager may point out of the library; names must not depend on it.
        found = _walk(folder, source.glob or ["*.py"], [*_NO_LIBRARY, *source.exclude])
        place = f"the standard library at {folder}"
    else:
        path = Path(root).expanduser() / Path(source.path).expanduser()
        place = str(path)
        found = _files(path, source)
    inputs = [
        Input(os.fsencode(name).decode("utf-8", "replace"), file.stat().st_size, str(file)) for name, file in found
    ]
    if not inputs:
        patterns = f" that matches {', '.join(source.glob)}" if source.glob else " of a known kind"
        raise DataError(
            f"Source '{source.name}': {place} holds no file{patterns}.", "Check the path, `glob` and `exclude`."
        )
    return inputs


def read_documents(
    source: SourceConfig, inputs: Iterable[Input], invalid_utf8: str, drops: Drops
) -> Iterator[tuple[Input, Document | None]]:
    """Yield (input, document) for every document of `inputs`, and (input, None) when an input is done.

    Files that are no text are counted in `drops` and left out. Raises PunaError for a corrupt one, by file and line.
    """
    from puna.data.readers import read_file

    taken = 0
    for item in inputs:
        path = Path(item.place)
        if item.revision:
            from puna.data.hub import fetch

            path = fetch(source, item)
        for document in read_file(path, item.name, source, invalid_utf8, drops):
            yield item, document
            taken += 1
            if source.limit and taken >= source.limit:
                yield item, None
                return
        yield item, None


def suffix(name: str) -> tuple[str, str]:
    """(ending, ending of the compression or ""): "a.jsonl.zst" -> (".jsonl", ".zst")."""
    path = Path(name.lower())
    if path.suffix in PACKED:
        return Path(path.stem).suffix, path.suffix
    return path.suffix, ""


def matches(name: str, patterns: Sequence[str], *, folders: bool = False) -> bool:
    """Whether a relative path fits one of the patterns: *, ? and ** as usual.

    A pattern without a slash is held against the file's name, or with `folders` against every part of the path.
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


def _files(path: Path, source: SourceConfig) -> list[tuple[str, Path]]:
    if any(mark in source.path for mark in "*?[") and not path.exists():
        base = Path(*path.parts[: next(i for i, part in enumerate(path.parts) if any(m in part for m in "*?["))])
        found = (Path(name) for name in globbing.glob(str(path), recursive=True))
        named = sorted((file.relative_to(base).as_posix(), file) for file in found if file.is_file())
        return [(name, file) for name, file in named if not matches(name, source.exclude, folders=True)]
    if not path.exists():
        raise DataError(f"Source '{source.name}': {path} does not exist.", "Check `path`, or set `root`.")
    if path.is_file():
        return [(path.name, path)]
    return _walk(path, source.glob, source.exclude)


def _walk(folder: Path, patterns: Sequence[str], exclude: Sequence[str]) -> list[tuple[str, Path]]:
    """(relative name, file) of every wanted file under `folder`, hidden ones left out, sorted by name."""
    found = []
    for here, folders, files in os.walk(folder):
        relative = Path(here).relative_to(folder)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not matches((relative / name).as_posix(), exclude, folders=True)
        ]
        for file in files:
            name = (relative / file).as_posix()
            wanted = matches(name, patterns) if patterns else suffix(file)[0] in CODE | PROSE | RECORDS
            if wanted and not file.startswith(".") and not matches(name, exclude, folders=True):
                found.append((name, Path(here, file)))
    return sorted((name, path) for name, path in found if path.is_file())


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
