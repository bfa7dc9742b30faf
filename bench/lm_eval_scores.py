"""lm-evaluation-harness through our server beside the same engine asked in-process: scores and every loglikelihood.

    PUNA_LM_EVAL_PYTHON=…/bin/python python bench/lm_eval_scores.py

PUNA_LM_EVAL_PYTHON is a Python with `lm-eval[api]` that can also import puna (an environment whose site-packages has a
.pth file with Puna's). The server is asked as everybody asks one, with lm-eval's own `local-completions`: token ids,
echo, logprobs, and the model's tokenizer as transformers reads it. In-process the tokenizer is ours, and prompts are
scored by the engine's prompt_logprobs. The model is small and random, float32 both times: the point is that the two
ways are one. Tasks are rows of ARC-Easy and HellaSwag from PUNA_TEST_DATA; nothing is downloaded.
"""

import argparse
import json
import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

TASKS = {
    "arc_easy_rows": {
        "file": "arc_easy_validation",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices.text}}",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
    },
    "hellaswag_rows": {
        "file": "hellaswag_val_1000",
        "doc_to_text": "{{ctx}}",
        "doc_to_choice": "{{endings}}",
        "doc_to_target": "{{label}}",
    },
}
CONTEXT = 512
TOLERANCE = 1e-4  # of a loglikelihood; sums of about 30 float32 logprobs in another batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=50, help="rows of each task (default 50)")
    parser.add_argument("--worker", metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(Path(args.worker), args.limit)
        return
    python, data = os.environ.get("PUNA_LM_EVAL_PYTHON"), os.environ.get("PUNA_TEST_DATA")
    if not python or not data:
        sys.exit("Set PUNA_LM_EVAL_PYTHON and PUNA_TEST_DATA: see the head of this file.")
    import conformance

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = conformance.make_model(place / "tiny")
        write_tasks(place, Path(data) / "eval" / "mc", args.limit)
        command = [sys.executable, "-m", "puna", "serve", str(model), "--no-page", "--device", "cpu"]
        with conformance.running([*command, "--dtype", "float32", "--port"]) as (url, _):
            ask = [python, __file__, "--worker", folder, "--limit", str(args.limit)]
            offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": folder}
            subprocess.run(ask, check=True, env={**os.environ, **offline, "SERVED": url}, stdout=sys.stderr)
        results = json.loads((place / "results.json").read_text(encoding="utf-8"))
    print(json.dumps(results, indent=2))
    settings = {"rows": args.limit, "tolerance": TOLERANCE, "dtype": "float32", "model": "random, 4 layers of 256"}
    common.save("lm-eval-served", settings, results)
    if not all(task["equal"] for task in results["tasks"].values()):
        sys.exit("The two ways differ.")


def write_tasks(place: Path, rows: Path, limit: int) -> None:
    """A task file and a data file for each task."""
    for name, task in TASKS.items():
        with lzma.open(rows / f"{task['file']}.jsonl.xz", "rt", encoding="utf-8") as lines:
            (place / f"{name}.jsonl").write_text("".join(line for _, line in zip(range(limit), lines, strict=False)))
        told = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(place / f"{name}.jsonl")}},
            "validation_split": "validation",
            "output_type": "multiple_choice",
            **{key: value for key, value in task.items() if key != "file"},
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
        # JSON is YAML.
        (place / f"{name}.yaml").write_text(json.dumps(told))


def worker(place: Path, limit: int) -> None:
    """Under the harness' Python: evaluate both ways and compare."""
    import importlib.metadata

    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(place), include_defaults=False)
    options: dict[str, Any] = {
        "tasks": list(TASKS),
        "task_manager": manager,
        "limit": limit,
        "log_samples": True,
        "bootstrap_iters": 0,
    }
    here = lm_eval.simple_evaluate(model=engine_model(place / "tiny"), **options)
    served = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "tiny",
            "base_url": f"{os.environ['SERVED']}/v1/completions",
            "tokenizer": str(place / "tiny"),
            "tokenizer_backend": "huggingface",
            "tokenized_requests": True,
            "max_length": CONTEXT,
            "num_concurrent": 4,
        },
        batch_size=8,
        **options,
    )
    tasks = {}
    for name in TASKS:
        ours, theirs = (responses(found["samples"][name]) for found in (here, served))
        pairs = [(a, b) for id in ours for a, b in zip(ours[id], theirs[id], strict=True)]
        difference = max(abs(float(a[0]) - float(b[0])) for a, b in pairs)
        scores = [accuracies(found["results"][name]) for found in (here, served)]
        tasks[name] = {
            "rows": len(ours),
            "loglikelihoods": len(pairs),
            "in_process": scores[0],
            "served": scores[1],
            "largest_difference": difference,
            "greedy_flags_that_differ": sum(str(a[1]) != str(b[1]) for a, b in pairs),
            "equal": scores[0] == scores[1] and difference <= TOLERANCE,
        }
    versions = {name: importlib.metadata.version(name) for name in ("lm-eval", "transformers", "datasets")}
    (place / "results.json").write_text(json.dumps({"versions": versions, "tasks": tasks}))


def responses(samples: list[dict[str, Any]]) -> dict[int, Any]:
    """Loglikelihood and greedy flag of each choice, by the number of the row."""
    return {sample["doc_id"]: sample["filtered_resps"] for sample in samples}


def accuracies(results: dict[str, Any]) -> dict[str, float]:
    return {metric: results[f"{metric},none"] for metric in ("acc", "acc_norm")}


def engine_model(directory: Path) -> Any:
    """The engine as a model of the harness: loglikelihoods only."""
    import torch
    from lm_eval.api.model import TemplateLM

    from puna.engine.generate import SamplingParams, load_engine

    class EngineModel(TemplateLM):
        def __init__(self) -> None:
            super().__init__()
            self.engine = load_engine(directory, device="cpu", dtype=torch.float32)

        @property
        def eot_token_id(self) -> int:
            return int(self.engine.tokenizer.eos_ids[0])

        def tok_encode(self, string: str, **_: Any) -> list[int]:
            return self.engine.tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            params = SamplingParams(max_tokens=0, prompt_logprobs=1)
            found = []
            for _text, context, continuation in requests:
                [scored] = self.engine.generate([[*context, *continuation]], params)
                rows = scored.prompt_logprobs[len(context) :]
                total = sum(row[0].logprob for row in rows)
                found.append((total, all(row[0].logprob >= row[1].logprob for row in rows)))
            return found

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
            raise NotImplementedError("These tasks do not ask for it.")

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            raise NotImplementedError("These tasks do not ask for it.")

    return EngineModel()


if __name__ == "__main__":
    main()
