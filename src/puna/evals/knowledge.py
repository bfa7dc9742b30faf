"""Multiple choice: what a model holds for likelier. Knowledge, common sense and reading.

Formats are those of lm-evaluation-harness, so that scores can be set beside published ones: the question, a blank, each
answer's text, and the likeliest wins (MMLU: the letters A to D after five examples of the subject). Where long answers
would lose by their length alone, the log probability is divided by the answer's characters.
"""

from collections.abc import Callable, Sequence
from typing import Any

from puna.evals.benchmark import Benchmark, Choices, Item, likeliest
from puna.evals.files import EvalData, OnHub

LETTERS = "ABCDEFGHIJ"


def _arc(name: str, config: str) -> Callable[[EvalData], list[Item]]:
    def load(data: EvalData) -> list[Item]:
        rows = data.rows(
            f"mc/{name}_validation.jsonl",
            "id",
            "question",
            "choices",
            "answerKey",
            hub=OnHub("allenai/ai2_arc", config, "validation"),
        )
        return [
            _asked(
                row["id"],
                f"Question: {row['question']}\nAnswer:",
                row["choices"]["text"],
                row["choices"]["label"].index(row["answerKey"]),
            )
            for row in rows
        ]

    return load


def _asked(id: Any, context: str, choices: Sequence[str], right: int, *, group: str = "", body: str = "") -> Item:
    return Item(str(id), Choices.after(context, choices), right, group, body or f"{context} {choices[right]}")


BENCHMARKS = (
    Benchmark(
        "arc_easy",
        "ARC-Easy",
        ("knowledge",),
        _arc("arc_easy", "ARC-Easy"),
        likeliest("character"),
        "zero-shot; 'Question: …\\nAnswer:' and each answer's text",
        "accuracy, log probability per character",
        "Clark et al. 2018 (arXiv 1803.05457), validation set, CC-BY-SA-4.0",
    ),
)
