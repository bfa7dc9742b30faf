"""Compare the scores of lm-evaluation-harness and Puna on the same items and model.

    PUNA_LM_EVAL_PYTHON=…/bin/python python bench/lm_eval_scores.py

PUNA_LM_EVAL_PYTHON is a Python with `lm-eval[api]` that can also import puna (an environment whose site-packages has a
.pth file with Puna's). The same questions are answered in three ways: by Puna's runner; by the harness on Puna's engine
in its own process (`puna eval --lm-eval`); and by the harness through Puna's server, as any client would use it, with
its `local-completions`: token ids, echo, logprobs, and the model's tokenizer as transformers reads it. The model is
stories260K, a real one that is small enough for a CPU, float32. Tasks are rows of ARC-Easy and HellaSwag
(loglikelihoods) and of LAMBADA, whose last word is generated here (generate_until), from PUNA_TEST_DATA; nothing is
downloaded.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

TASKS: dict[str, dict[str, Any]] = {
    "arc_easy": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices.text}}",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "hellaswag": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{ctx}}",
        "doc_to_choice": "{{endings}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "lambada_words": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{continuation}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "filter_list": [
            {
                "name": "none",
                "filter": [{"function": "regex", "regex_pattern": r"^\s*(\w+)"}, {"function": "take_first"}],
            }
        ],
        "metric_list": [{"metric": "exact_match"}],
    },
}
FILES = {
    "arc_easy": "mc/arc_easy_validation.jsonl",
    "hellaswag": "mc/hellaswag_val_1000.jsonl",
    "lambada_words": "icl/language_understanding/lambada_openai.jsonl",
}
CONTEXT = 512
TOLERANCE = 5e-4  # for loglikelihoods through the server, whose batches round differently: sums of up to 150 logprobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=200, help="rows per task (default 200)")
    parser.add_argument("--worker", metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(Path(args.worker))
        return
    python, data = os.environ.get("PUNA_LM_EVAL_PYTHON"), os.environ.get("PUNA_TEST_DATA")
    if not python or not data:
        sys.exit("Set PUNA_LM_EVAL_PYTHON and PUNA_TEST_DATA: see the docstring of this file.")
    import conformance
    import stories

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = stories.make(Path(data) / "weights" / "stories260K", place / "stories260K")
        ours = our_way(model, Path(data), place, args.limit)
        command = [sys.executable, "-m", "puna", "serve", str(model), "--no-page", "--device", "cpu"]
        with conformance.running([*command, "--dtype", "float32", "--port"]) as (url, _):
            offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": folder}
            environment = {**os.environ, **offline, "SERVED": url}
            subprocess.run([python, __file__, "--worker", folder], check=True, env=environment, stdout=sys.stderr)
        theirs = json.loads((place / "harness.json").read_text(encoding="utf-8"))
    results = {
        "versions": theirs["versions"],
        "tasks": {name: compared(ours[name], theirs["tasks"][name]) for name in TASKS},
    }
    print(json.dumps(results, indent=2))
    settings = {"rows": args.limit, "tolerance_served": TOLERANCE, "dtype": "float32", "model": "stories260K"}
    common.save("lm-eval-scores", settings, results)
    if not all(task["equal"] for task in results["tasks"].values()):
        sys.exit("The scores differ.")


def our_way(model: Path, data: Path, place: Path, limit: int) -> dict[str, Any]:
    """Scores and answers of Puna's runner; writes the same rows as task files for the harness."""
    from puna.engine.generate import load_engine
    from puna.evals.catalogue import BENCHMARKS
    from puna.evals.contract import Benchmark, Item, Score, Text
    from puna.evals.datasets import EvalData
    from puna.evals.runner import run

    def score(item: Item, response: str) -> Score:
        found = re.match(r"\s*(\w+)", response)
        return Score(float(found is not None and found.group(1) == item.target))

    def words(held: EvalData) -> list[Item]:
        rows = held.rows(FILES["lambada_words"])
        return [Item(str(n), Text(r["context"], ("\n",), 8), r["continuation"]) for n, r in enumerate(rows)]

    held = EvalData(data / "eval")
    own = {"lambada_words": Benchmark("lambada_words", "", (), words, score, "", "", "")}
    plan = [(one, one.load(held)[:limit]) for name in TASKS for one in [own.get(name) or BENCHMARKS[name]]]
    rows = run(load_engine(model, deterministic=True), plan, place / "ours", settings={})
    for name, task in TASKS.items():
        told = held.rows(FILES[name])[:limit]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
        described = {
            "task": f"{name}_rows",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(place / f"{name}.jsonl")}},
            "validation_split": "validation",
            **task,
        }
        (place / f"{name}.yaml").write_text(json.dumps(described))  # JSON is YAML
    found: dict[str, Any] = {}
    for name, part in rows.items():
        if TASKS[name]["output_type"] == "multiple_choice":
            scores = {
                "acc": sum(row["parts"]["by_sum"] for row in part) / len(part),
                "acc_norm": sum(row["parts"]["by_character"] for row in part) / len(part),
            }
            found[name] = {"scores": scores, "answers": [row["logprobs"] for row in part]}
        else:
            scores = {"exact_match": sum(row["value"] for row in part) / len(part)}
            found[name] = {"scores": scores, "answers": [row["response"] for row in part]}
    return found


