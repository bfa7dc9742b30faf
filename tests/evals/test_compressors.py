"""Compressors beside the model, against the command-line programs and against what priming must do."""

import lzma
import random
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard

from puna.evals.compressors import bits_per_byte_of, compressors, training_texts, zstd_primed, zstd_with_dictionary

WORDS = ["def", "return", "self", "value", "if", "else", "for", "in", "range", "(", ")", ":", "import", "None", "\n"]


def document(seed, words=400):
    choose = random.Random(seed)
    names = [f"name_{choose.randrange(200)}" for _ in range(20)]
    return " ".join(choose.choice(WORDS + names) for _ in range(words)).encode()


class Bytes:
    """A corpus whose tokens are bytes, with 256 as begin and 257 as end."""

    vocab_size = 258
    tokenizer = SimpleNamespace(
        token_bytes=lambda token: bytes([token]) if token < 256 else b"",
        decode_bytes=lambda ids: bytes(token for token in ids if token < 256),
    )

    def __init__(self, train, heldout):
        self._texts = {"train": train, "heldout": heldout}

    def documents(self, split):
        for index, text in enumerate(self._texts[split]):
            yield f"{index}", "code", "MIT", np.array([256, *text, 257], dtype=np.uint16)


@pytest.fixture(scope="module")
def corpus():
    return Bytes([document(seed) for seed in range(60)], [document(1000 + seed) for seed in range(8)])


@pytest.fixture(scope="module")
def rows(corpus):
    return {row["name"]: row for row in compressors(corpus, thorough=True)}


def test_every_row_is_named_and_measured(rows):
    assert list(rows) == [
        "gzip -9", "xz -9", "zstd -19", "zstd -19 with a trained dictionary", "zstd -19 primed", "xz -9 primed",
    ]  # fmt: skip
    assert all(row["note"] and 0 < row["value"] < 8 for row in rows.values())


@pytest.mark.parametrize("command", ["gzip -9", "xz -9", "zstd -19"])
def test_agrees_with_the_program_of_that_name(command, corpus, rows):
    if not shutil.which(command.split()[0]):
        pytest.skip(f"needs the program {command.split()[0]}")
    texts = list(corpus._texts["heldout"])
    size = sum(
        len(subprocess.run([*command.split(), "-c"], input=text, capture_output=True, check=True).stdout)
        for text in texts
    )
    # The programs may add a checksum or leave out a length: a few bytes a document.
    assert rows[command]["value"] == pytest.approx(8 * size / sum(map(len, texts)), rel=0.01)


def test_priming_helps(rows):
    assert rows["zstd -19 primed"]["value"] < rows["zstd -19"]["value"]
    assert rows["zstd -19 with a trained dictionary"]["value"] < rows["zstd -19"]["value"]
    assert rows["xz -9 primed"]["value"] < rows["xz -9"]["value"]


def test_a_primed_compressor_finds_text_far_back_in_the_prefix():
    noise = random.Random(0)
    far = noise.randbytes(20_000)
    training = [far, *(noise.randbytes(1_000_000) for _ in range(6))]
    assert bits_per_byte_of(zstd_primed(training).compress, [far]) < 0.05
    assert bits_per_byte_of(zstandard.ZstdCompressor(level=19).compress, [far]) > 7.9


def test_what_is_primed_can_be_read_again(corpus):
    training = training_texts(corpus, 10**9)
    prefix = zstandard.ZstdCompressionDict(b"\n".join(training), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    text = document(77)
    packed = zstd_primed(training).compress(text)
    assert zstandard.ZstdDecompressor(dict_data=prefix, max_window_size=2**27).decompress(packed) == text


def test_too_little_text_for_a_dictionary_is_said():
    row = zstd_with_dictionary([b"some text"], [b"a", b"b"])
    assert row["value"] is None
    assert "too little" in row["note"]


def test_the_same_text_as_the_model_is_measured(corpus):
    limited = {row["name"]: row["value"] for row in compressors(corpus, max_bytes=5000)}
    texts = corpus._texts["heldout"]
    size = sum(len(lzma.compress(text, preset=9)) for text in _cut(texts, 5000))
    assert limited["xz -9"] == pytest.approx(8 * size / 5000, rel=0.01)


def _cut(texts, most):
    for text in texts:
        if most <= 0:
            return
        yield text[:most]
        most -= len(text)


def test_training_text_is_taken_up_to_a_limit(corpus):
    texts = training_texts(corpus, 5000)
    assert 5000 <= sum(map(len, texts)) < 5000 + max(map(len, texts))
    assert texts[0] == corpus._texts["train"][0]
