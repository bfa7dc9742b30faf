"""Puna's own runs: the equations reproduce measurements, and Muon costs what its products cost."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.model.config import ModelConfig
from puna.model.layout import Layout
from puna.plan.equations.cost import PARTS
from puna.plan.equations.cost_model import CostModel
from puna.plan.equations.hardware import Accelerator, find_accelerator
from puna.plan.equations.shape import from_config
from puna.plan.evidence.calibrated import calibrated_values, muon_flops, predict_calibrated
from puna.plan.evidence.local_device import AttentionRate, Calibration, LossRate, Products, calibrated
from puna.plan.layouts.predict import Question, predict

MODEL = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=688,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=1024,
    tie_word_embeddings=False,
)
CPU = Accelerator(
    name="a CPU",
    generation="cpu",
    bf16_tflops=0.4,
    fp32_tflops=0.2,
    memory_gb=16,
    memory_gb_per_s=20,
    link_gb_per_s=10,
    link_domain=1,
    node_size=1,
    nic_gbit_per_s=10,
    watts=20,
)
MEASURED = Calibration(
    device="a CPU",
    date="2026-11-23",
    matmul_tflops=0.38,
    matmul_fp32_tflops=0.16,
    stream_gb_per_s=25,
    products=Products(tflops=0.37, half_size=10),
    products_fp32=Products(tflops=0.16, half_size=4),
    attention=(
        AttentionRate(seq_len=128, head_dim=64, tflops=0.03),
        AttentionRate(seq_len=512, head_dim=64, tflops=0.06),
        AttentionRate(seq_len=1024, head_dim=64, tflops=0.09),
        AttentionRate(seq_len=512, head_dim=32, tflops=0.05),
    ),
    attention_fp32=(AttentionRate(seq_len=512, head_dim=64, tflops=0.07),),
    muon_tflops=0.14,
    loss=(LossRate(vocab=4096, gb_per_s=7), LossRate(vocab=16384, gb_per_s=3)),
    gate_gb_per_s=25,
    launch_seconds=2.5e-6,
)
LAYOUT = Layout(micro_batch=8)


def question(accelerator: Accelerator | None = None, **more: object) -> Question:
    known = {
        "model": "small",
        "shape": from_config(MODEL),
        "accelerator": accelerator or calibrated(CPU, MEASURED),
        "accelerators": 1,
        "seq_len": 512,
        "batch": 8,
        "costs": CostModel("puna"),
    }
    return Question(**{**known, **more})  # type: ignore[arg-type]


def test_what_was_measured_comes_back_out_of_the_cost_model() -> None:
    found = predict_calibrated(question(), LAYOUT, MEASURED)
    tokens = 8 * 512

    def product(inputs: int, outputs: int) -> float:
        shrunk = (1 + 10 / tokens) * (1 + 10 / inputs) * (1 + 10 / outputs)
        return 6 * tokens * inputs * outputs * shrunk / 0.37e12

    layer = product(256, 768) + product(256, 256) + product(256, 2 * 688) + product(688, 256)
    assert found.seconds["matmul"] == pytest.approx(4 * layer)
    triangle = 2 * tokens * 512 * 256 / 2
    assert found.seconds["attention"] == pytest.approx(4 * 3.5 * 2 * triangle / 0.06e12)
    assert found.seconds["head"] == pytest.approx(product(256, 4096) + 20 * tokens * 4096 / 7e9)
    fp32 = predict_calibrated(question(precision="fp32"), LAYOUT, MEASURED)
    assert fp32.seconds["attention"] == pytest.approx(4 * 3.5 * 2 * triangle / 0.07e12)
    assert fp32.seconds["matmul"] > 2 * found.seconds["matmul"]


def test_parts_sum_to_the_step_and_the_interval_goes_with_it() -> None:
    usual = predict(replace(question(), costs=CostModel("puna", calibrated_values(question(), MEASURED))), LAYOUT)
    found = predict_calibrated(question(), LAYOUT, MEASURED, muon_iterations=5)
    assert set(found.seconds) == set(PARTS)
    assert found.step_seconds == pytest.approx(sum(found.seconds.values()))
    assert found.low < found.step_seconds < found.high
    assert found.high / found.step_seconds == pytest.approx(usual.high / usual.step_seconds)
    more = found.step_seconds - usual.step_seconds
    for line, other in zip(found.sensitivities, usual.sensitivities, strict=True):
        assert line.step_seconds == pytest.approx(other.step_seconds + more)


def test_attention_lies_between_the_sizes_measured() -> None:
    def rate(seq_len: int, heads: int = 4) -> float:
        shape = replace(from_config(MODEL), heads=heads, kv_heads=heads, head_dim=256 // heads)
        asked = question(shape=shape, seq_len=seq_len, batch=8)
        return calibrated_values(asked, MEASURED)["cpu.attention"] * asked.accelerator.peak_tflops("bf16")

    assert rate(512) == pytest.approx(0.06)
    assert rate(64) == pytest.approx(0.03)
    assert rate(4096) == pytest.approx(0.09)
    assert rate(256) == pytest.approx(math.sqrt(0.03 * 0.06))
    assert rate(512, heads=8) == pytest.approx(0.05)
    assert rate(1024, heads=8) == pytest.approx(0.09 * 0.05 / 0.06)


def test_muon_is_three_products_an_iteration_or_few_long_ones() -> None:
    square = replace(from_config(MODEL), ffn=256, layers=1)  # four square matrices and three others
    assert muon_flops(square, 5, through_gram=True) == pytest.approx(7 * 5 * 6 * 256**3)
    shape = replace(from_config(MODEL), layers=1)
    m, n = 256, 688
    plain = 4 * 30 * m**3 + 3 * 5 * (4 * m * m * n + 2 * m**3)
    assert muon_flops(shape, 5, through_gram=False) == pytest.approx(plain)
    gram = 4 * 30 * m**3 + 3 * (4 * m * m * n + 17 * 2 * m**3)
    assert muon_flops(shape, 5, through_gram=True) == pytest.approx(gram)


def test_muon_costs_more_than_adamw_and_ranks_share_it() -> None:
    adamw = predict_calibrated(question(), LAYOUT, MEASURED).seconds["optimizer"]
    alone = predict_calibrated(question(), LAYOUT, MEASURED, muon_iterations=5).seconds["optimizer"]
    products = muon_flops(from_config(MODEL), 5, through_gram=True)
    assert alone - adamw > products / 0.14e12
    accelerator = calibrated(CPU, MEASURED).model_copy(update={"link_domain": 2, "node_size": 2})
    both = question(accelerator, accelerators=2)
    shared = predict_calibrated(both, Layout(dp_replicate=2, micro_batch=4), MEASURED, muon_iterations=5)
    assert adamw < shared.seconds["optimizer"] < alone - products / 0.14e12 / 3
    assert shared.seconds["data"] > 0


def test_eager_blocks_pass_over_memory_more_often() -> None:
    compiled, eager = (predict_calibrated(question(), LAYOUT, MEASURED, compiled=one) for one in (True, False))
    assert eager.seconds["elementwise"] > 2 * compiled.seconds["elementwise"]
    assert eager.seconds["matmul"] == compiled.seconds["matmul"]


def test_selective_recomputation_repeats_no_product() -> None:
    plain = predict_calibrated(question(), LAYOUT, MEASURED)
    again = LAYOUT.model_copy(update={"recompute": "ops"})
    selective = predict_calibrated(question(), again, MEASURED)
    assert selective.seconds["recompute"] == pytest.approx(plain.seconds["elementwise"] / 3)
    full = predict_calibrated(question(), LAYOUT.model_copy(update={"recompute": "full"}), MEASURED)
    assert full.seconds["recompute"] > plain.seconds["matmul"] / 3


@given(st.floats(1.0, 3.0), st.sampled_from(["products", "muon_tflops", "attention", "loss", "gate", "stream"]))
def test_a_faster_device_is_never_slower(factor: float, what: str) -> None:
    def faster(one: Products | AttentionRate | LossRate) -> object:
        field = "gb_per_s" if isinstance(one, LossRate) else "tflops"
        return one.model_copy(update={field: factor * getattr(one, field)})

    if what == "muon_tflops":
        update: dict[str, object] = {what: factor * 0.14}
    elif what in ("gate", "stream"):
        update = {f"{what}_gb_per_s": factor * getattr(MEASURED, f"{what}_gb_per_s")}
    else:
        value = getattr(MEASURED, what)
        update = {what: tuple(map(faster, value)) if isinstance(value, tuple) else faster(value)}
    better = MEASURED.model_copy(update=update)
    # The accelerator stays the same: it only defines what the shares refer to.
    before = predict_calibrated(question(), LAYOUT, MEASURED, muon_iterations=5).step_seconds
    assert predict_calibrated(question(), LAYOUT, better, muon_iterations=5).step_seconds <= before * (1 + 1e-9)


def test_a_cpu_that_was_not_measured_is_estimated() -> None:
    found = predict_calibrated(question(CPU), LAYOUT, None, muon_iterations=5)
    measured = predict_calibrated(question(), LAYOUT, MEASURED, muon_iterations=5)
    assert 0.5 < found.step_seconds / measured.step_seconds < 2
    # The best products alone change the estimate.
    slow = Calibration(device="a CPU", date="", matmul_tflops=0.19, matmul_fp32_tflops=0.08)
    assert (
        predict_calibrated(question(CPU), LAYOUT, slow).step_seconds
        > 1.8 * predict_calibrated(question(CPU), LAYOUT, None).step_seconds
    )


def test_a_gpus_shares_move_with_its_best_product() -> None:
    h100 = find_accelerator("h100")
    asked = question(h100, batch=64)
    layout = Layout(micro_batch=64)
    assert h100.matmul_tflops
    usual = predict_calibrated(asked, layout, None)
    same = Calibration(device="H100", date="", matmul_tflops=h100.matmul_tflops)
    assert predict_calibrated(asked, layout, same).seconds["matmul"] == pytest.approx(usual.seconds["matmul"])
    limited = Calibration(device="H100", date="", matmul_tflops=0.8 * h100.matmul_tflops)
    slower = predict_calibrated(asked, layout, limited, muon_iterations=5)
    assert slower.seconds["matmul"] > usual.seconds["matmul"]
    assert slower.seconds["attention"] == usual.seconds["attention"]
    assert slower.seconds["optimizer"] > usual.seconds["optimizer"]
    assert calibrated_values(asked, None) == calibrated_values(asked, same)
