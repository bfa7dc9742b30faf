"""A plan's layout in a recipe: the output of `puna plan --json` is applied, and unsupported plans are rejected."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.core.recipe import load
from puna.plan.equations.cost_model import CostModel
from puna.plan.equations.hardware import find_accelerator
from puna.plan.equations.shape import from_config
from puna.plan.layouts.predict import Question
from puna.plan.output.json_output import estimate_tree
from puna.plan.run.estimate import estimate_run
from puna.train.planning.from_plan import apply_plan
from puna.train.recipe import Recipe

LAPTOP = Path(__file__).parents[2] / "recipes" / "laptop.toml"
LAYOUT = {
    "tp": 1, "cp": 1, "pp": 1, "vp": 1, "dp": 2, "ep": 1, "micro_batch": 2, "sharding": "zero3", "recompute": "none",
    "sequence_parallel": False,
}  # fmt: skip


def recipe(*words: str) -> Recipe:
    return load(Recipe, LAPTOP, words).value


def plan(folder: Path, tree: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps(tree))
    return path


def best(**more: Any) -> dict[str, Any]:
    return {"best": {"layout": {**LAYOUT, **more}}}


def test_what_puna_plan_prints_is_taken(tmp_path: Path) -> None:
    found = recipe("train.batch=64")
    question = Question(
        model=found.name,
        shape=from_config(found.model),
        accelerator=find_accelerator("h100"),
        accelerators=8,
        seq_len=found.train.seq_len,
        batch=found.train.batch,
        costs=CostModel("puna"),
    )
    whole = estimate_run(question, tokens=1e9)
    taken, told = apply_plan(found, plan(tmp_path, estimate_tree(whole)), 8)
    layout = whole.best.layout
    assert taken.layout.resolve(8).data_parallel == layout.data_parallel == 8
    assert taken.train.micro_batch == layout.micro_batch
    assert f"train.micro_batch = {layout.micro_batch}" in told
    # The planner gets the same recipe as before, except that the trainer shards weights where gradients are sharded.
    seen = taken.resolve_layout(8)
    assert (seen.data_parallel, seen.micro_batch) == (layout.data_parallel, layout.micro_batch)
    assert taken.model == found.model
    # A plan for a budget nests the run one level deeper.
    assert apply_plan(found, plan(tmp_path, {"budget_usd": 1, "run": estimate_tree(whole)}), 8)[0] == taken


@pytest.mark.parametrize(
    ("sharding", "replicate", "shard"),
    [("ddp", 16, 1), ("zero1", 1, 16), ("zero2", 1, 16), ("zero3", 1, 16), ("hsdp", 2, 8)],
)
def test_sharding_is_two_sizes(tmp_path: Path, sharding: str, replicate: int, shard: int) -> None:
    tree = {**best(dp=16, micro_batch=1, sharding=sharding), "accelerator": "h100-sxm"}
    taken, told = apply_plan(recipe("train.batch=16"), plan(tmp_path, tree), 16)
    assert (taken.layout.dp_replicate, taken.layout.dp_shard) == (replicate, shard)
    assert ("also shards weights" in told) == (sharding in ("zero1", "zero2"))


@pytest.mark.parametrize(
    ("recompute", "trained"),
    [("none", "none"), ("full", "full"), ("blocks", "full"), ("ops", "selective"), ("selective", "selective")],
)
def test_recomputation_is_the_trainers(tmp_path: Path, recompute: str, trained: str) -> None:
    assert apply_plan(recipe(), plan(tmp_path, best(recompute=recompute)), 2)[0].train.recompute == trained


def test_a_lean_plan_is_enough(tmp_path: Path) -> None:
    taken, _ = apply_plan(recipe(), plan(tmp_path, {"layout": {"dp": 2, "micro_batch": 4}}), 2)
    assert (taken.layout.data_parallel, taken.train.micro_batch) == (2, 4)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ([], "is not a plan"),
        ({}, "no best layout"),
        ({"best": 3}, "no best layout"),
        (best(tp=8, dp=1), "is a plan for 8 processes, but 2 are running"),
        (best(tp=2, pp=4, dp=1), "is a plan for 8 processes, but 2 are running"),
        (best(dp=4), "is a plan for 4 processes, but 2 are running"),
        (best(dp="many"), "best.layout.dp = 'many'"),
        (best(micro_batch=0), "best.layout.micro_batch = 0"),
        (best(dp=float("inf")), "best.layout.dp = inf"),
        (best(dp=float("nan")), "best.layout.dp = nan"),
        (best(micro_batch=1.5), "best.layout.micro_batch = 1.5"),
        (best(sharding="zero9"), "best.layout.sharding = 'zero9'"),
        (best(recompute=None), "best.layout.recompute = None"),
        (best(micro_batch=3), "do not divide the recipe's train.batch = 8"),
        ({**best(), "parameters": 405e9}, "plans a model of 405B parameters, but the recipe has 5.26M"),
        ({**best(sharding="hsdp"), "accelerator": "h9000"}, "h9000"),
    ],
)
def test_what_cannot_be_is_a_sentence(tmp_path: Path, tree: Any, words: str) -> None:
    with pytest.raises(PunaError, match=re.escape(words)):
        apply_plan(recipe(), plan(tmp_path, tree), 2)


def test_a_layout_that_does_not_divide_the_model_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match=re.escape("layout.tp = 8 does not divide the model's")):
        apply_plan(recipe(), plan(tmp_path, best(tp=8, dp=1)), 8)


def test_a_file_that_is_not_there_or_no_json_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="does not exist"):
        apply_plan(recipe(), tmp_path / "nothing.json", 1)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(PunaError, match="not valid JSON"):
        apply_plan(recipe(), tmp_path / "plan.json", 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.dictionaries(st.sampled_from([*LAYOUT, "best", "layout", "run", "parameters"]), inner),
        max_leaves=20,
    )
)
def test_whatever_the_file_holds_it_is_taken_or_refused(tmp_path: Path, tree: Any) -> None:
    try:
        taken, _ = apply_plan(recipe(), plan(tmp_path, tree), 2)
    except PunaError:
        return
    assert taken.layout.resolve(2).data_parallel == 2
