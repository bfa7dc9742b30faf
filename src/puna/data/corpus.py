"""Read a corpus directory: the manifest, the documents, and the training stream.

The training stream is the sequence of tokens that the loader cuts into rows: source after source, each repeated as
often as the recipe says (`epochs`, full passes and a partial one), shard after shard. It is only a table of segments
over the memory-mapped shards; nothing is copied, and a position is found by binary search in that table.
"""

import bisect
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from puna.core.errors import DataError
from puna.core.files import read_json, sha256_file
from puna.data.shards import ENDINGS

if TYPE_CHECKING:
    from puna.text.tokenizer import Tokenizer

FORMAT, VERSION = "puna-corpus", 1


class Shard:
    """One shard, memory-mapped: `tokens` (tokens,), `starts` (documents + 1,) in tokens."""

    def __init__(self, root: Path, entry: dict[str, Any], source: str, dtype: str) -> None:
        place = root / entry["file"]
        self.source = source
        self.count: int = entry["documents"]
        self.tokens = np.memmap(f"{place}.tokens", dtype=dtype, mode="r")
        index = np.memmap(f"{place}.index", dtype="<i8", mode="r", shape=(2, self.count + 1))
        self.starts, self._names_at = index[0], index[1]
        self._names = Path(f"{place}.names")

    def describe(self, document: int) -> tuple[str, str]:
        """(name, licence) of one document."""
        start, stop = int(self._names_at[document]), int(self._names_at[document + 1])
        with open(self._names, "rb") as file:
            file.seek(start)
            name, licence = json.loads(file.read(stop - start))
        return name, licence

    def documents(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """(name, licence, token ids) of every document in order."""
        with open(self._names, "rb") as names:
            for number, line in enumerate(names):
                name, licence = json.loads(line)
                yield name, licence, self.tokens[self.starts[number] : self.starts[number + 1]]


class Corpus:
    """A corpus directory written by `puna data build`. Create one with `Corpus.open`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._shards = {
            split: [Shard(path, entry, entry["source"], manifest["dtype"]) for entry in content["shards"]]
            for split, content in manifest["splits"].items()
        }
        segments = list(self._segments())
        self._segment_shards = [shard for shard, _ in segments]
        self._segment_ends = np.cumsum([tokens for _, tokens in segments], dtype=np.int64).tolist()

    @staticmethod
    def open(path: Path, *, verify: bool = False) -> "Corpus":
        """Open a corpus. File sizes and the tokenizer's hash are checked; `verify` also hashes every shard.

        Raises PunaError for a directory that is not a corpus, is truncated, or was changed.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(f"{path} does not exist.", "Build a corpus with `puna data build RECIPE -o DIR`.")
        if not (path / "manifest.json").is_file():
            raise DataError(
                f"{path} is not a corpus directory: it has no manifest.json.", "Give one written by `puna data build`."
            )
        manifest = read_json(path / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DataError(
                f"{path}/manifest.json is not the manifest of a corpus.", "Give one written by `puna data build`."
            )
        if manifest["version"] != VERSION:
            raise DataError(
                f"{path} has corpus format {manifest['version']}, but this version reads {VERSION}.",
                "Build it again.",
            )
        _check_files(path, manifest, verify)
        return Corpus(path, manifest)

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer of the corpus. Raises PunaError if the stored one differs from the one in the manifest."""
        from puna.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(self.path / "tokenizer")
        if tokenizer.hash != self.tokenizer_hash:
            raise DataError(
                f"The tokenizer in {self.path} is not the one that made its tokens "
                f"({tokenizer.hash[:12]} instead of {self.tokenizer_hash[:12]}).",
                "Build the corpus again.",
            )
        return tokenizer

    @property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer (`Tokenizer.hash`)."""
        return str(self.manifest["tokenizer"]["hash"])

    @property
    def content_hash(self) -> str:
        """SHA-256 over the hashes of everything that a training run reads from the corpus."""
        return str(self.manifest["content_hash"])

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, specials included."""
        return int(self.manifest["tokenizer"]["vocab_size"])

    def num_tokens(self, split: str = "train") -> int:
        """Tokens of a split, each counted once however often the stream repeats it."""
        return int(self._split(split)["tokens"])

    def num_bytes(self, split: str = "train") -> int:
        """UTF-8 bytes of the text of a split."""
        return int(self._split(split)["bytes"])

    def num_documents(self, split: str = "train") -> int:
        """Documents of a split."""
        return int(self._split(split)["documents"])

    @property
    def stream_tokens(self) -> int:
        """Length of the training stream: each source times its epochs."""
        return self._segment_ends[-1] if self._segment_ends else 0

    def shards(self, split: str = "train") -> list[Shard]:
        """The memory-mapped shards of a split."""
        self._split(split)
        return self._shards[split]

    def documents(self, split: str = "train") -> Iterator[tuple[str, str, str, np.ndarray]]:
        """(name, source, licence, token ids) of every document of a split, in the (shuffled) order of the build."""
        for shard in self.shards(split):
            for name, licence, ids in shard.documents():
                yield name, shard.source, licence, ids

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop of the training stream as int64: (stop - start,)."""
        out = np.empty(stop - start, dtype=np.int64)
        filled = 0
        for shard, low, high in self._pieces(start, stop):
            out[filled : filled + high - low] = shard.tokens[low:high]
            filled += high - low
        return out

    def read_document_ids(self, start: int, stop: int) -> np.ndarray:
        """The document of each of tokens start..stop of the stream, counted from 0: (stop - start,) int32."""
        out = np.empty(stop - start, dtype=np.int32)
        filled, number = 0, 0
        for shard, low, high in self._pieces(start, stop):
            first, last = _documents_between(shard, low, high)
            inner = np.asarray(shard.starts[first + 1 : last]) - low  # where later documents begin in this segment
            out[filled : filled + high - low] = number + np.searchsorted(inner, np.arange(high - low), side="right")
            number += last - first
            filled += high - low
        return out

    def documents_between(self, start: int, stop: int) -> list[str]:
        """Names of the documents that tokens start..stop of the stream are from, as "source/name"."""
        names = []
        for shard, low, high in self._pieces(start, stop):
            names += [f"{shard.source}/{shard.describe(i)[0]}" for i in range(*_documents_between(shard, low, high))]
        return names

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.manifest["splits"]:
            raise DataError(f"{self.path} has no split '{split}'.", f"It has {', '.join(self.manifest['splits'])}.")
        return dict(self.manifest["splits"][split])

    def _segments(self) -> Iterator[tuple[Shard, int]]:
        """(shard, number of its first tokens), in the order of the training stream."""
        for source in self.manifest["sources"]:
            left = source["stream_tokens"]
            shards = [shard for shard in self._shards["train"] if shard.source == source["name"]]
            while left and shards:
                for shard in shards:
                    take = min(left, len(shard.tokens))
                    if take:
                        yield shard, take
                    left -= take

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Shard, int, int]]:
        """(shard, from, to) in the shard's own tokens, covering start..stop of the stream."""
        number = bisect.bisect_right(self._segment_ends, start)
        while start < stop:
            begin = self._segment_ends[number - 1] if number else 0
            end = min(stop, self._segment_ends[number])
            yield self._segment_shards[number], start - begin, end - begin
            start, number = end, number + 1


