"""Corpora for the tests of this room: a handmade one in no time, and a real one built once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from puna.core.files import write_json
from puna.core.recipe import check
from puna.data.build import build_corpus
from puna.data.corpus import FORMAT, VERSION, Corpus
from puna.data.recipe import DataRecipe
from puna.data.shards import ShardWriter


@pytest.fixture(scope="session")
def write_corpus() -> Callable[..., Corpus]:
    """The function that writes a corpus of given token ids, without a tokenizer."""
    return _write_corpus


def _write_corpus(
    folder: Path, sources: dict[str, list[list[int]]], stream: dict[str, int] | None = None, shard_tokens: int = 10**9
) -> Corpus:
    """stream: tokens of each source in the training stream."""
    shards: list[dict[str, Any]] = []
    for name, documents in sources.items():
        writer = ShardWriter(folder, f"train/{name}", "<u2", shard_tokens)
        for number, ids in enumerate(documents):
            writer.add(ids, f"doc{number}", "CC0", len(ids))
        writer.close()
        shards += [{"source": name, **shard} for shard in writer.shards]
    tokens = {name: sum(map(len, documents)) for name, documents in sources.items()}
    total = {"documents": sum(map(len, sources.values())), "tokens": sum(tokens.values()), "bytes": 0}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "content_hash": "",
        "dtype": "<u2",
        "tokenizer": {"hash": "", "vocab_size": 1000, "files": {}},
        "sources": [{"name": name, "stream_tokens": (stream or tokens)[name]} for name in sources],
        "splits": {"train": {**total, "shards": shards}, "heldout": {"documents": 0, "tokens": 0, "shards": []}},
    }
    write_json(folder / "manifest.json", manifest)
    return Corpus.open(folder)


@pytest.fixture
def recipe() -> Callable[..., DataRecipe]:
    """Make a recipe from sources and sections; a small tokenizer unless said otherwise."""

    def make(sources: Sequence[dict[str, Any]], **sections: Any) -> DataRecipe:
        sections.setdefault("tokenizer", {"vocab_size": 300})
        return check(DataRecipe, {"sources": list(sources), **sections}, "recipe.toml")

    return make


@pytest.fixture(scope="session")
def stdlib_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of a part of the standard library: real files, real licences, a real tokenizer."""
    path = tmp_path_factory.mktemp("corpora") / "stdlib"
    tree = {
        "name": "stdlib-cut",
        "seed": 3,
        "sources": [
            {
                "name": "stdlib",
                "kind": "python-stdlib",
                "glob": ["encodings/iso*.py", "json/*.py", "c*.py"],
                "licence": "PSF-2.0",
            }
        ],
        "heldout": {"share": 0.1},
        "tokenizer": {"vocab_size": 600},
    }
    build_corpus(check(DataRecipe, tree, "stdlib.toml"), path)
    return path
