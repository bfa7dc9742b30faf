"""Guess a text's language from its script and its most common words: no model, no download.

Good enough to keep Chinese out of an English corpus or the reverse, and to select the stop words of the quality
filters. It is unreliable for short texts and between closely related languages; if that matters, run a classifier
first.
"""

import re
from collections import Counter

import numpy as np

_SAMPLE = 5000  # characters examined; every third word is a stop word, so this gives hundreds of hits

# The most common function words, including those that distinguish related languages.
STOP_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and to in is that it was for with as his he be not by but have you which are on or her had at",
        "de": "der die und das ist nicht ein eine zu den von mit sich auf dem des im auch es an er sie wie aus aber",
        "fr": "le la les de des et est un une du dans que qui pas pour il elle sur au ce avec se plus ne sont par",
        "es": "el la los las de y que en un una es por con no se su para del al lo como más pero sus le",
        "pt": "o a os as de e que em um uma é por com não se para do da no na dos das como mais mas ao",
        "it": "il lo la gli le di e che è un una in per con non si del della dei sono nel alla più da come ma",
        "nl": "de het een en van is dat op te in niet zijn met voor die er aan ook als maar om hij ze bij",
        "sv": "och att det som en på är av för med den till inte har de om ett men var jag han så från",
        "da": "og at det som en på er af for med den til ikke har de om et men var jeg han så fra",
        "pl": "i w na nie się z do to że jest jak o co ale po tak za od być przez przy dla są tym",
        "cs": "a v na se je že to s z do o jako ale pro po by jsem i od ve které jeho byl není",
        "tr": "ve bir bu da de için ile çok ne gibi daha olarak o ama en kadar var ben sonra olan değil",
        "id": "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga ke karena ada mereka oleh saya",
        "sw": "na ya wa kwa ni katika la za kuwa hiyo alikuwa yake huo lakini kama cha wake sana kila watu",
        "vi": "và của là có không được cho một những trong các với người này đã khi để đến tôi như",
        "fi": "ja on ei se että oli hän mutta niin kun kuin ovat myös hänen tai sen mitä joka ole",
        "ru": "и в не на что он с как это по но из я она у за от так его был же к все",
        "uk": "і в не на що він з як це та але до я вона у за від так його був же є",
        "bg": "и в не на че той с как това по но от аз тя за се да е са към",
    }.items()
}
# Scripts that settle the language, or the group of it, alone.
# (first code point, first one after it, name), ascending.
_SCRIPTS = (
    (0x0370, 0x0400, "el"),
    (0x0400, 0x0500, "cyrillic"),
    (0x0590, 0x0600, "he"),
    (0x0600, 0x0700, "ar"),
    (0x0900, 0x0980, "hi"),
    (0x0980, 0x0A00, "bn"),
    (0x0B80, 0x0C00, "ta"),
    (0x0C00, 0x0C80, "te"),
    (0x0E00, 0x0E80, "th"),
    (0x1100, 0x1200, "ko"),
    (0x3040, 0x3100, "ja"),
    (0x3400, 0xA000, "zh"),
    (0xAC00, 0xD7B0, "ko"),
)
_CYRILLIC = ("ru", "uk", "bg")
UNSPACED = frozenset({"zh", "ja", "th"})
LANGUAGES = frozenset(STOP_WORDS) | {name for *_, name in _SCRIPTS if name != "cyrillic"}


def guess_language(text: str) -> str:
    """ISO 639-1 code of the most likely language in LANGUAGES, or "" if none fits."""
    sample = text[:_SAMPLE]
    letters = sum(map(str.isalpha, sample))
    if not letters:
        return ""
    counts = _count_scripts(sample)
    # Japanese is written in Han and kana; a tenth of kana distinguishes it from Chinese.
    if counts["ja"] * 10 >= counts["ja"] + counts["zh"] > letters * 0.3:
        return "ja"
    script = max(counts, key=lambda name: counts[name])
    if counts[script] > letters * 0.3 and script != "cyrillic":
        return script
    cyrillic = counts["cyrillic"] > letters * 0.3
    words = Counter(re.findall(r"[^\W\d_]+", sample.lower()))
    hits = {
        language: sum(words[word] for word in stop)
        for language, stop in STOP_WORDS.items()
        if (language in _CYRILLIC) == cyrillic
    }
    best = max(hits, key=lambda language: hits[language])
    # Function words are about a third of running text; below a twentieth it is a list, code or another language.
    return best if hits[best] >= 0.05 * words.total() else ""


def _count_scripts(text: str) -> dict[str, int]:
    """Characters of each script in _SCRIPTS."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    edges = np.array([edge for first, end, _ in _SCRIPTS for edge in (first, end)])
    # Odd positions in the list of edges are inside a script.
    inside = np.bincount(np.searchsorted(edges, codes, side="right"), minlength=len(edges) + 1)
    counts: dict[str, int] = {}
    for number, (*_, name) in enumerate(_SCRIPTS):
        counts[name] = counts.get(name, 0) + int(inside[2 * number + 1])
    return counts
