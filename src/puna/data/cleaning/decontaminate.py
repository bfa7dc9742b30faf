"""Decontamination: remove documents that share a run of words with an evaluation set.

As in GPT-3 (arXiv 2005.14165, appendix C), a document is dropped when 13 consecutive words are those of an evaluation
item. Shorter items are searched for as a whole, down to eight words; a shorter match means nothing. Case, punctuation
and spacing are ignored, as in `shingles`. datatrove's version is not used: it needs lighteval's task table or labelled
pairs, and a word splitter that has to be downloaded.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from puna.core.errors import PunaError
from puna.data.cleaning.shingles import shingle_hashes, word_hashes
from puna.data.reading.chunks import read_lines, read_utf8
from puna.data.reading.file_types import suffix
from puna.data.reading.sources import list_inputs
from puna.data.recipe import DecontaminateConfig, SourceConfig

_KINDS = ("*.json", "*.jsonl", "*.csv", "*.tsv", "*.txt")
_GLOB = [kind + packed for kind in _KINDS for packed in ("", ".gz", ".xz", ".zst", ".bz2")]


class Evaluations:
    """The word runs of evaluation sets, to compare documents with."""

    def __init__(self, config: DecontaminateConfig) -> None:
        """Read the sets. Raises PunaError for one that is missing, corrupt, or has no item of sufficient length."""
        self._names: list[str] = []
        found: dict[int, list[tuple[np.ndarray, int]]] = {}
        for place in config.paths:
            source = SourceConfig(name="evaluation", path=place, glob=[] if Path(place).is_file() else _GLOB)
            for item in list_inputs(source):
                number, items = len(self._names), 0
                path = Path(item.place)
                self._names.append(f"{path.parent.name}/{path.name.split('.')[0]}")
                for text in _strings(path, config.fields):
                    words = word_hashes(text)
                    length = min(config.ngram, len(words))
                    if length >= min(config.min_words, config.ngram):
                        found.setdefault(length, []).append((shingle_hashes(words, length), number))
                        items += 1
                if not items and Path(place).is_file():
                    raise PunaError(
                        f"{place} contains no text of at least {config.min_words} words to search for.",
                        "Check decontaminate.paths and fields.",
                    )
        self._runs = {length: _index(parts) for length, parts in found.items()}

    def match(self, text: str) -> str:
        """Name of the first evaluation set that shares a run of words with `text`, or ""."""
        if not self._runs:
            return ""
        words = word_hashes(text)
        for length, (hashes, owners) in self._runs.items():
            own = shingle_hashes(words, length)
            at = np.minimum(np.searchsorted(hashes, own), len(hashes) - 1)
            hit = np.flatnonzero(hashes[at] == own)
            if len(hit):
                return self._names[owners[at[hit[0]]]]
        return ""


def _index(parts: Sequence[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct hashes, and for each the number of the first set that contains it."""
    hashes = np.concatenate([part for part, _ in parts])
    owners = np.repeat([number for _, number in parts], [len(part) for part, _ in parts])
    distinct, first = np.unique(hashes, return_index=True)
    return distinct, owners[first]


def _strings(path: Path, fields: Iterable[str]) -> Iterator[str]:
    """Every string in a file of an evaluation set, or only those under the given fields."""
    kind, wanted = suffix(path.name)[0], frozenset(fields)
    try:
        if kind == ".jsonl":
            for line in read_lines(path):
                if line.strip():
                    yield from _leaves(json.loads(line.decode("utf-8", "replace")), wanted, not wanted)
            return
        text = b"".join(read_utf8(path)).decode("utf-8", "replace")
        if kind == ".json":
            yield from _leaves(json.loads(text), wanted, not wanted)
        elif kind in (".csv", ".tsv"):
            # Without named fields the first row is treated as text; some sets have no header.
            rows = list(csv.reader(io.StringIO(text), delimiter="," if kind == ".csv" else "\t"))
            columns = [i for i, name in enumerate(rows[0] if rows else []) if not wanted or name in wanted]
            for row in rows:
                yield from (row[i] for i in columns if i < len(row))
        else:
            yield from text.splitlines()
    except (ValueError, csv.Error) as error:
        raise PunaError(
            f"{path} cannot be read as an evaluation set ({error}).", "Check decontaminate.paths."
        ) from None


def _leaves(value: Any, wanted: frozenset[str], take: bool) -> Iterator[str]:
    if isinstance(value, str):
        if take:
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, wanted, take or key in wanted)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, wanted, take)
