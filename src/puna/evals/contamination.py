"""Counts the items of a benchmark that the model may have read: runs of words that a corpus shares with them.

An item counts as seen if 13 consecutive words of its question and answer are in the training part of the corpus
(GPT-3's rule, arXiv 2005.14165, appendix C); items of 8 to 12 words count if all of them are. Words are compared
without case, punctuation and spacing, as in `data.cleaning.decontaminate`. The scores of the seen and of the unseen
items are reported too: if they differ much, the benchmark measures how well the model remembers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from puna.data.cleaning.shingles import shingle_hashes, word_hashes
from puna.data.corpus import Corpus
from puna.evals.contract import Benchmark, Item
from puna.evals.results import share

NGRAM, SHORTEST = 13, 8
_BATCH = 200  # documents between two collections of matches

Checked = dict[str, set[str]]
"""The ids of the seen items of each benchmark."""


def seen_items(
    corpus: Corpus,
    loaded: Sequence[tuple[Benchmark, Sequence[Item]]],
    *,
    split: str = "train",
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Checked, Checked]:
    """Return the items that share a run of words with a document of the split, and those too short to tell.

    on_progress: called with the number of documents read.
    """
    runs: dict[int, list[tuple[np.ndarray, int]]] = {}
    names: list[tuple[str, str]] = []
    short: Checked = {benchmark.name: set() for benchmark, _ in loaded}
    for benchmark, items in loaded:
        for item in items:
            words = word_hashes(item.body)
            if len(words) < SHORTEST:
                short[benchmark.name].add(item.id)
                continue
            length = min(NGRAM, len(words))
            runs.setdefault(length, []).append((shingle_hashes(words, length), len(names)))
            names.append((benchmark.name, item.id))
    wanted = {length: _table(parts) for length, parts in runs.items()}
    found: Checked = {benchmark.name: set() for benchmark, _ in loaded}
    for count, (_, _, _, ids) in enumerate(corpus.documents(split), 1):
        text = corpus.tokenizer.decode_bytes(ids.tolist()).decode("utf-8", errors="replace")
        words = word_hashes(text)
        for length, (hashes, owners) in wanted.items():
            own = np.unique(shingle_hashes(words, length))
            low, high = (np.searchsorted(hashes, own, side=side) for side in ("left", "right"))
            for start, stop in zip(low[high > low].tolist(), high[high > low].tolist(), strict=True):
                for owner in set(owners[start:stop].tolist()):
                    name, id = names[owner]
                    found[name].add(id)
        if on_progress and count % _BATCH == 0:
            on_progress(count)
    return found, short


def contamination(
    rows: Sequence[Mapping[str, Any]], seen: set[str], short: set[str], *, corpus: str, split: str = "train"
) -> dict[str, Any]:
    """Return the contamination part of a result. rows: the rows of the benchmark."""
    values = {group: [row["value"] for row in rows if (row["id"] in seen) == group] for group in (True, False)}
    return {
        "corpus": corpus,
        "split": split,
        "ngram": NGRAM,
        "items": len(rows),
        "seen": len(values[True]),
        "too_short": sum(row["id"] in short for row in rows),
        "score_seen": share(values[True]),
        "score_unseen": share(values[False]),
    }


def _table(parts: Sequence[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """All hashes in order, and the item of each."""
    hashes = np.concatenate([part for part, _ in parts])
    owners = np.repeat([number for _, number in parts], [len(part) for part, _ in parts])
    order = np.argsort(hashes, kind="stable")
    return hashes[order], owners[order]
