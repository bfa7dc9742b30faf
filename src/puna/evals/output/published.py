"""The published scores of Llama 2, 3 and 3.1, with their settings: a yardstick, not a race.

Values of base models are from tables 10 and 12 of arXiv 2407.21783 (Llama 3.1, its figures carry 95 % intervals), from
arXiv 2307.09288 (Llama 2) and from Meta's model card of Llama 3 (†: re-run there). A published value may be
compared with one measured here only where shots, prompt and scoring are the same; `SETTINGS` says what each column is,
and `note` where Puna's setting differs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A published benchmark. ours: the benchmark here. note: how it differs, "" if only the wording may."""

    title: str
    settings: str
    ours: str
    note: str


COLUMNS = (
    Column("HumanEval", "0-shot, pass@1", "humaneval", ""),
    Column("MBPP", "3-shot, pass@1", "mbpp", "Llama 3.1: the EvalPlus base set; ours: the 500 test tasks"),
    Column("GSM8K", "8-shot", "gsm8k", "ours: the first eight training problems as examples"),
    Column("MATH", "4-shot", "math500", "ours: MATH-500, four other test problems as examples"),
    Column("MMLU", "5-shot", "mmlu", ""),
    Column("BBH", "3-shot, chain of thought", "bbh", ""),
    Column("ARC-C", "25-shot", "arc_challenge", "ours: zero-shot, validation set"),
)
BASE: dict[str, tuple[str | None, ...]] = {
    "Llama 2 7B": ("12.8", "20.8", "14.6", "2.5", "45.3", "38.1†", "53.7†"),
    "Llama 2 13B": ("18.3", "30.6", "28.7", "3.9", "54.8", "47.0†", "67.6†"),
    "Llama 2 70B": ("29.9", "45.0", "56.8", "13.5", "68.9", "65.7†", "85.3†"),
    "Llama 3 8B": (None, None, None, None, "66.6", "61.1", "78.6"),
    "Llama 3 70B": (None, None, None, None, "79.5", "81.3", "93.0"),
    "Llama 3.1 8B": ("37.2 ± 7.4", "47.6 ± 4.4", "57.2 ± 2.7", "20.3 ± 1.1", "66.7", "64.2", "79.7"),
    "Llama 3.1 70B": ("58.5 ± 7.5", "66.2 ± 4.1", "83.7 ± 2.0", "41.4 ± 1.4", "79.3", "81.6", "92.9"),
    "Llama 3.1 405B": ("61.0 ± 7.5", "73.4 ± 3.9", "89.0 ± 1.7", "53.8 ± 1.4", "85.2", "85.9", "96.1"),
}
SOURCE = (
    "arXiv 2407.21783, tables 10 and 12; arXiv 2307.09288; † re-run by Meta for the model card of Llama 3. "
    "Two sources of Llama 2's MMLU differ by up to 1 point."
)


def own_row(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a model's values for the published columns; "–" if not measured, * where settings differ."""
    by_name = {one["benchmark"]: one for one in results}
    cells = []
    for column in COLUMNS:
        one = by_name.get(column.ours)
        if one is None or one["value"] is None:
            cells.append("–")
            continue
        low, high = one["interval"]
        part = "" if one["items"] == one["of"] else f", {one['items']:,} items"
        cells.append(
            f"{100 * one['value']:.1f} ({100 * low:.1f} to {100 * high:.1f}{part})" + ("*" if column.note else "")
        )
    return cells
