"""Near duplicates: planted ones are found, others stay, and the estimate follows the true similarity."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.data.cleaning.dedup import ExactDuplicates, Signatures, near_duplicates
from puna.data.cleaning.shingles import shingle_hashes, word_hashes
from puna.data.recipe import DedupConfig

CONFIG = DedupConfig()


def words(count: int, seed: int) -> list[str]:
    dice = random.Random(seed)
    return ["".join(dice.choices("abcdefghijklmnop", k=dice.randint(2, 9))) for _ in range(count)]


def clusters(texts: list[str], config: DedupConfig = CONFIG) -> list[int]:
    signatures = Signatures(config, seed=0)
    return near_duplicates(np.array([signatures.of(text) for text in texts]), config).tolist()


def jaccard(a: list[str], b: list[str], n: int) -> float:
    left, right = ({tuple(t[i : i + n]) for i in range(len(t) - n + 1)} for t in (a, b))
    return len(left & right) / len(left | right)


def test_planted_near_duplicates_are_found_and_others_kept() -> None:
    originals = [words(400, seed) for seed in range(30)]
    texts = [" ".join(text) for text in originals]
    planted = []
    for number in range(0, 30, 3):
        changed = list(originals[number])
        changed[50], changed[333] = "something", "else"  # two words of 400: similarity about 0.95
        texts.append("A NEW HEADLINE. " + ", ".join(changed) + "!")
        planted.append(number)
    found = clusters(texts)
    assert found[:30] == list(range(30))
    assert found[30:] == planted


def test_documents_that_share_a_third_are_not_duplicates() -> None:
    texts = [" ".join(words(100, 0) + words(200, seed)) for seed in range(1, 40)]
    assert clusters(texts) == list(range(39))


@pytest.mark.parametrize("kept", [380, 350, 300, 200, 100])
def test_agreement_estimates_the_jaccard_similarity(kept: int) -> None:
    config = DedupConfig(bands=100, rows=10)
    signatures = Signatures(config, seed=1)
    a = words(400, 5)
    b = a[:kept] + words(400 - kept, 6)
    true = jaccard(a, b, config.ngram)
    found = (signatures.of(" ".join(a)) == signatures.of(" ".join(b))).mean()
    # 1000 functions: standard error at most 0.016; five of them.
    assert abs(found - true) < 0.08


def test_short_and_empty_documents() -> None:
    assert clusters(["", "...", "one two", "One, two!", "one three", "", "七"]) == [0, 1, 2, 2, 4, 5, 6]
    assert near_duplicates(np.zeros((0, 120), np.uint32), CONFIG).tolist() == []


def test_scripts_without_spaces_are_compared_by_character() -> None:
    text = "人人生而自由在尊严和权利上一律平等他们赋有理性和良心并应以兄弟关系的精神相对待" * 2 + "人类"
    assert clusters(
        [text, text.replace("自由", "自由，"), text[40:] + "完全不同的另外一些文字在这里出现了很多很多"]
    ) == [0, 0, 2]


@given(st.lists(st.text(), max_size=8))
def test_words_are_hashed_alike_wherever_they_stand(parts: list[str]) -> None:
    together = word_hashes(" ".join(parts))
    alone = [word_hashes(part) for part in parts]
    np.testing.assert_array_equal(together, np.concatenate([np.zeros(0, np.uint64), *alone]))


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=30), st.integers(1, 6))
def test_equal_runs_of_words_have_equal_hashes_and_others_not(text: list[str], length: int) -> None:
    hashes = shingle_hashes(word_hashes(" ".join(text)), length)
    runs = [tuple(text[i : i + length]) for i in range(len(text) - length + 1)]
    assert len(hashes) == len(runs)
    assert len(set(hashes.tolist())) == len(set(runs))


def test_case_spacing_and_punctuation_do_not_count() -> None:
    np.testing.assert_array_equal(word_hashes("Hello,  World!\n(again)"), word_hashes("hello world again"))
    assert len(word_hashes("naïve Größe हिन्दी don't x_y")) == 7


def test_exact_duplicates() -> None:
    exact = ExactDuplicates()
    assert [exact.seen(text) for text in ("a", "b", " a\n", "A", "b")] == [False, False, True, False, True]


def test_the_near_identical_tables_of_the_standard_library_are_found() -> None:
    import encodings

    folder = Path(encodings.__file__).parent
    names = ["iso8859_1", "iso8859_15", "latin_1", "utf_8", "idna", "cp1252"]
    found = clusters([(folder / f"{name}.py").read_text(encoding="utf-8") for name in names])
    assert found[1] == found[0]
    assert len({found[i] for i in (0, 2, 3, 4)}) == 4
