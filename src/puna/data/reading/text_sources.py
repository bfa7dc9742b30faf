"""Read plain text from a file, a folder, a glob, or a corpus directory.

For commands that need only text (tokenizer training and comparison); `build` builds a corpus with filters and
deduplication.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from puna.core.console import say
from puna.core.errors import PunaError
from puna.data.corpus import Corpus
from puna.data.document import Drops
from puna.data.reading.sources import list_inputs, read_documents
from puna.data.recipe import SourceConfig


def read_texts(places: Sequence[str], *, split: str = "train") -> Iterator[tuple[str, str]]:
    """Yield (source, text) of every document in `places`, lazily.

    A file, folder or glob is one source, named as given; a corpus directory has its own sources, of which `split` is
    read ("heldout" falls back to "train" if nothing is held out). Files that are not text are skipped with a note.
    Raises PunaError for a place that does not exist, contains no text, or is corrupt.
    """
    for place in places:
        if (Path(place) / "manifest.json").is_file():
            yield from _corpus_texts(Path(place), split)
        else:
            yield from _file_texts(place)


def _corpus_texts(path: Path, split: str) -> Iterator[tuple[str, str]]:
    corpus = Corpus.open(path)
    if split == "heldout" and not corpus.num_documents("heldout"):
        split = "train"
    for _, source, _, ids in corpus.documents(split):
        yield source, corpus.tokenizer.decode(ids.tolist(), skip_special=True)


def _file_texts(place: str) -> Iterator[tuple[str, str]]:
    if not any(mark in place for mark in "*?[") and not Path(place).exists():
        raise PunaError(f"{place} does not exist.", "Check the path.")
    name = re.sub(r"[^\w.-]+", "_", place).strip("_") or "source"
    source = SourceConfig(name=name, path=place)
    drops = Drops()
    found = False
    for _, document in read_documents(source, list_inputs(source), "drop", drops):
        if document is not None:
            found = True
            yield place, document.text
    dropped = drops.of(name)
    if not found:
        why = f" ({dropped})" if dropped else ""
        raise PunaError(f"{place} contains no text{why}.", "Give files of UTF-8 text, jsonl or parquet.")
    if dropped:
        say(f"{place}: skipped files: {dropped}.")
