"""Shingles: the words of a text as 64-bit hashes, and runs of words as hashes of those, in numpy.

Deduplication and decontamination both search for runs of words that two texts share. A loop over words in Python would
take minutes where this takes a second: the text becomes an array of code points, words are found as runs of word
characters, and each word's hash is a polynomial over its code points, summed with `reduceat`.

A word is a run of letters, digits and marks; each character of a script written without spaces (Chinese, Japanese,
Thai, ...) is a word of its own. Case, punctuation and spacing are ignored.
"""

import unicodedata
from functools import lru_cache

import numpy as np

# Scripts written without spaces between words: Thai to Khmer, kana, Han and its extensions.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
_POWERS = 1 << 12  # positions in a word after which the powers repeat; longer words are still hashed in full
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the increment of SplitMix64


def word_hashes(text: str) -> np.ndarray:
    """One uint64 hash per word of `text`, in order: (words,). Case is ignored."""
    codes = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kind = _kinds()[np.minimum(codes, 0xFFFF)]
    if not kind.any():
        return np.zeros(0, dtype=np.uint64)
    before = np.empty_like(kind)
    before[0], before[1:] = 0, kind[:-1]
    start = (kind == 2) | ((kind == 1) & (before != 1))
    inside = np.flatnonzero(kind)
    first = np.flatnonzero(start[inside])  # where each word begins among the word characters
    word = np.cumsum(start[inside]) - 1
    place = np.arange(len(inside)) - first[word]
    values = mix(codes[inside].astype(np.uint64)) * _powers()[place & (_POWERS - 1)]
    return mix(np.add.reduceat(values, first))


def shingle_hashes(words: np.ndarray, length: int) -> np.ndarray:
    """One uint64 hash per run of `length` words: (words - length + 1,), empty if there are fewer words."""
    count = len(words) - length + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        total = total * _ODD + words[offset : offset + count]
    return mix(total)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): a bijection of uint64 in which each bit affects all others."""
    values = values + _ODD
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """For each code point of the basic plane: 0 not in a word, 1 part of a word, 2 a word of its own.

    Everything beyond the basic plane shares the entry of 0xFFFF: a word of its own (rare Han, emoji).
    """
    kinds = np.zeros(0x10000, dtype=np.uint8)
    for code in range(0xFFFF):
        if unicodedata.category(chr(code))[0] in "LNM":
            kinds[code] = 1
    for low, high in _UNSPACED:
        kinds[low : high + 1] *= 2
    kinds[0xFFFF] = 2
    return kinds


@lru_cache(maxsize=1)
def _powers() -> np.ndarray:
    return np.cumprod(np.full(_POWERS, 0xD6E8FEB86659FD93, dtype=np.uint64))
