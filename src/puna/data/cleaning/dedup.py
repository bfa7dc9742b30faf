"""Deduplication: exact and near duplicates.

Near duplicates are found by MinHash (Broder 1997) with banding: a document becomes the set of its runs of five words,
the set becomes `bands * rows` minima under random hash functions, and two documents with an equal band are candidates.
Candidates whose signatures agree in too few places are discarded; the others are joined to clusters, of which one
document is kept. With 20 bands of 6, a pair with Jaccard similarity 0.8 is a candidate with probability
1 - (1 - 0.8^6)^20 = 0.998, one with 0.5 with 0.27, and the signature check removes nearly all of the latter.

datatrove has the same four steps as a pipeline over many machines, which `cluster` uses. It hashes each run of words in
Python and splits words with spaCy; on one machine this module, vectorised over documents, is used instead.
"""

import hashlib

import numpy as np
from numpy.random import SeedSequence, default_rng  # imported here: an interrupt during a later import would be lost

from puna.data.cleaning.shingles import mix, shingle_hashes, word_hashes
from puna.data.recipe import DedupConfig

_CHUNK = 2048  # shingles hashed at once; times 120 functions of 8 bytes, this fits into the cache


class ExactDuplicates:
    """Remembers texts by a 16-byte hash."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def seen(self, text: str) -> bool:
        """Whether this text, up to surrounding space, was passed before; remembers it."""
        key = hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=16).digest()
        known = key in self._seen
        self._seen.add(key)
        return known


class Signatures:
    """MinHash signatures: `bands * rows` uint32 per document."""

    def __init__(self, config: DedupConfig, seed: int) -> None:
        self.config = config
        self.functions = config.bands * config.rows
        # Multiply-add-shift (Dietzfelbinger 1996): odd multipliers, the upper half of the product.
        random = default_rng(SeedSequence([seed, 0x4D494E48]))
        self._multiply = random.integers(0, 2**63, self.functions, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._add = random.integers(0, 2**63, self.functions, dtype=np.uint64)

    def of(self, text: str) -> np.ndarray:
        """(functions,) uint32. A text shorter than a shingle is one shingle; one without words has all bits set."""
        words = word_hashes(text)
        shingles = shingle_hashes(words, min(self.config.ngram, max(1, len(words))))
        lowest = np.full(self.functions, np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(shingles), _CHUNK):
            part = shingles[start : start + _CHUNK, None] * self._multiply + self._add  # (shingles, functions)
            np.minimum(lowest, part.min(axis=0), out=lowest)
        return (lowest >> np.uint64(32)).astype(np.uint32)


def near_duplicates(signatures: np.ndarray, config: DedupConfig) -> np.ndarray:
    """Cluster number of each document: (documents,) int64; documents of one cluster are near duplicates.

    signatures: (documents, bands * rows) uint32 in the order of the corpus; a document without words (all bits set)
    is alone. The number of a cluster is the index of its first document.
    """
    count = len(signatures)
    parent = np.arange(count, dtype=np.int64)
    worded = np.flatnonzero(signatures[:, 0] != np.iinfo(np.uint32).max) if count else parent
    for band in range(config.bands):
        # One band at a time keeps memory at a few bytes a document, whatever the length of the signatures.
        columns = signatures[worded, band * config.rows : (band + 1) * config.rows]
        left, right = _candidates(_band_key(columns))
        left, right = worded[left], worded[right]
        unequal = _roots(parent, left) != _roots(parent, right)
        left, right = left[unequal], right[unequal]
        for start in range(0, len(left), 65536):
            a, b = left[start : start + 65536], right[start : start + 65536]
            alike = (signatures[a] == signatures[b]).mean(axis=1) >= config.threshold
            _join(parent, a[alike], b[alike])
    return _roots(parent, np.arange(count))


def _band_key(columns: np.ndarray) -> np.ndarray:
    key = np.zeros(len(columns), dtype=np.uint64)
    for column in columns.T:
        key = mix(key ^ column)
    return key


def _candidates(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of positions with equal keys: each with the first of its group and with its neighbour, not all pairs."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = np.flatnonzero(new)[np.cumsum(new) - 1] if len(keys) else np.zeros(0, dtype=np.int64)
    at = np.flatnonzero(~new)
    further = at[at - 1 != first[at]]  # the second of a group is already paired with the first
    return (
        np.concatenate([order[first[at]], order[further - 1]]),
        np.concatenate([order[at], order[further]]),
    )


def _join(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Union by lowest index. A loop over duplicates only, which are few compared with the shingles."""
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        while parent[a] != a:
            a = int(parent[a])
        while parent[b] != b:
            b = int(parent[b])
        parent[max(a, b)] = min(a, b)


def _roots(parent: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    roots = parent[nodes]
    while not np.array_equal(roots, deeper := parent[roots]):
        roots = deeper
    return roots
