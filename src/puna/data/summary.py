"""A summary of a corpus as plain values, for `puna data inspect` and the message after a build."""

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np

from puna.data.corpus import Corpus

_COUNTED = 20_000_000  # tokens examined for the most common ones; more would not change the picture
_BAR = 40  # characters of the longest bar
_START = 240  # characters shown of each document


def summarise(corpus: Corpus, documents: int = 3) -> dict[str, Any]:
    """Counts, sources, licences, drops, lengths, common tokens and the start of a few documents, JSON-ready."""
    manifest = corpus.manifest
    drops: Counter[str] = Counter()
    for reasons in manifest["drops"].values():
        drops.update({reason: count["documents"] for reason, count in reasons.items()})
    return {
        "name": manifest["name"],
        "path": str(corpus.path),
        "content_hash": corpus.content_hash,
        "dtype": manifest["dtype"],
        "tokenizer": {key: value for key, value in manifest["tokenizer"].items() if key != "files"},
        "splits": {
            split: {key: content[key] for key in ("documents", "tokens", "bytes")}
            for split, content in manifest["splits"].items()
        },
        "bytes_per_token": corpus.num_bytes() / max(1, corpus.num_tokens()),
        "stream_tokens": corpus.stream_tokens,
        "sources": manifest["sources"],
        "licences": {split: content["licences"] for split, content in manifest["splits"].items()},
        "drops": manifest["drops"],
        "drops_by_reason": dict(drops.most_common()),
        "document_tokens": document_lengths(corpus),
        "commonest_tokens": most_common_tokens(corpus),
        "documents": [
            {
                "name": name,
                "source": source,
                "licence": licence,
                "tokens": len(ids),
                "start": corpus.tokenizer.decode(ids[:_START].tolist(), skip_special=True)[:_START],
            }
            for name, source, licence, ids in islice(corpus.documents(), documents)
        ],
    }


def document_lengths(corpus: Corpus) -> list[dict[str, int]]:
    """Training documents by length in tokens, in powers of two: {"from", "to", "documents", "tokens"}."""
    lengths = np.concatenate([np.diff(shard.starts) for shard in corpus.shards("train")])
    power = np.frexp(lengths.astype(np.float64))[1] - 1  # floor(log2), exact
    return [
        {
            "from": 1 << int(k),
            "to": (2 << int(k)) - 1,
            "documents": int((power == k).sum()),
            "tokens": int(lengths[power == k].sum()),
        }
        for k in range(int(power.min()), int(power.max()) + 1)
    ]


def most_common_tokens(corpus: Corpus, count: int = 12) -> list[dict[str, Any]]:
    """The most common tokens of the training split: {"id", "text", "share"}."""
    counts = np.zeros(corpus.vocab_size, dtype=np.int64)
    left = _COUNTED
    for shard in corpus.shards("train"):
        counts += np.bincount(shard.tokens[:left], minlength=corpus.vocab_size)
        left -= min(left, len(shard.tokens))
    top = np.argsort(-counts, kind="stable")[:count]
    return [
        {"id": int(i), "text": corpus.tokenizer.decode([int(i)]), "share": float(counts[i] / counts.sum())}
        for i in top
        if counts[i]
    ]


def bar(value: float, largest: float) -> str:
    """A text bar for one row of a histogram."""
    return "█" * round(_BAR * value / largest) if largest else ""
