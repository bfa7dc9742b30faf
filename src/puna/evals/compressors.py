"""Bits per byte of general compressors on the same text: a yardstick for a language model.

Every held-out document is compressed separately, from nothing (gzip, xz, zstd) or by a compressor that was primed with
the training text: zstd with a dictionary trained on it (zstd's dictBuilder), zstd with the text itself as a prefix, xz
with the text before the documents. The dictionary of a primed compressor does not count, just as a model's weights do
not. Container headers count: about 12 bytes a document for gzip and zstd, about 60 for xz.
"""

import gzip
import lzma
from collections.abc import Callable, Sequence
from typing import Any

import zstandard

from puna.core.units import format_bytes
from puna.data.corpus import Corpus
from puna.train.measure.evaluate import documents_to_measure

Row = dict[str, Any]

DICTIONARY_SIZES = (64 * 1024, 256 * 1024, 1024 * 1024)
MAX_PREFIX = 64 * 2**20
"""The training text that a primed compressor sees: xz -9 looks back 64 MiB."""


def compressors(
    corpus: Corpus,
    *,
    split: str = "heldout",
    max_bytes: int | None = None,
    thorough: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Rows {"name", "value" (bits per byte), "note"} of each compressor on the documents that `bits_per_byte` measures.

    max_bytes: as in `bits_per_byte`, so that model and compressors get the same text. thorough: also xz primed with the
    training text, about a second per 100 kB of it. on_progress: called with the name of each row before it is measured.
    A row that cannot be measured has the value None and a note that says why.
    """
    measured = documents_to_measure(corpus, split, max_bytes)
    heldout = [corpus.tokenizer.decode_bytes(document.ids.tolist()) for document in measured]
    training = training_texts(corpus, MAX_PREFIX)
    tell = on_progress or (lambda name: None)
    rows: list[Row] = []

    def add(name: str, note: str, measure: Callable[[], float]) -> None:
        tell(name)
        rows.append({"name": name, "value": measure(), "note": note})

    alone = "each document alone"
    add("gzip -9", alone, lambda: bits_per_byte_of(lambda text: gzip.compress(text, 9, mtime=0), heldout))
    add("xz -9", alone, lambda: bits_per_byte_of(lambda text: lzma.compress(text, preset=9), heldout))
    add("zstd -19", alone, lambda: bits_per_byte_of(zstandard.ZstdCompressor(level=19).compress, heldout))
    tell("zstd -19 with a trained dictionary")
    rows.append(zstd_with_dictionary(heldout, training))
    size = format_bytes(sum(map(len, training)))
    add(
        "zstd -19 primed",
        f"each document alone, with {size} of training text as prefix (raw-content dictionary, long-distance matching)",
        lambda: bits_per_byte_of(zstd_primed(training).compress, heldout),
    )
    if thorough:
        add(
            "xz -9 primed",
            f"all documents in one stream behind {size} of training text, so that they help each other too",
            lambda: xz_primed(heldout, training),
        )
    return rows


def bits_per_byte_of(compress: Callable[[bytes], bytes], texts: Sequence[bytes]) -> float:
    """Bits of all compressed texts per byte of text, each compressed separately."""
    return 8 * sum(len(compress(text)) for text in texts) / max(1, sum(map(len, texts)))


def zstd_with_dictionary(
    heldout: Sequence[bytes], training: Sequence[bytes], sizes: Sequence[int] = DICTIONARY_SIZES
) -> Row:
    """zstd -19 with the best of several dictionaries trained on the training documents.

    The best is chosen on the held-out text itself, which favours the compressor.
    """
    name = "zstd -19 with a trained dictionary"
    best: tuple[float, int] | None = None
    for size in sizes:
        try:
            dictionary = zstandard.train_dictionary(size, list(training))
        except zstandard.ZstdError:
            continue  # too few samples for a dictionary of this size
        dictionary.precompute_compress(level=19)
        value = bits_per_byte_of(zstandard.ZstdCompressor(level=19, dict_data=dictionary).compress, heldout)
        best = min(best or (value, size), (value, size))
    if best is None:
        return {"name": name, "value": None, "note": "too little training text for a dictionary"}
    tried = ", ".join(format_bytes(size) for size in sizes)
    note = f"each document alone; the dictionary of {format_bytes(best[1])} is the best of {tried}"
    return {"name": name, "value": best[0], "note": note}


def zstd_primed(training: Sequence[bytes]) -> zstandard.ZstdCompressor:
    """Return a zstd -19 compressor that may refer to all of the training text.

    The window spans the prefix (2^27 bytes) and the search tables are large enough to index it: 0.3 GiB of memory.
    """
    dictionary = zstandard.ZstdCompressionDict(b"\n".join(training), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=27, hash_log=24, chain_log=26, enable_ldm=True
    )
    # Indexed once here instead of once for every document.
    dictionary.precompute_compress(compression_params=parameters)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary)


def xz_primed(heldout: Sequence[bytes], training: Sequence[bytes]) -> float:
    """Bits per byte that the held-out text adds to an xz -9 stream of the training text.

    xz cannot be primed, and compressing the training text again for every document would take days.
    """
    prefix, text = b"\n".join(training), b"\n".join(heldout)
    added = len(lzma.compress(prefix + text, preset=9)) - len(lzma.compress(prefix, preset=9))
    return 8 * added / max(1, sum(map(len, heldout)))


def training_texts(corpus: Corpus, max_bytes: int) -> list[bytes]:
    """Return the first training documents as text, about `max_bytes` in all."""
    texts, size = [], 0
    for _, _, _, ids in corpus.documents("train"):
        if size >= max_bytes:
            break
        text = corpus.tokenizer.decode_bytes(ids.tolist())
        texts.append(text)
        size += len(text)
    return texts
