"""Word problems and competition mathematics: the model works out a problem and gives a final answer."""

import hashlib
import re
from collections.abc import Callable

from puna.evals.contract import Benchmark, Item, Score, Text
from puna.evals.datasets import EvalData, OnHub, Row
from puna.evals.scoring.answers import LANGUAGES
from puna.evals.scoring.latex import final_answer
from puna.evals.scoring.math_equivalence import equivalent
from puna.evals.scoring.numbers import last_number, same_number

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
    """GSM8K's solution without the calculator's annotations, and its result as a sentence."""
    text, _, result = answer.rpartition("####")
    return re.sub(r"<<[^<>]*>>", "", text).strip() + f"\nThe answer is {result.strip()}."


def number_answer(item: Item, response: str) -> Score:
    """Score 1 if the number that is stated as the answer, or else the last number, is the reference's.

    Numbers are read as in the item's language, its group in MGSM.
    """
    found = last_number(response, item.group if item.group in LANGUAGES else "en")
    right = found is not None and same_number(found, item.target)
    reason = "" if right else "no number" if found is None else "another number"
    return Score(float(right), found or "", reason)


_LANGUAGES = ("de", "es", "fr", "ja", "ru", "sw", "th", "zh")


def _mgsm(data: EvalData) -> list[Item]:
    rows = [
        (language, number, row)
        for language in _LANGUAGES
        for number, row in enumerate(data.rows(f"mgsm/mgsm_{language}.tsv", "question", "answer"))
    ]
    shots = data.rows("gsm8k/train.jsonl", "question", "answer", hub=OnHub("openai/gsm8k", "main", "train"))[:8]
    before = "".join(f"Question: {row['question']}\nAnswer: {_worked(row['answer'])}\n\n" for row in shots)
    return [
        Item(
            f"{language}-{number}",
            Text(
                f"{before}Question: {row['question']}\nAnswer:",
                ("\n\nQuestion:", "Question:"),
                max_tokens=320,
                messages=({"role": "user", "content": f"{row['question']}\n\n{_INSTRUCTION}"},),
            ),
            row["answer"].strip().replace(",", ""),
            group=language,
            body=row["question"],
            reference=f"The answer is {row['answer'].strip()}.",
        )
        for language, number, row in rows
    ]


_BOXED = "Work the problem out step by step and put the final answer in \\boxed{}."
SHOTS = 4
MAX_SHOT = 500
"""The longest solution that serves as an example, in characters."""


def _math(name: str) -> Callable[[EvalData], list[Item]]:
    def load(data: EvalData) -> list[Item]:
        # The examples are not in MATH-500, so that both sets use the same four.
        asked = {row["problem"] for row in data.rows("math/math500_test.json", "problem")}
        rows = data.rows("math/math_test_5000.json", "problem", "solution")
        rest = [row for row in rows if row["problem"] not in asked and len(row["solution"]) <= MAX_SHOT]
        shots = sorted(rest, key=lambda row: hashlib.sha256(row["problem"].encode()).digest())[:SHOTS]
        before = "".join(f"Problem:\n{row['problem']}\n\nSolution:\n{row['solution']}\n\n" for row in shots)
        examples = {row["problem"] for row in shots}
        if name == "math500":
            rows = data.rows("math/math500_test.json", "problem", "solution", "level", "subject")
        return [_math_item(n, row, before) for n, row in enumerate(rows) if row["problem"] not in examples]

    return load


def _math_item(number: int, row: Row, before: str) -> Item:
    return Item(
        str(row.get("unique_id") or row.get("idx") or number),
        Text(
            f"{before}Problem:\n{row['problem']}\n\nSolution:\n",
            ("\n\nProblem:", "Problem:\n"),
            max_tokens=768,
            messages=({"role": "user", "content": f"{row['problem']}\n\n{_BOXED}"},),
        ),
        row.get("answer") or final_answer(row["solution"]) or "",
        group=f"level {str(row['level']).removeprefix('Level ')}",
        body=f"{row['problem']} {row['solution']}",
        reference=row["solution"],
    )


def math_answer(item: Item, response: str) -> Score:
    """Score 1 if the final answer is equivalent to the reference's (see `math_equivalence`)."""
    found = final_answer(response)
    if found is None:
        return Score(0.0, "", "no final answer")
    right = equivalent(found, item.target)
    return Score(float(right), found, "" if right else "another answer")


_GSM8K_PROMPT = "8-shot: the first eight training problems with their worked solutions, ending 'The answer is N.'"
_MATH_PROMPT = (
    "4-shot: four test problems outside MATH-500 with their solutions, not scored; the answer in \\boxed{}; "
    "chat: the problem and an instruction"
)
BENCHMARKS = (
    Benchmark("gsm8k", "GSM8K", ("reasoning", "math"), _gsm8k, number_answer,
              f"{_GSM8K_PROMPT}; chat: the question and an instruction", "the final number is right",
              "Cobbe et al. 2021 (arXiv 2110.14168), test set, MIT"),
    Benchmark("mgsm", "MGSM", ("math",), _mgsm, number_answer,
              f"{_GSM8K_PROMPT}, in English; chat: the question and an instruction in English",
              "the final number is right", "Shi et al. 2022 (arXiv 2210.03057), eight languages, CC-BY-SA-4.0"),
    Benchmark("math500", "MATH-500", ("reasoning", "math"), _math("math500"), math_answer, _MATH_PROMPT,
              "the final answer is the same expression",
              "Hendrycks et al. 2021 (arXiv 2103.03874), the 500 of arXiv 2305.20050, MIT"),
    Benchmark("math", "MATH", ("math",), _math("math"), math_answer, _MATH_PROMPT,
              "the final answer is the same expression", "Hendrycks et al. 2021 (arXiv 2103.03874), test set, MIT"),
)  # fmt: skip
