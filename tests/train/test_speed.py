"""Expected speed: a recipe as the planner's question, on a machine with known rates."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from puna.core.errors import PunaError
from puna.core.recipe import load
from puna.plan.equations.shape import from_config
from puna.plan.evidence import local_device as plan_machine
from puna.plan.evidence.calibrated import muon_flops
from puna.plan.evidence.local_device import AttentionRate, Calibration, LossRate, Products
from puna.train.measure.machine import Machine
from puna.train.optimizer import orthogonalize
from puna.train.planning.step_time import expected_step
from puna.train.recipe import Recipe

LAPTOP = Path(__file__).parents[2] / "recipes" / "laptop.toml"
RATES = Calibration(
    device="a CPU",
    date="2026-11-23",
    matmul_tflops=0.38,
    matmul_fp32_tflops=0.16,
    stream_gb_per_s=25,
    products=Products(tflops=0.37, half_size=10),
    products_fp32=Products(tflops=0.16, half_size=4),
    attention=(AttentionRate(seq_len=512, head_dim=64, tflops=0.06),),
    attention_fp32=(AttentionRate(seq_len=512, head_dim=64, tflops=0.07),),
    loss=(LossRate(vocab=4096, gb_per_s=7),),
    gate_gb_per_s=25,
    launch_seconds=2.5e-6,
)
MACHINE = Machine("cpu", "a CPU", 2, 8 << 30, {"fp32": 0.16e12, "bf16": 0.38e12}, True, RATES)


def recipe(*words: str) -> Recipe:
    return load(Recipe, LAPTOP, words).value


def step_seconds(found: Recipe, machine: Machine = MACHINE, world_size: int = 1) -> float:
    expected = expected_step(found, machine, world_size)
    assert expected is not None
    return expected.step_seconds


def test_a_step_takes_longer_than_its_products_at_full_rate() -> None:
    laptop = recipe()
    expected = expected_step(laptop, MACHINE)
    assert expected is not None
    flops = laptop.tokens_per_step * laptop.model.flops_per_token(laptop.train.seq_len, attention="causal")
    assert flops / 0.38e12 < expected.step_seconds < 4 * flops / 0.38e12
    assert expected.tokens_per_step == laptop.tokens_per_step
    assert expected.tokens_per_second == pytest.approx(laptop.tokens_per_step / expected.step_seconds)


def test_every_knob_of_a_recipe_that_costs_time_does() -> None:
    usual = step_seconds(recipe())
    for words in (
        ["train.precision=fp32"],
        ["train.compile=off"],
        ["train.recompute=full"],
        ["train.recompute=selective"],
        ["train.micro_batch=1"],
        ["train.batch=16"],
        ["train.seq_len=1024"],
        ["model.vocab_size=8192"],
        ["model.num_hidden_layers=5"],
    ):
        assert step_seconds(recipe(*words)) > usual, words
    assert step_seconds(recipe("optimizer.kind=adamw")) < usual
    no_compiler = Machine("cpu", "a CPU", 2, 8 << 30, MACHINE.matmul_flops, False, RATES)
    assert step_seconds(recipe(), no_compiler) == step_seconds(recipe("train.compile=off"))


def test_slow_bf16_means_fp32() -> None:
    slow = Machine("cpu", "a CPU", 2, 8 << 30, {"fp32": 0.16e12, "bf16": 0.01e12}, True, RATES)
    assert step_seconds(recipe(), slow) == step_seconds(recipe("train.precision=fp32"), slow)


def test_the_best_products_alone_give_an_estimate() -> None:
    bare = Machine("cpu", "a CPU", 2, 8 << 30, MACHINE.matmul_flops, True)
    assert 0.5 < step_seconds(recipe(), bare) / step_seconds(recipe()) < 2


def test_without_rates_nothing_is_expected() -> None:
    assert expected_step(recipe(), Machine("cpu", "a CPU", 2, 8 << 30, {}, True)) is None


def test_processes_share_the_rows_and_pay_for_the_exchange() -> None:
    alone, shared = expected_step(recipe(), MACHINE), expected_step(recipe(), MACHINE, 2)
    assert alone is not None
    assert shared is not None
    assert shared.seconds["data"] > 0 == alone.seconds["data"]
    assert shared.seconds["attention"] == pytest.approx(alone.seconds["attention"] / 2)
    assert shared.layout.sharding == "ddp"


def test_layouts_are_those_of_the_trainer() -> None:
    assert recipe().resolve_layout(4).sharding == "zero3"
    hybrid = recipe("layout.dp_replicate=2").resolve_layout(4, on_cpu=True)
    assert (hybrid.sharding, hybrid.data_parallel, hybrid.micro_batch) == ("hsdp", 4, 2)
    again = recipe("train.recompute=full", "train.micro_batch=3", "train.batch=9").resolve_layout(1)
    assert (again.recompute, again.micro_batch) == ("full", 3)
    with pytest.raises(PunaError, match="cannot be divided evenly among 3"):
        recipe().resolve_layout(3)
    with pytest.raises(PunaError, match="needs 2 processes, but 4 are running"):
        recipe("layout.dp_replicate=2", "layout.dp_shard=1").resolve_layout(4)


def test_a_gpu_is_looked_up_and_an_unknown_one_is_described_by_its_rates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = Calibration(device="GPU", date="", matmul_tflops=700, matmul_fp32_tflops=300, stream_gb_per_s=4000)
    gpu = Machine("cuda", "GPU", 16, 80 << 30, {"fp32": 3e14, "bf16": 7e14}, True, rates)
    monkeypatch.setattr(plan_machine, "_cards", lambda: ["NVIDIA H200"] * 8)
    large = recipe("model.preset=llama3.2-1b", "train.seq_len=1024", "train.batch=64", "train.fp8=true")
    expected = expected_step(large, gpu, 8)
    assert expected is not None
    assert expected.question.accelerator.name == "h200"
    assert (expected.question.precision, expected.layout.sharding) == ("fp8", "zero3")
    monkeypatch.setattr(plan_machine, "_cards", lambda: ["NVIDIA T1000"])
    unknown = expected_step(recipe(), gpu)
    assert unknown is not None
    assert unknown.question.accelerator.name == "GPU"


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (64, 128), (176, 64)])
def test_muons_products_are_those_that_torch_counts(shape: tuple[int, int], bf16: bool) -> None:
    for iterations in (1, 5):
        with FlopCounterMode(display=False) as counter:
            orthogonalize(torch.randn(3, *shape), iterations, bf16=bf16)
        one = recipe(
            f"model.hidden_size={min(shape)}",
            f"model.intermediate_size={max(shape)}",
            "model.num_hidden_layers=1",
        )
        blocks = from_config(one.model)
        # Of a block's seven matrices the three of the feed-forward have this shape.
        m = min(shape)
        attention = 4 * iterations * 6 * m**3
        assert counter.get_total_flops() == pytest.approx(
            muon_flops(blocks, iterations, through_gram=not bf16) - attention
        )
