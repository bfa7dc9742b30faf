"""DCLM's CORE set: 20 of its 22 tasks, each with its own number of examples.

Examples are other rows of the same file, the same for all questions (the original draws new ones for each), separated
by an empty line. Choices are compared by log probability per token; of a continuation every token must be the
likeliest. A task's centred accuracy is (accuracy - baseline) / (1 - baseline) with CORE's own baselines, and CORE is
their mean. Jeopardy and CoQA are missing, HellaSwag is a sample of 1,000, and SQuAD is XQuAD's English part, which was
taken from it: the reported value is a mean of 20 tasks, and says so.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from puna.evals.contract import Benchmark, Choices, Item, exact_continuation, most_likely
from puna.evals.datasets import EvalData, Row

SUITE = "core"


class CoreTask(NamedTuple):
    """kind: choice, schema (two beginnings, one end) or continuation. baseline: what CORE subtracts."""

    name: str
    title: str
    folder: str
    kind: str
    shots: int
    baseline: float
    join: str = " "
    file: str = ""


TASKS = (
    CoreTask("bigbench_qa_wikidata", "Wikidata questions", "world_knowledge", "continuation", 10, 0.0),
    CoreTask("arc_easy", "ARC-Easy", "world_knowledge", "choice", 10, 0.25, "\nAnswer: "),
    CoreTask("arc_challenge", "ARC-Challenge", "world_knowledge", "choice", 10, 0.25, "\nAnswer: "),
    CoreTask("copa", "COPA", "commonsense_reasoning", "choice", 0, 0.5),
    CoreTask("commonsense_qa", "CommonsenseQA", "commonsense_reasoning", "choice", 10, 0.25),
    CoreTask("piqa", "PIQA", "commonsense_reasoning", "choice", 10, 0.5, "\nAnswer: "),
    CoreTask("openbook_qa", "OpenBookQA", "commonsense_reasoning", "choice", 0, 0.25),
    CoreTask("lambada_openai", "LAMBADA", "language_understanding", "continuation", 0, 0.0),
    CoreTask("winograd", "Winograd", "language_understanding", "schema", 0, 0.5, file="winograd_wsc"),
    CoreTask("winogrande", "WinoGrande", "language_understanding", "schema", 0, 0.5),
    CoreTask("bigbench_dyck_languages", "Dyck languages", "symbolic_problem_solving", "continuation", 10, 0.0),
    CoreTask("agi_eval_lsat_ar", "LSAT analytical reasoning", "symbolic_problem_solving", "choice", 3, 0.25),
    CoreTask("bigbench_cs_algorithms", "Algorithms", "symbolic_problem_solving", "continuation", 10, 0.0),
    CoreTask("bigbench_operators", "Operators", "symbolic_problem_solving", "continuation", 10, 0.0),
    CoreTask("bigbench_repeat_copy_logic", "Repeat and copy", "symbolic_problem_solving", "continuation", 10, 0.0),
    CoreTask("boolq", "BoolQ", "reading_comprehension", "choice", 10, 0.62, "\nAnswer: "),
    CoreTask("bigbench_language_identification", "Language identification", "language_understanding", "choice", 10,
             0.091),
    CoreTask("hellaswag_zeroshot", "HellaSwag, no examples", "", "choice", 0, 0.25),
    CoreTask("hellaswag", "HellaSwag", "", "choice", 10, 0.25),
    CoreTask("squad", "SQuAD", "", "continuation", 10, 0.0),
)  # fmt: skip


def _load(task: CoreTask) -> Callable[[EvalData], list[Item]]:
    columns = {"choice": ("query", "choices", "gold"), "schema": ("context_options", "continuation", "gold"),
               "continuation": ("context", "continuation")}[task.kind]  # fmt: skip

    def load(data: EvalData) -> list[Item]:
        if task.name == "squad":
            rows = _squad(data)
        elif task.name.startswith("hellaswag"):
            held = data.rows("mc/hellaswag_val_1000.jsonl", "ctx", "endings", "label")
            rows = [{"query": row["ctx"], "choices": row["endings"], "gold": int(row["label"])} for row in held]
        else:
            rows = data.rows(f"icl/{task.folder}/{task.file or task.name}.jsonl", *columns)
        order = sorted(range(len(rows)), key=lambda n: hashlib.sha256(f"{task.name}/{n}".encode()).digest())
        items = []
        for number, row in enumerate(rows):
            shots = [rows[n] for n in order[: task.shots + 1] if n != number][: task.shots]
            before = "".join(f"{_answered(task, shot)}\n\n" for shot in shots)
            items.append(_item(task, str(number), row, before))
        return items

    return load


def _item(task: CoreTask, id: str, row: Row, before: str) -> Item:
    body = _answered(task, row)
    if task.kind == "choice":
        ask = Choices.after(before + row["query"].rstrip(), row["choices"], join=task.join)
        return Item(id, ask, row["gold"], body=body)
    if task.kind == "schema":
        contexts = tuple(before + option.rstrip() for option in row["context_options"])
        ask = Choices(contexts, (task.join + row["continuation"],) * len(contexts))
        return Item(id, ask, row["gold"], body=body, reference=row["context_options"][row["gold"]])
    ask = Choices((before + row["context"].rstrip(),), (task.join + row["continuation"],))
    return Item(id, ask, 0, body=body, reference=row["continuation"])


def _answered(task: CoreTask, row: Row) -> str:
    if task.kind == "choice":
        return row["query"].rstrip() + task.join + row["choices"][row["gold"]]
    if task.kind == "schema":
        return row["context_options"][row["gold"]].rstrip() + task.join + row["continuation"]
    return row["context"].rstrip() + task.join + row["continuation"]


def _squad(data: EvalData) -> list[Row]:
    return [
        {
            "context": f"Context: {paragraph['context']}\nQuestion: {question['question']}\nAnswer:",
            "continuation": question["answers"][0]["text"],
        }
        for article in data.json("xquad/xquad.en.json")["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def centred(results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return CORE over the results that belong to it: tasks and mean centred accuracy; None without any."""
    by_name = {f"core_{task.name}": task for task in TASKS}
    found = {
        one["benchmark"]: (one["value"] - task.baseline) / (1 - task.baseline)
        for one in results
        if (task := by_name.get(one["benchmark"])) and one["value"] is not None
    }
    if not found:
        return None
    return {"tasks": len(found), "of": 22, "value": sum(found.values()) / len(found), "centred": found}


def _benchmark(task: CoreTask) -> Benchmark:
    scorer = exact_continuation if task.kind == "continuation" else most_likely("token")
    metric = {
        "choice": "accuracy, log probability per token",
        "schema": "accuracy: the beginning after which the end is likelier",
        "continuation": "every token of the continuation is the likeliest",
    }[task.kind]
    return Benchmark(
        f"core_{task.name}",
        f"CORE: {task.title}",
        (SUITE,),
        _load(task),
        scorer,
        f"{task.shots}-shot" + ("; examples from the same file, the same for all" if task.shots else ""),
        metric,
        "DCLM (arXiv 2406.11794), files of MosaicML's gauntlet, Apache-2.0",
        chance=0.0 if task.kind == "continuation" else None,
    )


BENCHMARKS = tuple(map(_benchmark, TASKS))
