"""Compare how well tokenizers compress: UTF-8 bytes per token by source, on the same text."""

from collections.abc import Iterable, Mapping
from typing import Any

from puna.core.errors import PunaError
from puna.text.tokenizer import Tokenizer, batches


def compare(tokenizers: Mapping[str, Tokenizer], texts: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Measure `tokenizers` (by name) on (source, text) pairs, which are read once and never held in memory together.

    Returns a row for each source in the order of appearance, then the row "all":
    {"source", "documents", "bytes", "tokens": {name: n}, "bytes_per_token": {name: x}}.
    Raises PunaError when there is no text.
    """
    rows: dict[str, dict[str, Any]] = {}
    for batch in batches(texts):
        for source in dict.fromkeys(source for source, _ in batch):
            row = rows.setdefault(source, _row(source, tokenizers))
            _count(row, tokenizers, [text for name, text in batch if name == source])
    total = _row("all", tokenizers)
    for row in rows.values():
        total["documents"] += row["documents"]
        total["bytes"] += row["bytes"]
        for name in tokenizers:
            total["tokens"][name] += row["tokens"][name]
    if not total["bytes"]:
        raise PunaError("There is no text to measure the tokenizers on.", "Give files that contain some.")
    result = [*rows.values(), total]
    for row in result:
        row["bytes_per_token"] = {name: row["bytes"] / n if n else None for name, n in row["tokens"].items()}
    return result


def _row(source: str, tokenizers: Mapping[str, Tokenizer]) -> dict[str, Any]:
    return {"source": source, "documents": 0, "bytes": 0, "tokens": dict.fromkeys(tokenizers, 0)}


def _count(row: dict[str, Any], tokenizers: Mapping[str, Tokenizer], texts: list[str]) -> None:
    row["documents"] += len(texts)
    row["bytes"] += sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    for name, tokenizer in tokenizers.items():
        row["tokens"][name] += sum(map(len, tokenizer.encode_batch(texts)))
