"""Accuracy of the planner: every development row predicted without its family.

    python bench/plan_accuracy.py RUNS.yaml [--processes 2]

Leave-one-family-out cross-validation on the development rows (constants refitted for each family), the shipped
constants on rows that were never used for fitting, rankings of layouts, memory compared with printed peaks, and Llama
3's 54 days. The simplest rival, a constant MFU for each accelerator and precision learned from the same rows, is scored
as well. Results with the row-by-row table: bench/results/plan-accuracy.json.
"""

import argparse
from pathlib import Path
from typing import Any

import common
from puna.core.console import show_table
from puna.model.config import ModelConfig
from puna.model.layout import Layout
from puna.plan.equations.cost_model import CostModel
from puna.plan.equations.hardware import find_accelerator
from puna.plan.equations.shape import from_config
from puna.plan.evidence.fit import cross_validate, weighted_quantile
from puna.plan.evidence.published_runs import read_runs
from puna.plan.evidence.validate import ErrorSummary, Validation, validate
from puna.plan.layouts.predict import Question, predict
from puna.plan.run.goodput import goodput

# Llama 3.1's model card: 30.84M H100 hours for 405B; the paper: 15.6T tokens, 54 days on 16,384 GPUs with 466
# interruptions and more than 90 % effective time. Table 4 gives the layout of its second row.
CARD_HOURS, TOKENS, INTERRUPTIONS = 30.84e6, 15.6e12, 466
TABLE_4 = Layout.of(tp=8, pp=16, virtual_stages=8, dp=128, sharding="zero2", sequence_parallel=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="published runs")
    parser.add_argument("--processes", type=int, default=2, help="parallel refits")
    args = parser.parse_args()
    dev = [row for row in read_runs(args.runs) if row.split == "dev" and row.step_seconds is not None]
    crossed = validate(args.runs, seconds=cross_validate(dev, processes=args.processes).seconds)
    shipped = validate(args.runs)
    unseen = [score for score in shipped.scores if "never fitted" in score.name]
    scores = {"left out": crossed.scores, "never fitted": unseen}
    for name, chosen in scores.items():
        show_table(
            ["", "rows", "families", "median", "mean", "p90", "inside 80 %", "constant MFU", "its p90"],
            [_line(score) for score in chosen],
            title=name,
        )
    show_table(
        ["family", "rows", "mean error", "mean absolute"],
        [[" ".join(f), n, f"{bias:+.1%}", f"{off:.1%}"] for f, n, bias, off in crossed.families()],
        title="left out, by family",
    )
    show_table(
        ["layouts of", "number", "spread", "Spearman", "regret"],
        [[r.name, r.layouts, f"{r.spread:.1f}x", f"{r.spearman:.2f}", f"{r.regret:.1%}"] for r in crossed.rankings],
        title="ranking",
    )
    told = {"memory": _memory(crossed), "llama3": _llama3()}
    show_table(["memory", "measured GiB", "predicted"], [list(line.values())[:3] for line in told["memory"]["rows"]])
    show_table(["Llama 3 405B", "value"], [[k, f"{v:,.3f}"] for k, v in told["llama3"].items()])
    results = {
        "scores": {name: [vars(score) for score in chosen] for name, chosen in scores.items()},
        "rankings": [vars(r) for r in crossed.rankings],
        **told,
        "rows": [
            {
                "id": row.id,
                "family": " ".join(row.family),
                "measured_s": _short(row.step_seconds or 0),
                "left_out_s": _short(seconds),
                "error_pct": round(100 * error, 1),
            }
            for row, seconds, error in zip(crossed.rows, crossed.seconds, crossed.errors, strict=True)
        ],
    }
    common.save("plan-accuracy", {"runs": args.runs.name}, results, packages=("numpy", "scipy"))


def _line(score: ErrorSummary) -> list[Any]:
    shares = (score.median, score.mean, score.p90, score.coverage, score.rival_median, score.rival_p90)
    return [score.name, score.rows, score.families, *(f"{share:.1%}" for share in shares)]


def _memory(validation: Validation) -> dict[str, Any]:
    import numpy as np

    off = np.array([abs(predicted / measured - 1) for _, measured, predicted in validation.memory])
    rows = [
        {"row": name, "measured_gib": measured, "predicted_gib": _short(predicted)}
        for name, measured, predicted in validation.memory
    ]
    return {"median_error": weighted_quantile(off, np.ones(len(off)), 0.5), "worst": float(off.max()), "rows": rows}


def _llama3() -> dict[str, float]:
    shape = from_config(ModelConfig(preset="llama3.1-405b"))
    question = Question("llama3.1-405b", shape, find_accelerator("h100"), 16384, 8192, 2048, costs=CostModel("llama3"))
    step = predict(question, TABLE_4)
    days = goodput(16384, 54, parameters=405e9)
    busy = TOKENS / step.tokens_per_second * 16384 / 3600
    return {
        "MFU of Table 4's second row (published 0.41)": step.mfu(causal=True),
        "GPU-hours, millions (published 30.84)": busy / days.effective_time / 1e6,
        "its error": busy / days.effective_time / CARD_HOURS - 1,
        "interruptions in 54 days (published 466)": days.interruptions,
        "error of interruptions": days.interruptions / INTERRUPTIONS - 1,
        "effective time (published above 0.90)": days.effective_time,
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
