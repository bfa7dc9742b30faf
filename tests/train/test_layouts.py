"""Tensor, context and pipeline parallelism, alone and together, against one process: every gradient by name.

A wrong gradient seldom shows in a loss. So each layout's gradients are compared in fp64, and what is known to go wrong
silently is done on purpose and must be seen.
"""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from puna.core.errors import PunaError
from puna.core.recipe import check, load
from puna.model.config import ModelConfig
from puna.model.layout import LayoutConfig
from puna.train import parallel
from puna.train.parallel.context import chunk_order
from puna.train.parallel.pipeline import stage_blocks
from puna.train.recipe import Recipe, TrainConfig
from puna.train.run.directory import resolve_corpus
from puna.train.run.metrics import read_metrics
from puna.train.run.verify_resume import verify_layouts
from puna.tune.sft.recipe import SFTRecipe

RECIPES = Path(__file__).parents[2] / "recipes"

Run = Callable[..., dict[str, Any]]
INTERLEAVED = {"virtual_stages": 2, "schedule": "interleaved"}


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a case of layout_cases.py in forked processes of one server."""
    command = [sys.executable, str(Path(__file__).with_name("fork_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(case: str, layout: dict[str, Any], **job: Any) -> dict[str, Any]:
            processes = LayoutConfig(**{"dp_shard": 1, **layout})
            size = processes.data_parallel * processes.tp * processes.cp * processes.pp
            asked = {"case": case, "layout": layout, "processes": size, **job}
            server.stdin.write(json.dumps(asked) + "\n")
            server.stdin.flush()
            answer = json.loads(server.stdout.readline() or '{"error": "the server ended"}')
            assert "error" not in answer, answer["error"]
            return answer

        yield ask
        server.stdin.close()


@pytest.mark.parametrize(
    ("layout", "job"),
    [
        ({"dp_shard": 2}, {"micro": 2}),
        ({"tp": 2}, {"micro": 4, "z_loss": 0.01}),
        ({"tp": 2}, {"tie": True}),
        ({"cp": 2}, {"micro": 2}),
        ({"cp": 2}, {"documents": False}),
        ({"pp": 2}, {"micro": 2}),
        ({"pp": 2}, {"micro": 2, "tie": True}),
        ({"tp": 4}, {"kv_heads": 4}),
        ({"cp": 4}, {}),
        ({"pp": 4}, {"micro": 1}),
        ({"dp_shard": 2, "tp": 2}, {"recompute": "selective"}),
        ({"dp_shard": 2, "cp": 2}, {"recompute": "full", "micro": 2}),
        ({"dp_shard": 2, "pp": 2}, {"micro": 2, "recompute": "selective"}),
        ({"dp_shard": 2, "pp": 2, **INTERLEAVED}, {"micro": 1}),
        ({"dp_replicate": 2, "tp": 2}, {}),
        ({"dp_replicate": 2, "cp": 2}, {}),
        ({"tp": 2, "cp": 2}, {"tie": True}),
        ({"tp": 2, "pp": 2}, {"micro": 2, "tie": True}),
        ({"cp": 2, "pp": 2}, {"micro": 4}),
        ({"dp_shard": 2, "tp": 2, "pp": 2}, {"micro": 2}),
        ({"dp_shard": 2, "tp": 2, "pp": 2, **INTERLEAVED}, {"micro": 1, "recompute": "full"}),
        ({"tp": 2, "cp": 2, "pp": 2}, {"micro": 2}),
        ({"dp_replicate": 2, "dp_shard": 2, "tp": 2}, {}),
        ({"dp_shard": 2, "tp": 2, "cp": 2}, {}),
        ({"dp_replicate": 2, "tp": 2, "pp": 2}, {"micro": 2, "tie": True}),
    ],
    ids=lambda value: "-".join(f"{name}{size}" for name, size in value.items()) or "plain",
)
def test_gradients_are_those_of_one_process(run: Run, layout: dict[str, Any], job: dict[str, Any]) -> None:
    found = run("gradients", layout, **job)
    assert found["gradients"] <= 1e-12, found
    assert found["norm"] <= 1e-12
    assert found["loss"] <= 1e-7  # the loop adds losses up in fp32
    assert not found["missing"]
    assert not found["unreduced"]
    assert found["names"] == (38 if job.get("tie") else 39)


@pytest.mark.parametrize("layout", [{"dp_shard": 2, "tp": 2}, {"tp": 2, "pp": 2}])
def test_fp32_gradients_differ_by_rounding_alone(run: Run, layout: dict[str, Any]) -> None:
    assert run("gradients", layout, dtype="float32", micro=2)["gradients"] <= 5e-6


def test_bf16_products_give_the_norm_of_fp32_within_a_hundredth(run: Run) -> None:
    found = run("gradients", {"tp": 2, "pp": 2}, dtype="float32", precision="mixed", micro=2)
    assert found["norm"] <= 0.01
    assert found["loss"] <= 1e-3
    assert 1e-4 <= found["gradients"] <= 0.1


@pytest.mark.parametrize(
    ("mutation", "layout", "job", "measure", "least"),
    [
        ("averaged", {"dp_shard": 2}, {}, "gradients", 0.3),
        ("mean of each rank", {"dp_shard": 2}, {}, "gradients", 0.1),
        ("rows by rank", {"dp_shard": 2, "tp": 2}, {}, "gradients", 0.1),
        ("hidden not partial", {"tp": 2}, {}, "gradients", 0.1),
        ("scaled", {"pp": 2}, {"micro": 2}, "gradients", 0.3),
        ("tied apart", {"pp": 2}, {"micro": 2, "tie": True}, "gradients", 0.1),
        ("positions from zero", {"cp": 2}, {}, "gradients", 0.1),
        ("one document", {"cp": 2}, {}, "gradients", 0.1),
        ("clip by stage", {"pp": 2}, {"micro": 2}, "norm", 0.05),
        ("tied counted twice", {"pp": 2}, {"micro": 2, "tie": True}, "norm", 1e-3),
    ],
)
def test_what_goes_wrong_silently_is_seen(
    run: Run, mutation: str, layout: dict[str, Any], job: dict[str, Any], measure: str, least: float
) -> None:
    assert run("gradients", layout, mutation=mutation, **job)[measure] >= least


def test_without_fsdp_norms_would_keep_parts_of_their_gradients(run: Run) -> None:
    found = run("gradients", {"tp": 2}, mutation="without fsdp")
    assert "model.norm.weight" in found["unreduced"]


@pytest.mark.parametrize(
    ("layout", "job"),
    [
        ({"dp_shard": 4}, {}),
        ({"dp_shard": 2, "tp": 2}, {}),
        ({"tp": 2, "pp": 2}, {"tie": True}),
        ({"dp_replicate": 2, "dp_shard": 2, "tp": 2}, {}),
    ],
)
def test_muon_turns_whole_matrices_in_every_layout(run: Run, layout: dict[str, Any], job: dict[str, Any]) -> None:
    assert run("muon", layout, **job)["weights"] <= 1e-6


def test_muon_on_parts_of_matrices_is_seen(run: Run) -> None:
    assert run("muon", {"dp_shard": 2, "tp": 2}, mutation="muon on parts")["weights"] >= 1e-3


@pytest.mark.parametrize("layout", [{"tp": 2}, {"pp": 2}, {"dp_shard": 2, "tp": 2, "pp": 2}, {"pp": 2, **INTERLEAVED}])
def test_a_whole_forward_between_steps_gives_the_logits_of_one_process(run: Run, layout: dict[str, Any]) -> None:
    found = run("whole_forward", layout, micro=2)
    assert found["logits"] <= 1e-12
    assert found["untouched"]


def test_checkpoints_load_in_every_layout_to_the_bit(run: Run, tmp_path: Path) -> None:
    layouts = [
        {"dp_shard": 4},
        {"tp": 4},
        {"dp_shard": 2, "tp": 2},
        {"tp": 2, "pp": 2},
        {"dp_shard": 2, "pp": 2, **INTERLEAVED},
        {"cp": 2, "tp": 2},
        {"pp": 4},
        {"dp_replicate": 2, "dp_shard": 2},
    ]
    found = run("checkpoints", layouts[0], layouts=layouts, folder=str(tmp_path), kv_heads=4)
    assert found == {"pairs": len(layouts) ** 2, "wrong": []}


def test_an_export_holds_one_tensor_at_a_time_and_is_that_of_one_process(run: Run, tmp_path: Path) -> None:
    found = run("export", {"dp_shard": 2, "tp": 2, "pp": 2}, folder=str(tmp_path))
    assert found["equal"]
    assert found["most"] == 1


def test_recomputation_keeps_sums_of_split_products_and_not_their_parts(run: Run) -> None:
    kept = run("kept_in_recomputation", {"tp": 2})["kept"]
    products = [width for name, width in kept if "mm" in name]
    assert len(products) == 5  # query, key, value, gate and up; not the two that leave a block's halves
    assert sum("reduce_scatter" in name for name, _ in kept) == 2
    assert sum("attention" in name for name, _ in kept) == 1


# -- whole runs --------------------------------------------------------------------------------------------------------

STEPS = 8


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The smoke recipe, an evaluation, a sample and a checkpoint on the way."""
    with contextlib.chdir(RECIPES.parent):
        corpus = resolve_corpus(load(Recipe, RECIPES / "smoke.toml").value, tmp_path_factory.mktemp("corpora")).corpus
    words = [f"corpus={corpus}", f"train.steps={STEPS}", "train.document_mask=true", "checkpoint.every=4"]
    words += ["checkpoint.keep=9", "log.every=1", "log.eval_every=4", "log.sample_every=4", "log.eval_bytes=2000"]
    return RECIPES / "smoke.toml", words


