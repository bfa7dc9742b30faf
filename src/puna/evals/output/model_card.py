"""Writes results in the two forms that model cards on the Hugging Face Hub understand.

`.eval_results/puna.yaml` is the newer one (huggingface_hub's EvalResultEntry: dataset, value, date, source, notes), one
entry for each benchmark whose dataset has an id on the Hub. `model-index.yaml` is the older block for the header of a
README.md. Both say what the score is, on how many items, with its interval and how it was asked.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.core.files import write_text
from puna.model.card import public_name
from puna.model.hub import model_name

# Ids of datasets on the Hub, with the configuration.
DATASETS = {
    "humaneval": ("openai/openai_humaneval", "openai_humaneval"), "mbpp": ("google-research-datasets/mbpp", "full"),
    "mbpp_sanitized": ("google-research-datasets/mbpp", "sanitized"), "gsm8k": ("openai/gsm8k", "main"),
    "mgsm": ("juletxara/mgsm", ""),
    "math500": ("HuggingFaceH4/MATH-500", "default"), "math": ("hendrycks/competition_math", ""),
    "bbh": ("lukaemon/bbh", ""), "mmlu": ("cais/mmlu", "all"), "arc_easy": ("allenai/ai2_arc", "ARC-Easy"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge"), "hellaswag": ("Rowan/hellaswag", "default"),
    "piqa": ("ybisk/piqa", "plain_text"), "boolq": ("google/boolq", "default"),
    "lambada": ("EleutherAI/lambada_openai", "default"),
    "winogrande": ("allenai/winogrande", "winogrande_xl"), "openbookqa": ("allenai/openbookqa", "main"),
    "commonsense_qa": ("tau/commonsense_qa", "default"), "social_iqa": ("allenai/social_i_qa", "default"),
    "truthfulqa_mc1": ("truthfulqa/truthful_qa", "multiple_choice"),
    "truthfulqa_mc2": ("truthfulqa/truthful_qa", "multiple_choice"),
    "ifeval": ("google/IFEval", "default"), "xstest_safe": ("Paul/XSTest", ""), "xstest_unsafe": ("Paul/XSTest", ""),
    "bfcl": ("gorilla-llm/Berkeley-Function-Calling-Leaderboard", ""), "ntrex": ("mteb/NTREX", ""),
}  # fmt: skip


def write_cards(folder: Path, results: Mapping[str, Any]) -> None:
    """Write folder/.eval_results/puna.yaml and folder/model-index.yaml."""
    import yaml

    measured = [one for one in results["benchmarks"] if one["value"] is not None]
    text = yaml.safe_dump(entries(measured, results), sort_keys=False, allow_unicode=True, width=120)
    write_text(folder / ".eval_results" / "puna.yaml", text)
    text = yaml.safe_dump(model_index(measured, results), sort_keys=False, allow_unicode=True, width=120)
    write_text(folder / "model-index.yaml", text)


def entries(measured: list[dict[str, Any]], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return an EvalResultEntry for each benchmark that has a dataset on the Hub."""
    return [
        {
            "dataset": {"id": DATASETS[one["benchmark"]][0], "task_id": one["benchmark"]},
            "value": round(100 * one["value"], 2),
            "date": results["date"][:10],
            "notes": _notes(one, results),
        }
        for one in measured
        if one["benchmark"] in DATASETS
    ]


def model_index(measured: list[dict[str, Any]], results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `model-index` block of a model card."""
    return {
        "model-index": [
            {
                "name": public_name(model_name(results["model"]["path"])),
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {
                            "name": one["title"],
                            "type": DATASETS.get(one["benchmark"], (one["benchmark"], ""))[0],
                            **({"config": config} if (config := DATASETS.get(one["benchmark"], ("", ""))[1]) else {}),
                        },
                        "metrics": [
                            {
                                "type": "accuracy",
                                "name": one["metric"],
                                "value": round(100 * one["value"], 2),
                                "args": {"notes": _notes(one, results)},
                            }
                        ],
                    }
                    for one in measured
                ],
            }
        ]
    }


def _notes(one: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    part = "" if one["items"] == one["of"] else f" of {one['of']:,}"
    chance = one["baselines"]["chance"]
    return (
        f"{one['metric']}; {one['items']:,}{part} items, 95 % interval {100 * low:.1f} to {100 * high:.1f}, "
        f"chance {100 * chance:.1f}; greedy; {one['prompt']}; asked as {results['settings']['form']}"
    )
