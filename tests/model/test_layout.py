"""One layout: from a recipe to the planner, launch files and the trainer, and back, without any change."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from puna.core.errors import PunaError
from puna.core.recipe import load
from puna.model.config import ModelConfig
from puna.model.layout import RECOMPUTE, SHARDING, Layout, LayoutConfig, share_batch
from puna.plan.equations.columns import stack_columns
from puna.plan.equations.cost_model import CostModel
from puna.plan.equations.hardware import find_accelerator
from puna.plan.equations.shape import from_config
from puna.plan.launch.emit import emit
from puna.plan.launch.job import Launch
from puna.plan.layouts.convert import from_columns, from_json, to_columns, to_json
from puna.plan.layouts.predict import Question, predict
from puna.train.planning.from_plan import apply_plan
from puna.train.planning.target import Options, find_target
from puna.train.recipe import Recipe

sizes = st.sampled_from([1, 2, 3, 4, 8])
domains = st.sampled_from([1, 4, 8, 72])


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any layout that a plan may have."""
    pp = draw(sizes)
    virtual = draw(st.sampled_from([1, 2, 5])) if pp > 1 else 1
    sharding = draw(st.sampled_from(SHARDING))
    replicate = draw(sizes) if sharding in ("ddp", "hsdp") else 1
    return Layout(
        dp_replicate=replicate,
        dp_shard=1 if sharding == "ddp" else draw(sizes),
        tp=draw(sizes),
        cp=draw(sizes),
        pp=pp,
        virtual_stages=virtual,
        schedule="interleaved" if virtual > 1 else "1f1b",
        ep=draw(sizes),
        sharding=sharding,
        sequence_parallel=draw(st.booleans()),
        micro_batch=draw(st.integers(1, 64)),
        recompute=draw(st.sampled_from(RECOMPUTE)),
    )


@st.composite
def recipes(draw: st.DrawFn) -> tuple[Recipe, int]:
    """A recipe that the trainer supports, and its number of processes."""
    replicate, shard = draw(sizes), draw(st.sampled_from([0, 1, 2, 4, 8]))
    rows, micro = draw(st.integers(1, 12)), draw(st.integers(0, 64))
    processes = replicate * (shard or draw(sizes))
    assume(not micro or rows % min(micro, rows) == 0)
    recipe = Recipe(
        train={
            "steps": 1,
            "batch": processes * rows,
            "micro_batch": micro,
            "recompute": draw(st.sampled_from(["none", "selective", "full"])),
        },
        layout={"dp_replicate": replicate, "dp_shard": shard},
    )
    return recipe, processes


# -- round trips -------------------------------------------------------------------------------------------------------


@given(st.lists(layouts(), min_size=1, max_size=5))
def test_columns_keep_every_layout(many: list[Layout]) -> None:
    columns = stack_columns([to_columns(one) for one in many])
    assert [from_columns(columns, row) for row in range(len(many))] == many
    assert np.asarray(columns.accelerators).tolist() == [one.processes for one in many]


@given(layouts())
def test_json_keeps_every_layout(layout: Layout) -> None:
    assert from_json(json.loads(json.dumps(to_json(layout))), Path("plan.json")) == layout


@given(layouts(), domains)
def test_plans_without_dp_shard_shard_as_they_always_did(layout: Layout, domain: int) -> None:
    tree = {name: value for name, value in to_json(layout).items() if name != "dp_shard"}
    found = from_json(tree, Path("plan.json"), domain)
    assert found.data_parallel == layout.data_parallel
    assert found.processes == layout.processes
    if layout.sharding == "hsdp":
        assert found.dp_shard <= max(1, domain // (layout.tp * layout.cp))
    else:
        assert found == layout


@given(recipes(), st.booleans())
def test_a_recipe_becomes_a_layout_and_a_recipe_again(asked: tuple[Recipe, int], on_cpu: bool) -> None:
    recipe, processes = asked
    layout = recipe.resolve_layout(processes, on_cpu=on_cpu)
    assert layout.processes == processes
    again = from_columns(stack_columns([to_columns(layout)]), 0)
    values = again.recipe_values()
    back = recipe.model_copy(
        update={
            "layout": LayoutConfig(**values["layout"]),
            "train": recipe.train.model_copy(update=values["train"]),
        }
    )
    assert back.resolve_layout(processes) == layout
    assert back.train.recompute == recipe.train.recompute


# -- the trainer, --emit and --plan agree ----------------------------------------------------------------------------


@given(recipes())
def test_every_row_of_a_step_is_in_one_micro_batch(asked: tuple[Recipe, int]) -> None:
    recipe, processes = asked
    layout, batch = recipe.resolve_layout(processes), recipe.train.batch
    assert layout.micro_batches(batch) * layout.micro_batch * layout.data_parallel == batch
    assert not recipe.train.micro_batch or layout.micro_batch <= recipe.train.micro_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(SHARDING),
    st.sampled_from([1, 2, 6, 12, 32]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(RECOMPUTE),
)
def test_launch_files_and_a_plan_give_the_trainer_one_layout(
    folder: Path, sharding: str, dp: int, rows: int, recompute: str
) -> None:
    """The same plan through `--emit` and `train --plan`: one layout, one micro-batch, one recomputation."""
    h100 = find_accelerator("h100")
    layout = Layout.of(dp=dp, sharding=sharding, link_domain=h100.link_domain, micro_batch=rows, recompute=recompute)
    asked = Recipe(train={"steps": 1, "batch": dp * rows * 2})
    path = folder / "plan.json"
    path.write_text(json.dumps({"accelerator": h100.name, "best": {"layout": to_json(layout)}}))
    taken, _ = apply_plan(asked, path, dp)
    text = f"train.steps = 1\ntrain.batch = {dp * rows * 2}\n"
    job = Launch(
        name="job", recipe=text, layout=layout, accelerator=h100, nodes=dp, accelerators_per_node=1, checkpoint_every=1
    )
    files = emit("slurm", job, folder / "-".join(map(str, (sharding, dp, rows, recompute)))).files
    emitted = load(Recipe, files[0]).value
    assert emitted.layout == taken.layout
    assert emitted.train == taken.train
    assert emitted.resolve_layout(dp) == taken.resolve_layout(dp)
    assert emitted.resolve_layout(dp).data_parallel == layout.data_parallel


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2]), st.sampled_from([1, 2, 12, 32]))
def test_hybrid_shards_stay_in_a_scale_up_domain_beside_tp_and_cp(tp: int, cp: int, dp: int) -> None:
    layout = Layout.of(dp=dp, sharding="hsdp", link_domain=8, tp=tp, cp=cp)
    assert layout.data_parallel == dp
    assert layout.tp * layout.cp * layout.dp_shard <= max(8, tp * cp)