def _facts(run_dir: Path) -> tuple[list[float], list[float], list[str]]:
    """(losses, gradient norms and bits per byte, samples) of a run."""
    events = read_metrics(run_dir)
    lines = [event for event in events if event["kind"] == "train"]
    measured = [event["bits_per_byte"] for event in events if event["kind"] in ("eval", "end")]
    samples = [event["text"] for event in events if event["kind"] == "sample"]
    return [line["loss"] for line in lines], [line["grad_norm"] for line in lines] + measured, samples


def test_runs_in_every_dimension_are_those_of_one_process_and_go_on_in_each_other(
    run: Run, recipe: tuple[Path, list[str]], tmp_path: Path
) -> None:
    file, words = recipe

    def train(name: str, layout: dict[str, int], *, resume: bool = False) -> Path:
        asked = [*words, *(f"layout.{key}={size}" for key, size in layout.items())]
        where = {"recipe": str(file), "run": str(tmp_path / name), "words": asked, "joins": True, "resume": resume}
        event = run("whole_run", layout, **where)
        assert event["kind"] == "end"
        assert event["step"] == STEPS
        return tmp_path / name

    alone = _facts(train("alone", {}))
    assert len(alone[0]) == STEPS
    assert len(alone[2]) == 2
    whole = load_file(tmp_path / "alone/model/model.safetensors")
    for layout in ({"dp_shard": 2, "tp": 2, "pp": 2}, {"cp": 2, "tp": 2}):
        name = "-".join(layout)
        spread = _facts(train(name, layout))
        assert spread[0] == pytest.approx(alone[0], rel=1e-5)
        assert spread[1] == pytest.approx(alone[1], rel=1e-4)
        assert len(spread[2]) == 2
        found = load_file(tmp_path / name / "model/model.safetensors")
        assert found.keys() == whole.keys()
        assert all(torch.allclose(found[key], whole[key], rtol=1e-3, atol=1e-4) for key in whole)
    # Begun with stages and split matrices, continued from step 4 with split sequences, then as one process.
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "dp_shard-tp-pp", moved)
    for layout in ({"cp": 2}, {"dp_shard": 1}):
        shutil.rmtree(moved / f"checkpoints/step-{STEPS}")
        train("moved", layout, resume=True)
        assert _facts(moved)[0] == pytest.approx(alone[0], rel=1e-5)


