"""Shards of a corpus: tokens and their document index, written once and hashed while writing.

A shard holds documents of one source and split in three files with the same stem:

    STEM.tokens   the token ids of its documents, end to end, unsigned little-endian (the manifest's `dtype`)
    STEM.index    int64 little-endian, two rows of documents + 1: where each document begins in STEM.tokens (in
                  tokens) and where its line begins in STEM.names (in bytes)
    STEM.names    one JSON array per line: [name, licence]

Documents never cross shards. The two rows of the index are stored one after the other, so that each can be searched
in a memory map without copying.
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ENDINGS = ("tokens", "index", "names")


def token_dtype(vocab_size: int) -> str:
    """The narrowest unsigned type that holds every token id."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


class ShardWriter:
    """Writes the documents of one source and split, starting a new shard when one is full."""

    def __init__(self, root: Path, stem: str, dtype: str, shard_tokens: int) -> None:
        """stem: such as "train/books"; shards are named train/books-00000 and so on, under `root`."""
        self._root, self._stem, self._dtype, self._limit = root, stem, dtype, shard_tokens
        self._shard: _Shard | None = None
        self.shards: list[dict[str, Any]] = []

    def add(self, ids: Sequence[int] | np.ndarray, name: str, licence: str, size: int) -> None:
        """Append one document: its token ids including begin and end tokens, and the size of its text in bytes."""
        if self._shard is None:
            path = f"{self._stem}-{len(self.shards):05d}"
            (self._root / path).parent.mkdir(exist_ok=True)
            self._shard = _Shard(self._root, path)
        self._shard.add(np.asarray(ids).astype(self._dtype), name, licence, size)
        if self._shard.token_starts[-1] >= self._limit:
            self.close()

    def close(self) -> None:
        """Close the open shard, if there is one; `shards` then lists all of them for the manifest."""
        if self._shard is not None:
            self.shards.append(self._shard.close())
            self._shard = None


class _Shard:
    def __init__(self, root: Path, path: str) -> None:
        self._place, self._path = root / path, path
        self._files = {ending: open(f"{self._place}.{ending}", "wb") for ending in ENDINGS}  # noqa: SIM115
        self._hashes = {ending: hashlib.sha256() for ending in ENDINGS}
        self.token_starts, self._name_starts = array("q", [0]), array("q", [0])
        self._bytes = 0

    def add(self, ids: np.ndarray, name: str, licence: str, size: int) -> None:
        line = json.dumps([name, licence], ensure_ascii=False).encode("utf-8") + b"\n"
        self._write("tokens", ids.tobytes())
        self._write("names", line)
        self.token_starts.append(self.token_starts[-1] + len(ids))
        self._name_starts.append(self._name_starts[-1] + len(line))
        self._bytes += size

    def close(self) -> dict[str, Any]:
        self._write("index", np.array([self.token_starts, self._name_starts], dtype="<i8").tobytes())
        for file in self._files.values():
            file.close()
        return {
            "file": self._path,
            "documents": len(self.token_starts) - 1,
            "tokens": self.token_starts[-1],
            "bytes": self._bytes,
            "names_bytes": self._name_starts[-1],
            "sha256": {ending: value.hexdigest() for ending, value in self._hashes.items()},
        }

    def _write(self, ending: str, data: bytes) -> None:
        self._files[ending].write(data)
        self._hashes[ending].update(data)
