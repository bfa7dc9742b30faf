"""Validation: statistics by hand, a prediction for every published row, and their accuracy."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.plan.equations.constants import interval
from puna.plan.equations.cost import PARTS
from puna.plan.equations.hardware import find_accelerator
from puna.plan.evidence.published_runs import read_runs
from puna.plan.evidence.validate import (
    RANKED_LAYOUTS,
    Validation,
    constant_mfu,
    predict_rows,
    rankings,
    spearman,
    validate,
)

yaml = pytest.importorskip("yaml")

RUNS = Path(os.environ.get("PUNA_TEST_DATA", "")) / ".." / "planner-data" / "published_runs_dev.yaml"
needs_runs = pytest.mark.skipif(
    "PUNA_TEST_DATA" not in os.environ or not RUNS.exists(),
    reason="PUNA_TEST_DATA does not contain planner-data/published_runs_dev.yaml",
)

LLAMA_405B = {
    "layers": 126,
    "hidden": 16384,
    "heads": 128,
    "kv_heads": 8,
    "head_dim": 128,
    "ffn_hidden": 53248,
    "vocab": 128256,
    "gated_mlp": True,
}
SMALL = {
    "layers": 16,
    "hidden": 2048,
    "heads": 16,
    "kv_heads": 16,
    "head_dim": 128,
    "ffn_hidden": 8192,
    "vocab": 50368,
    "gated_mlp": False,
}
MODELS = {"llama3.1-405b": LLAMA_405B, "small": SMALL, "other": SMALL | {"layers": 24}}


def row(name: str, step_s: float | None = 1.0, **fields: Any) -> dict[str, Any]:
    """One row of a small model on eight H100s."""
    values = {
        "id": name,
        "src": "lab",
        "model": "small",
        "gpu": "h100-sxm",
        "gpus": 8,
        "seq": 2048,
        "layout": {"tp": 1, "cp": 1, "pp": 1, "vp": 1, "dp": 8, "mbs": 1, "gbs": 64, "fsdp": "zero3"},
        "precision": "bf16",
        "recompute": "none",
        "measured": {} if step_s is None else {"step_s": step_s},
        "split": "dev",
    }
    return values | fields


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "runs.yaml"
    path.write_text(yaml.safe_dump({"models": MODELS, "throughput": rows}), encoding="utf-8")
    return path


# -- statistics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 - 6·Σd²/(n·(n² - 1)), Σd² = 4
        ([1, 1, 2], [1, 2, 3], math.sqrt(3) / 2),  # a tie shares its mean rank
    ],
)
def test_spearman_by_hand(left, right, expected):
    assert spearman(np.array(left), np.array(right)) == pytest.approx(expected)


values = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=3, max_size=30)


@settings(deadline=None, max_examples=50)
@given(values.filter(lambda pairs: all(len(set(column)) > 1 for column in zip(*pairs, strict=True))))
def test_spearman_is_scipys(pairs):
    stats = pytest.importorskip("scipy.stats")
    left, right = np.array(pairs).T
    assert spearman(left, right) == pytest.approx(float(stats.spearmanr(left, right).statistic))


def test_the_rival_takes_other_families_usual_utilisation(tmp_path):
    # Three families of one model on one accelerator with 20, 30 and 40 % of its peak, and one on another.
    shape = read_runs(write(tmp_path, [row("a")]))[0].shape
    flops = 64 * 2048 * float(shape.flops_per_token(2048, causal=True))

    def took(mfu: float, gpu: str = "h100") -> float:
        return flops / (mfu * 8 * find_accelerator(gpu).bf16_tflops * 1e12)

    rows = read_runs(
        write(
            tmp_path,
            [
                row("a", took(0.2), src="a"),
                row("b", took(0.3), src="b"),
                row("c", took(0.4), src="c"),
                row("d", took(0.9), src="d", split="extra"),  # not a development row: not used for fitting
                row("e", took(0.5, "a100"), src="e", gpu="a100-80g"),
            ],
        )
    )
    # The weighted median of the others on the same accelerator; for the A100, which has none, of all rows in bf16.
    usual = flops / (constant_mfu(rows) * 8 * np.array([each.accelerator.bf16_tflops * 1e12 for each in rows]))
    assert usual == pytest.approx([0.3, 0.2, 0.2, 0.3, 0.3])


def test_families_of_many_rows_weigh_no_more(tmp_path):
    # One row a fifth off and, in another family, three rows that are exact: the mean of the families is a tenth.
    path = write(tmp_path, [row("a", src="a"), *(row(f"b{i}", src="b") for i in range(3))])
    score = validate(path, seconds=np.array([1.2, 1, 1, 1])).scores[0]
    assert (score.rows, score.families) == (4, 2)
    assert score.mean == pytest.approx(0.1)
    assert score.p90 == pytest.approx(0.2)
    assert score.coverage == pytest.approx(0.5 if interval("hopper", mixture=False)[1] < 1.2 else 1)


def test_coverage_counts_what_is_inside(tmp_path):
    low, high = interval("hopper", mixture=False)
    path = write(tmp_path, [row(f"{i}", src=f"lab{i}") for i in range(4)])
    inside = validate(path, seconds=np.array([1 / low, 1 / high, 1.01 / low, 0.99 / high]) * [0.999, 1.001, 1, 1])
    assert inside.scores[0].coverage == pytest.approx(0.5)


def test_rankings_by_hand(tmp_path):
    # Eight layouts of one model, twice as slow at the worst; the predicted best is the measured second.
    measured = [1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.1]
    rows = [row(f"l{i}", step, layout=row("")["layout"] | {"mbs": 1 + i % 2}) for i, step in enumerate(measured)]
    rows += [row(f"other{i}", 1.0, model="other") for i in range(3)]  # too few to rank
    read = read_runs(write(tmp_path, rows))
    predicted = np.array([1.05, 1.0, 1.2, 1.3, 1.4, 1.6, 1.8, 2.1, 1, 1, 1])
    (ranking,) = rankings(read, predicted)
    assert ranking.layouts == RANKED_LAYOUTS == 8
    assert ranking.spread == pytest.approx(2.1)
    assert ranking.regret == pytest.approx(0.1)
    assert ranking.spearman == pytest.approx(1 - 6 * 2 / (8 * 63))
    assert "small on 8 h100-sxm" in ranking.name
    alike = [row(f"l{i}", 1 + i / 100) for i in range(8)]  # no spread to speak of
    assert rankings(read_runs(write(tmp_path, alike)), np.ones(8)) == []


def test_nothing_measured_is_nothing_to_validate(tmp_path):
    with pytest.raises(PunaError, match="no row has a measured time"):
        validate(write(tmp_path, [row("a", None)]))


# -- predictions of rows -----------------------------------------------------------------------------------------------


def check_told(told: dict[str, Any]) -> None:
    """A row's prediction is finite, positive, adds up and can be written as JSON."""
    for key in ("step_s", "step_s_low", "step_s_high", "tok_s_gpu", "model_tflops_gpu", "mem_gib", "mfu_full_pct"):
        assert 0 < told[key] < math.inf, key
    assert told["step_s_low"] < told["step_s"] < told["step_s_high"]
    assert tuple(told["parts_s"]) == PARTS
    assert all(value >= 0 for value in told["parts_s"].values())
    assert sum(told["parts_s"].values()) == pytest.approx(told["step_s"], rel=1e-6)
    assert told["mfu_causal_pct"] <= told["mfu_full_pct"] < 100
    assert json.loads(json.dumps(told, allow_nan=False))["id"] == told["id"]