@pytest.mark.slow
def test_the_proof_hands_a_run_from_layout_to_layout(recipe: tuple[Path, list[str]], tmp_path: Path) -> None:
    file, words = recipe
    checks = verify_layouts(
        load(Recipe, file, words).value, tmp_path, steps=6, layouts=({"tp": 4}, {"tp": 2}, {"pp": 2})
    )
    assert [check.what.split(":")[0] for check in checks] == ["tp 4", *["1 process -> tp 2 -> pp 2"] * 2]
    assert all(check.passed for check in checks), checks


# -- arithmetic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "stages", "sizes"),
    [(4, 2, [2, 2]), (4, 4, [1, 1, 1, 1]), (126, 16, [7, *[8] * 14, 7]), (32, 4, [8, 9, 8, 7])],
)
def test_stages_have_one_block_less_beside_embedding_and_head(layers: int, stages: int, sizes: list[int]) -> None:
    blocks = stage_blocks(layers, stages)
    assert [number for stage in blocks for number in stage] == list(range(layers))
    assert [len(stage) for stage in blocks] == sizes


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_position_has_one_rank_and_causal_work_is_even(ranks: int) -> None:
    order = chunk_order(64, ranks)
    assert sorted(order.flatten().tolist()) == list(range(64))
    assert len({row.sum().item() for row in order}) == 1


