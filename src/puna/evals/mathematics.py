"""Word problems and competition mathematics: the model works a problem out and gives a final answer."""

from puna.evals.benchmark import Benchmark, Item, Score, Text
from puna.evals.files import EvalData, OnHub
from puna.evals.numbers import last_number, same_number

_INSTRUCTION = "Work the problem out step by step. End with a line that says: The answer is N."


def _gsm8k(data: EvalData) -> list[Item]:
    hub = [OnHub("openai/gsm8k", "main", split) for split in ("test", "train")]
    rows = data.rows("gsm8k/test.jsonl", "question", "answer", hub=hub[0])
    shots = data.rows("gsm8k/train.jsonl", "question", "answer", hub=hub[1])[:8]
    before = "".join(f"Question: {row['question']}\nAnswer: {_worked(row['answer'])}\n\n" for row in shots)
    items = []
    for number, row in enumerate(rows):
        worked = _worked(row["answer"])
        items.append(
            Item(
                f"test-{number}",
                Text(
                    f"{before}Question: {row['question']}\nAnswer:",
                    ("\n\nQuestion:", "Question:"),
                    max_tokens=320,
                    messages=({"role": "user", "content": f"{row['question']}\n\n{_INSTRUCTION}"},),
                ),
                row["answer"].rpartition("####")[2].strip().replace(",", ""),
                body=f"{row['question']} {worked}",
                reference=worked,
            )
        )
    return items


def _worked(answer: str) -> str:
    """GSM8K's solution without the calculator's marks, its result as a sentence."""
    import re

    text, _, result = answer.rpartition("####")
    return re.sub(r"<<[^<>]*>>", "", text).strip() + f"\nThe answer is {result.strip()}."


def number_answer(item: Item, response: str) -> Score:
    """Right when the number behind the last "answer is", or else the last number, is the reference's."""
    found = last_number(response)
    right = found is not None and same_number(found, item.target)
    reason = "" if right else "no number" if found is None else "another number"
    return Score(float(right), found or "", reason)


BENCHMARKS = (
    Benchmark(
        "gsm8k",
        "GSM8K",
        ("reasoning", "math"),
        _gsm8k,
        number_answer,
        "8-shot: the first eight training problems with their worked solutions, ending 'The answer is N.'; "
        "chat: the question and an instruction",
        "the final number is right",
        "Cobbe et al. 2021 (arXiv 2110.14168), test set, MIT",
    ),
)