def worker(place: Path) -> None:
    """Scores and answers under the harness's Python, on Puna's engine and through Puna's server."""
    import importlib.metadata

    import lm_eval
    from lm_eval.tasks import TaskManager

    from puna.engine.generate import load_engine
    from puna.evals.lm_eval_harness import engine_model

    manager = TaskManager(include_path=str(place), include_defaults=False)
    options: dict[str, Any] = {
        "tasks": [f"{name}_rows" for name in TASKS],
        "task_manager": manager,
        "log_samples": True,
        "bootstrap_iters": 0,
    }
    model = engine_model(load_engine(place / "stories260K", deterministic=True))
    here = lm_eval.simple_evaluate(model=model, **options)
    served = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "stories260K",
            "base_url": f"{os.environ['SERVED']}/v1/completions",
            "tokenizer": str(place / "stories260K"),
            "tokenizer_backend": "huggingface",
            "tokenized_requests": True,
            "add_bos_token": True,
            "max_length": CONTEXT,
            "num_concurrent": 4,
        },
        batch_size=8,
        **options,
    )
    tasks = {
        name: {way: answers(found, f"{name}_rows") for way, found in (("in_process", here), ("served", served))}
        for name in TASKS
    }
    versions = {name: importlib.metadata.version(name) for name in ("lm-eval", "transformers", "datasets")}
    (place / "harness.json").write_text(json.dumps({"versions": versions, "tasks": tasks}))


def answers(found: dict[str, Any], task: str) -> dict[str, Any]:
    """The harness's scores of a task, and its answers in the rows' order.

    Answers are logprobs of the choices, or texts.
    """
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    scores = {key.partition(",")[0]: value for key, value in found["results"][task].items()
              if isinstance(value, float) and "stderr" not in key}  # fmt: skip
    given = [
        sample["resps"][0][0] if "exact_match" in scores else [float(one[0]) for one in sample["filtered_resps"]]
        for sample in samples
    ]
    return {"scores": scores, "answers": given}


def compared(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Scores of the three ways, and how far single answers differ."""
    result: dict[str, Any] = {"rows": len(ours["answers"]), "ours": ours["scores"]}
    equal = True
    for way, found in theirs.items():
        result[way] = found["scores"]
        same = found["scores"] == ours["scores"]
        if isinstance(ours["answers"][0], str):
            differing = sum(a != b for a, b in zip(ours["answers"], found["answers"], strict=True))
            result[f"{way}_texts_that_differ"] = differing
            same &= not differing
        else:
            pairs = [
                (a, b)
                for one, other in zip(ours["answers"], found["answers"], strict=True)
                for a, b in zip(one, other, strict=True)
            ]
            largest = max(abs(a - b) for a, b in pairs)
            result["loglikelihoods"] = len(pairs)
            result[f"{way}_largest_difference"] = largest
            same &= largest <= (TOLERANCE if way == "served" else 0.0)
        equal &= same
    return result | {"equal": equal}


if __name__ == "__main__":
    main()