def test_a_prediction_without_a_measurement(tmp_path):
    (told,) = predict_rows(write(tmp_path, [row("a", None)]))
    check_told(told)
    assert "error_pct" not in told
    assert told["tok_s_gpu"] == pytest.approx(64 * 2048 / told["step_s"] / 8)
    assert told["layout"]["dp"] == 8
    assert told["layout"]["recompute"] == {"none": 1.0}


def test_a_prediction_beside_its_measurement(tmp_path):
    (told,) = predict_rows(write(tmp_path, [row("a", 2.0)]))
    assert told["measured_step_s"] == 2
    assert told["error_pct"] == pytest.approx(100 * (told["step_s"] / 2 - 1))


def test_llama_3s_table_4_is_within_the_interval(tmp_path):
    # arXiv 2407.21783 table 4; DP of the third row follows from its 16,384 GPUs and 16M tokens per step. The paper
    # prints neither interleaving nor micro-batch: both are chosen. Only the first row is among those that were fitted.
    rows = [
        {
            "id": f"table-4-{gpus}-{cp}",
            "src": "llama3-paper",
            "model": "llama3.1-405b",
            "gpu": "h100-sxm",
            "gpus": gpus,
            "seq": seq,
            "layout": {"tp": 8, "cp": cp, "pp": 16, "dp": dp, "fsdp": "zero2", "gbs": 2**24 // seq, "sp": True},
            "precision": "bf16",
            "recompute": "none",
            "measured": {"model_tflops_gpu": tflops},
        }
        for gpus, cp, dp, seq, tflops in (
            (8192, 1, 64, 8192, 430),
            (16384, 1, 128, 8192, 400),
            (16384, 16, 8, 131072, 380),
        )
    ]
    told = predict_rows(write(tmp_path, rows))
    for each in told:
        check_told(each)
        assert each["step_s_low"] <= each["measured_step_s"] <= each["step_s_high"], each["id"]
        assert each["mem_gib"] < 80  # they ran on 80 GB without recomputation
    # Fewer sequences per pipeline make a larger bubble: 43 % become 41 % of the peak.
    assert told[0]["mfu_causal_pct"] > told[1]["mfu_causal_pct"]


# -- the development rows ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> Validation:
    return validate(RUNS)


@needs_runs
def test_every_published_row_predicts():
    told = predict_rows(RUNS)
    assert len(told) == 584
    for each in told:
        check_told(each)


@needs_runs
def test_shipped_constants_are_about_as_right_as_when_they_were_fitted(published):
    # Guards against changes of the model without new constants; bench/plan_accuracy has the figures.
    scores = {score.name: score for score in published.scores}
    dense = scores["dense, A100 and H100, development rows"]
    assert dense.rows == 314
    assert dense.median <= 0.05
    assert dense.mean <= 0.07
    assert dense.p90 <= 0.14
    everything = scores["all development rows"]
    assert everything.rows == 370
    assert everything.median <= 0.07
    assert everything.p90 <= 0.18
    for score in published.scores:
        assert score.median < score.rival_median, score.name  # better than one constant utilisation


@needs_runs
def test_layouts_are_ranked_and_the_chosen_one_costs_little(published):
    assert len(published.rankings) == 2
    for ranking in published.rankings:
        assert ranking.spread >= 2
        assert ranking.spearman > 0.55
        assert ranking.regret <= 0.03


@needs_runs
def test_errors_add_up_by_family(published):
    families = published.families()
    assert sum(rows for _, rows, _, _ in families) == len(published.rows) == len(published.errors)
    assert all(abs(mean) <= absolute + 1e-12 for _, _, mean, absolute in families)
    absolutes = [absolute for *_, absolute in families]
    assert absolutes == sorted(absolutes, reverse=True)
    seconds = np.array([each.step_seconds for each in published.rows])
    assert published.seconds / seconds - 1 == pytest.approx(published.errors)


@needs_runs
def test_measured_memory_stands_beside_the_prediction(published):
    assert len(published.memory) == 8
    for name, measured, predicted in published.memory:
        assert 0 < measured < 200, name
        assert predicted == pytest.approx(measured, rel=0.25), name


@needs_runs
def test_cross_validated_seconds_can_be_scored(published):
    dev = [each for each in published.rows if each.split == "dev"]
    exact = np.array([each.step_seconds for each in dev])
    check = validate(RUNS, seconds=exact)
    assert len(check.rows) == len(dev)
    assert all(score.median == score.p90 == 0 and score.coverage == 1 for score in check.scores)