def _documents_between(shard: Shard, low: int, high: int) -> tuple[int, int]:
    """Range of the documents that tokens low..high of a shard belong to."""
    first = int(np.searchsorted(shard.starts, low, side="right")) - 1
    return first, int(np.searchsorted(shard.starts, high, side="left"))


def _check_files(path: Path, manifest: dict[str, Any], verify: bool) -> None:
    item = np.dtype(manifest["dtype"]).itemsize
    for content in manifest["splits"].values():
        for entry in content["shards"]:
            sizes = {
                "tokens": entry["tokens"] * item,
                "index": 16 * (entry["documents"] + 1),
                "names": entry["names_bytes"],
            }
            for ending in ENDINGS:
                file = path / f"{entry['file']}.{ending}"
                found = file.stat().st_size if file.is_file() else 0
                if found != sizes[ending]:
                    raise DataError(
                        f"{file} has {found:,} bytes, but {sizes[ending]:,} according to the manifest.",
                        "The corpus is damaged; copy or build it again.",
                    )
                if verify and sha256_file(file) != entry["sha256"][ending]:
                    raise DataError(
                        f"{file} has changed since the build: its hash differs.", "Copy or build the corpus again."
                    )
    for name, digest in manifest["tokenizer"]["files"].items():
        file = path / "tokenizer" / name
        if not file.is_file() or sha256_file(file) != digest:
            raise DataError(
                f"The tokenizer in {path} is not the one that made its tokens: {name} is missing or changed.",
                "Build the corpus again.",
            )