@pytest.mark.parametrize(
    ("sharding", "tp", "dp", "replicate", "shard"),
    [
        ("ddp", 1, 16, 16, 1),
        ("zero2", 1, 16, 1, 16),
        ("zero3", 1, 16, 1, 16),
        ("hsdp", 1, 16, 2, 8),
        ("hsdp", 1, 12, 2, 6),
        ("hsdp", 1, 4, 1, 4),
        ("hsdp", 8, 2, 2, 1),
        ("hsdp", 2, 32, 8, 4),  # --emit (4) and train --plan (8) once disagreed here
    ],
)
def test_sharding_becomes_copies_and_shards(sharding: str, tp: int, dp: int, replicate: int, shard: int) -> None:
    h100 = find_accelerator("h100")
    layout = Layout.of(dp=dp, sharding=sharding, link_domain=h100.link_domain, tp=tp)
    assert (layout.dp_replicate, layout.dp_shard, layout.tp) == (replicate, shard, tp)
    assert LayoutConfig(**layout.recipe_values()["layout"]).resolve(tp * dp).dp_shard == shard
    tree = {"tp": tp, "dp": dp, "sharding": sharding}  # as written by an older version
    assert from_json(tree, Path("plan.json"), h100.link_domain).dp_shard == shard
    shape = from_config(ModelConfig(preset="llama3-8b"))
    costs = CostModel("torchtitan", {})
    assert predict(Question("llama3-8b", shape, h100, tp * dp, 8192, 48 * dp, costs=costs), layout).layout == layout


def test_a_wider_hybrid_group_is_costed_as_asked() -> None:
    """HSDP over four nodes of eight: different collectives, and a smaller share of the states on each rank."""
    shape, costs = from_config(ModelConfig(preset="llama3-8b")), CostModel("torchtitan")
    asked = Question("llama3-8b", shape, find_accelerator("h100"), 64, 8192, 64, costs=costs)
    inside, across = (predict(asked, Layout(dp_replicate=64 // shard, dp_shard=shard)) for shard in (8, 32))
    assert across.memory["optimizer"] == pytest.approx(inside.memory["optimizer"] / 4)
    assert across.seconds["data"] != inside.seconds["data"]


# -- recipes -----------------------------------------------------------------------------------------------------------

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"


def test_a_micro_batch_larger_than_the_rows_is_all_of_them() -> None:
    recipe = load(Recipe, SMOKE, ["train.micro_batch=64"]).value
    assert recipe.resolve_layout(1).micro_batch == recipe.train.batch == 8
    h100 = find_accelerator("h100")
    target = find_target(str(SMOKE), ["train.micro_batch=64"], Options(), accelerator=h100, machine=True)
    layout = target.recipe_layout(h100, 1)
    assert layout is not None
    assert predict(target.question(h100, 1), layout).layout.micro_batch == 8


@given(st.integers(1, 400), st.integers(0, 40), st.integers(1, 16))
def test_shares_of_a_batch_add_up(batch: int, micro_batch: int, ranks: int) -> None:
    try:
        rows, count = share_batch(batch, micro_batch, ranks)
    except PunaError:
        return
    assert rows * count * ranks == batch
    assert not micro_batch or rows <= micro_batch


@pytest.mark.parametrize("old", [False, True])
def test_the_old_key_for_recomputation_still_works(tmp_path: Path, old: bool) -> None:
    path, key = tmp_path / "r.toml", "checkpointing" if old else "recompute"
    path.write_text(f"[train]\nsteps = 1\n{key} = 'full'\n")
    found = load(Recipe, path)
    assert found.value.train.recompute == "full"
    assert found.origin["train.recompute"] == str(path)
    assert load(Recipe, path, [f"train.{key}=none"]).value.train.recompute == "none"
    assert load(Recipe, path, ["train.checkpointing=selective"]).value.train.recompute == "selective"
    assert Recipe.model_validate(tomllib.loads(path.read_text())) == found.value


def test_both_keys_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[train]\nsteps = 1\nrecompute = 'full'\ncheckpointing = 'none'\n")
    with pytest.raises(PunaError, match="'checkpointing' is the old name of 'recompute', and both are given"):
        load(Recipe, path)


@pytest.mark.parametrize(
    "values",
    [
        {"virtual_stages": 2},
        {"pp": 2, "virtual_stages": 2},
        {"pp": 2, "schedule": "interleaved"},
        {"sharding": "ddp", "dp_shard": 2},
        {"sharding": "zero2", "dp_replicate": 2},
        {"recompute": "some"},
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Layout(**values)
