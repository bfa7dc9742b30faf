"""Build a corpus directory: read, filter, remove duplicates, hold out, tokenise, write.

A build has two passes. The first streams every document through the rules that need no other document, and spools the
rest to disk with their MinHash signatures. Then near duplicates are removed, and the second pass reads the spool in
shuffled order, trains the tokenizer if the recipe asks for one, and writes the shards. All files are written to a
temporary folder, which becomes the corpus when it is complete: an interrupted build leaves nothing.

No held-out document has a near duplicate in the training split: of such a pair the held-out one is dropped, so that the
held-out split measures unseen text.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from puna.core.console import progress, say
from puna.core.errors import PunaError
from puna.core.files import new_directory, require_space, sha256_file, write_json
from puna.core.units import format_bytes
from puna.data.cleaning.decontaminate import Evaluations
from puna.data.cleaning.dedup import ExactDuplicates, Signatures, near_duplicates
from puna.data.cleaning.filters import make_filter
from puna.data.corpus import FORMAT, VERSION
from puna.data.document import Document, Drops, Input
from puna.data.reading.file_types import suffix
from puna.data.reading.sources import list_inputs, read_documents
from puna.data.recipe import DataRecipe, HeldoutConfig, SourceConfig
from puna.data.shards import ShardWriter, token_dtype
from puna.data.spool import Spool
from puna.version import __version__

if TYPE_CHECKING:
    from puna.text.tokenizer import Tokenizer

_BATCH_BYTES = 4_000_000  # text encoded per batch: enough for all cores, little in memory
_PACKED_RATIO = 4  # text is about this many times as large as its parquet or compressed file
_BYTES_PER_TOKEN = 2.5  # cautious: a small vocabulary has 3 to 3.5 on code and prose, a large one more
_EPOCHS_WORTH = 4  # so many passes over the same data teach about as much as new data (arXiv 2305.16264)


@dataclass(frozen=True)
class EarlierStages:
    """The results of stages that ran elsewhere (see `cluster`), for the manifest.

    recipe and inputs: the original ones; read: source -> [documents, bytes]; drops: what those stages dropped.
    """

    recipe: DataRecipe
    inputs: dict[str, list[Input]]
    read: dict[str, list[int]]
    drops: Drops


def build_corpus(
    recipe: DataRecipe, out: Path, *, replace: bool = False, earlier: EarlierStages | None = None
) -> dict[str, Any]:
    """Build the corpus `recipe` describes at `out` and return its manifest.

    replace: replace an existing `out` when the new one is complete. earlier: stages that are already done. Raises
    PunaError for invalid sources, for a source with no documents left, for lack of space, and when `out` exists.
    """
    out = Path(out)
    inputs = {source.name: list_inputs(source, recipe.root) for source in recipe.sources}
    tokenizer = _given_tokenizer(recipe)
    evaluations = Evaluations(recipe.decontaminate)
    text_bytes = sum(_text_size(item) for items in inputs.values() for item in items)
    require_space(out.parent, round(text_bytes * (1 + 2 / _BYTES_PER_TOKEN)), f"Building {out.name}")

    drops, read = Drops(), {source.name: [0, 0] for source in recipe.sources}
    with new_directory(out, replace=replace) as folder:
        signatures = Signatures(recipe.dedup, recipe.seed) if recipe.dedup.minhash else None
        spool = Spool(folder / ".spool", signatures.functions if signatures else 0)
        try:
            _read(recipe, inputs, evaluations, signatures, spool, drops, read)
            spool.seal()
            kept = _remove_near_duplicates(recipe, spool, drops)
            if earlier:
                drops.merge(earlier.drops.counts)
                read = earlier.read
            _require_documents(recipe, spool, kept, read, drops)
            order = np.random.default_rng(recipe.seed).permutation(kept)
            tokenizer = tokenizer or _train_tokenizer(recipe, spool, order)
            tokenizer.save(folder / "tokenizer")
            splits = _write(recipe, spool, order, tokenizer, folder, out)
        finally:
            spool.remove()
        if earlier:
            recipe, inputs = earlier.recipe, earlier.inputs
        manifest = _manifest(recipe, folder, tokenizer, splits, inputs, read, drops)
        write_json(folder / "manifest.json", manifest)
    return manifest


def is_heldout(document: Document, source: SourceConfig, config: HeldoutConfig) -> bool:
    """Whether a document is held out, which depends only on its name (or text)."""
    if source.heldout:
        return True
    key = document.name if config.by == "name" else document.text
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:8], "big")
    return number < config.share * 2**64


def _read(
    recipe: DataRecipe,
    inputs: dict[str, list[Input]],
    evaluations: Evaluations,
    signatures: Signatures | None,
    spool: Spool,
    drops: Drops,
    read: dict[str, list[int]],
) -> None:
    """First pass: all rules that look at one document, and exact duplicates."""
    reason_to_drop = make_filter(recipe.filters)
    exact = ExactDuplicates() if recipe.dedup.exact else None
    # Training sources first: of two equal documents the first is kept, and that should be the one to train on.
    numbered = sorted(enumerate(recipe.sources), key=lambda pair: pair[1].heldout)
    megabytes = sum(_text_size(item) for items in inputs.values() for item in items) / 1e6
    with progress(transient=True) as bar:
        task = bar.add_task("reading, MB", total=max(1, round(megabytes)))
        done = 0.0
        for number, source in numbered:
            within = 0.0
            for item, document in read_documents(source, inputs[source.name], recipe.filters.invalid_utf8, drops):
                if document is None:
                    done, within = done + _text_size(item) / 1e6, 0.0
                    bar.update(task, completed=done)
                    continue
                size = len(document.text.encode("utf-8"))
                read[source.name][0] += 1
                read[source.name][1] += size
                within += size / 1e6
                bar.update(task, completed=done + min(within, _text_size(item) / 1e6))
                reason = reason_to_drop(document)
                if not reason and (found := evaluations.match(document.text)):
                    reason = f"contaminated.{found}"
                if not reason and exact and exact.seen(document.text):
                    reason = "exact_duplicate"
                if reason:
                    drops.add(source.name, reason, size)
                    continue
                signature = signatures.of(document.text) if signatures else None
                spool.add(document, number, is_heldout(document, source, recipe.heldout), signature)


def _remove_near_duplicates(recipe: DataRecipe, spool: Spool, drops: Drops) -> np.ndarray:
    """Numbers of the documents that are kept, ascending.

    Of a cluster one document is kept: its first training document, or its first one if all are held out.
    """
    everything = np.arange(len(spool))
    if not recipe.dedup.minhash or not len(spool):
        return everything
    cluster = near_duplicates(spool.signatures(), recipe.dedup)
    heldout, sizes, sources = spool.heldout, spool.sizes, spool.sources
    order = np.lexsort((everything, heldout, cluster))  # by cluster; training before held out; in document order
    first = np.ones(len(order), dtype=bool)
    first[1:] = cluster[order][1:] != cluster[order][:-1]
    training = ~heldout[order[first]][np.cumsum(first) - 1]  # whether the cluster keeps a training document
    for number, from_training in zip(order[~first].tolist(), training[~first].tolist(), strict=True):
        reason = "near_duplicate_of_training" if heldout[number] and from_training else "near_duplicate"
        drops.add(recipe.sources[sources[number]].name, reason, int(sizes[number]))
    return np.sort(order[first])


def _require_documents(
    recipe: DataRecipe, spool: Spool, kept: np.ndarray, read: dict[str, list[int]], drops: Drops
) -> None:
    left = np.bincount(spool.sources[kept], minlength=len(recipe.sources))
    for source, number in zip(recipe.sources, left.tolist(), strict=True):
        if not number:
            count, why = read[source.name][0], drops.of(source.name)
            raise PunaError(
                f"Source '{source.name}': no document is left of {count:,}{f' ({why})' if why else ''}.",
                "Relax the filters, check the path, or remove the source.",
            )
    heldout = spool.heldout[kept]
    if heldout.all():
        raise PunaError(
            f"All {len(kept):,} documents are held out, so there is nothing to train on.",
            "Lower heldout.share or add documents.",
        )
    if recipe.heldout.share and not heldout.any():
        say(f"None of {len(kept):,} documents is held out. Raise heldout.share to get some.")


def _given_tokenizer(recipe: DataRecipe) -> "Tokenizer | None":
    from puna.text.tokenizer import Tokenizer

    if not recipe.tokenizer.path:
        return None
    tokenizer = Tokenizer.load(Path(recipe.tokenizer.path).expanduser())
    say(f"Tokenizer {recipe.tokenizer.path}: {tokenizer.choices}.")
    return tokenizer


def _train_tokenizer(recipe: DataRecipe, spool: Spool, order: np.ndarray) -> "Tokenizer":
    """Train on training documents in shuffled order, up to `sample_bytes`."""
    from puna.text.tokenizer import train_tokenizer

    training = order[~spool.heldout[order]]
    sizes = spool.sizes[training]
    within = training[: int(np.searchsorted(np.cumsum(sizes), recipe.tokenizer.sample_bytes)) + 1]
    sample = format_bytes(int(spool.sizes[within].sum()))
    say(f"Training a tokenizer of {recipe.tokenizer.vocab_size:,} tokens on {sample} of training text.")
    return train_tokenizer((spool.text(number) for number in within.tolist()), recipe.tokenizer.vocab_size)


def _write(
    recipe: DataRecipe, spool: Spool, order: np.ndarray, tokenizer: "Tokenizer", folder: Path, out: Path
) -> dict[str, dict[str, Any]]:
    """Second pass: tokenise in shuffled order and write the shards. Returns the splits for the manifest."""
    dtype = token_dtype(tokenizer.vocab_size)
    sizes, sources, heldout = spool.sizes, spool.sources, spool.heldout
    needed = int(sizes[order].sum() / _BYTES_PER_TOKEN * np.dtype(dtype).itemsize)
    require_space(out.parent, needed, f"Writing the tokens of {out.name}")
    end = tokenizer.eos_ids[:1]
    bos = tokenizer.bos_id is not None
    licences: dict[str, dict[str, dict[str, int]]] = {"train": {}, "heldout": {}}
    writers = {
        (split, number): ShardWriter(folder, f"{split}/{source.name}", dtype, recipe.shard_tokens)
        for split in licences
        for number, source in enumerate(recipe.sources)
    }
    with progress(transient=True) as bar:
        task = bar.add_task("tokenising, documents", total=len(order))
        for numbers in _batches(order, sizes):
            encoded = tokenizer.encode_batch([spool.text(number) for number in numbers], bos=bos)
            for number, ids in zip(numbers, encoded, strict=True):
                split = "heldout" if heldout[number] else "train"
                name, licence, size = spool.name(number), spool.licence(number), int(sizes[number])
                tokens = np.array(ids + end, dtype=dtype)
                writers[split, int(sources[number])].add(tokens, name, licence, size)
                count = licences[split].setdefault(licence, {"documents": 0, "tokens": 0, "bytes": 0})
                count["documents"] += 1
                count["tokens"] += len(tokens)
                count["bytes"] += size
            bar.update(task, advance=len(numbers))
    splits: dict[str, dict[str, Any]] = {}
    for split, by_licence in licences.items():
        shards = []
        for number, source in enumerate(recipe.sources):
            writers[split, number].close()
            shards += [{"source": source.name, **shard} for shard in writers[split, number].shards]
        totals = {key: sum(shard[key] for shard in shards) for key in ("documents", "tokens", "bytes")}
        splits[split] = {**totals, "licences": dict(sorted(by_licence.items())), "shards": shards}
    return splits


def _batches(order: np.ndarray, sizes: np.ndarray) -> Iterator[list[int]]:
    numbers: list[int] = []
    size = 0
    for number in order.tolist():
        numbers.append(number)
        size += int(sizes[number])
        if size >= _BATCH_BYTES:
            yield numbers
            numbers, size = [], 0
    if numbers:
        yield numbers


def _manifest(
    recipe: DataRecipe,
    folder: Path,
    tokenizer: "Tokenizer",
    splits: dict[str, dict[str, Any]],
    inputs: dict[str, list[Input]],
    read: dict[str, list[int]],
    drops: Drops,
) -> dict[str, Any]:
    sources = []
    for source in recipe.sources:
        shards = {split: [s for s in splits[split]["shards"] if s["source"] == source.name] for split in splits}
        totals = {
            split: {key: sum(shard[key] for shard in shards[split]) for key in ("documents", "tokens", "bytes")}
            for split in shards
        }
        entry = {"name": source.name, "kind": source.kind, "licence": source.licence, "files": len(inputs[source.name])}
        if source.kind == "hub":
            entry |= {"id": source.id, "revision": inputs[source.name][0].revision}
        sources.append(entry | {"documents_read": read[source.name][0], "bytes_read": read[source.name][1], **totals})
    _mix(recipe, folder, sources, splits)
    content = {
        "tokenizer": tokenizer.hash,
        "stream": [[source["name"], source["stream_tokens"]] for source in sources],
        "shards": [[s["file"], s["sha256"]] for split in splits.values() for s in split["shards"]],
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": recipe.name,
        "made_by": f"puna {__version__}",
        "content_hash": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "dtype": token_dtype(tokenizer.vocab_size),
        "tokenizer": {
            "hash": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "end_id": tokenizer.eos_ids[0] if tokenizer.eos_ids else None,
            "files": {path.name: sha256_file(path) for path in sorted((folder / "tokenizer").iterdir())},
        },
        "sources": sources,
        "drops": {
            source: {reason: {"documents": n, "bytes": size} for reason, (n, size) in sorted(reasons.items())}
            for source, reasons in sorted(drops.counts.items())
        },
        "splits": splits,
        # Without the setting that depends on the machine, so that the same recipe gives the same manifest anywhere.
        "recipe": recipe.model_dump(mode="json", exclude={"root"}),
    }


def _mix(recipe: DataRecipe, folder: Path, sources: list[dict[str, Any]], splits: dict[str, dict[str, Any]]) -> None:
    """Add to each source how often the training stream passes over it: `epochs` and `stream_tokens`.

    A partial pass ends at a document's end; as documents are shuffled, it is a random part.
    """
    training = [source for source in recipe.sources if not source.heldout]
    total_weight = sum(source.weight for source in training)
    length = recipe.stream_tokens or splits["train"]["tokens"]
    for config, entry in zip(recipe.sources, sources, strict=True):
        tokens = entry["train"]["tokens"]
        epochs = config.epochs
        if total_weight and tokens:
            epochs = config.weight / total_weight * length / tokens
        whole = int(epochs)
        wanted = round((epochs - whole) * tokens)
        part = 0
        for shard in splits["train"]["shards"]:
            if shard["source"] == config.name and part < wanted:
                starts = np.fromfile(folder / f"{shard['file']}.index", dtype="<i8")[: shard["documents"] + 1]
                part += int(starts[min(np.searchsorted(starts, wanted - part), shard["documents"])])
        entry["epochs"] = round(epochs, 6) if tokens else 0.0
        entry["stream_tokens"] = whole * tokens + part
        if epochs > _EPOCHS_WORTH and tokens:
            say(f"Source '{config.name}' is repeated {epochs:.1f} times; beyond about 4, repeats teach less and less.")


def _text_size(item: Input) -> int:
    """Expected bytes of text in a file."""
    ending, packed = suffix(item.name)
    return item.size * (_PACKED_RATIO if packed or ending == ".parquet" else 1)
