"""BIG-Bench Hard: 27 tasks that need several steps of reasoning, each after its three worked examples."""

import re

from puna.evals.contract import Benchmark, Item, Score, Text
from puna.evals.datasets import EvalData

TASKS = (
    "boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages",
    "formal_fallacies", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects",
    "logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation",
    "multistep_arithmetic_two", "navigate", "object_counting", "penguins_in_a_table",
    "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks",
    "sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects", "web_of_lies", "word_sorting",
)  # fmt: skip


def _load(data: EvalData) -> list[Item]:
    items = []
    for task in TASKS:
        # The first line is the canary, the second a line of dashes.
        shots = data.text(f"bbh/cot-prompts/{task}.txt").partition("-----\n")[2].strip()
        for number, row in enumerate(data.json(f"bbh/{task}.json")["examples"]):
            asked = f"{shots}\n\nQ: {row['input']}\nA: Let's think step by step.\n"
            ask = Text(
                asked, ("\n\nQ:", "\nQ:"), max_tokens=400, messages=({"role": "user", "content": asked.strip()},)
            )
            said = f"So the answer is {row['target']}."
            items.append(Item(f"{task}-{number}", ask, row["target"], task, f"{row['input']} {row['target']}", said))
    return items


def answer(item: Item, response: str) -> Score:
    """Score 1 if the text after the last "answer is" is the target, ignoring case, brackets and full stop."""
    place = response.lower().rfind("answer is")
    if place < 0:
        return Score(0.0, "", "no 'answer is'")
    found = response[place + len("answer is") :].split("\n")[0].strip()
    right = _plain(found) == _plain(item.target)
    return Score(float(right), found[:200], "" if right else "another answer")


def _plain(text: str) -> str:
    text = text[:2000].strip(" :*.")
    if letter := re.match(r"\(([A-R])\)", text):
        return letter.group(1).lower()
    # In the task about brackets, brackets are the answer.
    return " ".join((text.strip("()") if re.search(r"\w", text) else text).lower().split())


BENCHMARKS = (
    Benchmark("bbh", "BIG-Bench Hard", ("reasoning",), _load, answer,
              "3-shot with chain of thought, the authors' examples; the text behind the last 'answer is'",
              "the answer is the target, all items alike", "Suzgun et al. 2022 (arXiv 2210.09261), MIT"),
)  # fmt: skip