@pytest.mark.parametrize(
    ("layout", "seq", "words"),
    [
        ({"tp": 3}, 64, "layout.tp = 3 does not divide the model's 4 attention heads and 2 key-value heads"),
        ({"tp": 4}, 64, "It can be 1 or 2"),
        ({"cp": 3}, 64, "train.seq_len = 64 is not a multiple of 2 x cp x tp = 6. It can be 60 or 66"),
        ({"tp": 2}, 63, "is not a multiple of tp = 2. It can be 62 or 64"),
        ({"pp": 3}, 64, "makes 3 stages of 2 layers"),
        ({"pp": 2, **INTERLEAVED}, 64, "makes 4 stages of 2 layers"),
        ({"tp": 2, "cp": 2, "pp": 2}, 64, ""),
    ],
)
def test_a_layout_that_does_not_divide_is_one_sentence(layout: dict[str, Any], seq: int, words: str) -> None:
    problem = LayoutConfig(**layout).problem_with(ModelConfig(preset="nano"), seq)
    assert words in problem
    assert bool(problem) == bool(words)


@pytest.mark.parametrize(
    ("train", "words"), [({"fp8": True}, "train.fp8 = true does not go with"), ({"compile": "on"}, "fails to compile")]
)
def test_what_does_not_combine_is_refused_by_name(train: dict[str, Any], words: str) -> None:
    world = parallel.World(0, 2, torch.device("cpu"), LayoutConfig(tp=2).resolve(2))
    with pytest.raises(PunaError, match=words):
        parallel.check_possible(world, TrainConfig(**train))
    parallel.check_possible(world, TrainConfig())
    assert not parallel.resolve_compile(TrainConfig(), torch.device("cuda"), world.layout)


def test_an_older_torch_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.12.1+cpu")
    world = parallel.World(0, 2, torch.device("cpu"), LayoutConfig(pp=2).resolve(2))
    with pytest.raises(PunaError, match=r"need torch 2\.13; this is 2\.12\.1"):
        parallel.check_possible(world, TrainConfig())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layout": {"cp": 2}}, "layout.cp and pp above 1 are for pretraining"),
        ({"layout": {"tp": 2}, "lora": {"rank": 8}}, "adapters are not split"),
    ],
)
def test_stages_of_tuning_say_what_they_do_not_have(values: dict[str, Any], words: str) -> None:
    with pytest.raises(PunaError, match=words):
        check(SFTRecipe, {"stage": "sft", **values}, "test")


def test_a_pipeline_wants_as_many_micro_batches_as_stages() -> None:
    assert LayoutConfig(pp=2).resolve(4, batch=8).micro_batches(8) == 2  # left to choose
    with pytest.raises(PunaError, match=r"layout\.pp = 4 stages want at least 4 micro-batches .* leaves 2"):
        LayoutConfig(pp=4).resolve(4, batch=8, micro_batch=4)
    with pytest.raises(PunaError, match="and 5 do not divide evenly"):
        LayoutConfig(pp=2, virtual_stages=2, schedule="interleaved").resolve(2, batch=5, micro_batch=1)
