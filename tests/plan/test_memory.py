"""Predicted memory: the papers' closed forms and printed figures, measured peaks, and invariants."""

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.model.layout import RECOMPUTE, SHARDING
from puna.plan.equations.columns import PRECISIONS, JobColumns, LayoutColumns, device_columns, stack_columns
from puna.plan.equations.constants import STACKS
from puna.plan.equations.hardware import Accelerator, find_accelerator
from puna.plan.equations.memory import (
    GIB,
    MARGIN,
    PARTS,
    STACK_RULES,
    STATES,
    MemoryRules,
    embedding_bytes,
    fit_rules,
    fits,
    layer_bytes,
    layers_in_flight,
    logit_bytes,
    memory,
    reserved,
    rules_columns,
    rules_for,
    stage_parameters,
    total,
)
from puna.plan.equations.shape import Shape, from_config
from puna.plan.evidence.published_runs import PublishedRun, jobs_of, read_runs

RUNS = Path(os.environ.get("PUNA_TEST_DATA", "")) / ".." / "planner-data" / "published_runs_dev.yaml"
needs_runs = pytest.mark.skipif(
    "PUNA_TEST_DATA" not in os.environ or not RUNS.exists(),
    reason="PUNA_TEST_DATA does not contain planner-data/published_runs_dev.yaml",
)

DEVICE = device_columns(find_accelerator("a100"))
# The network of arXiv 2205.05198: dropout, scores written out, logits in fp32.
KORTHIKANTI = MemoryRules(mask_bytes=2, flash=0, logit_bytes=4, logit_split_bytes=4)


def gpt(layers: int, hidden: int, heads: int, vocab: int = 51200) -> Shape:
    """A GPT: plain feed-forward four times as wide, one key per query."""
    return Shape(layers, hidden, heads, heads, hidden // heads, 4 * hidden, vocab, gated=False, tied=True)


GPT3, MT_NLG = gpt(96, 12288, 96), gpt(105, 20480, 128)
LLAMA_8B = Shape(32, 4096, 32, 8, 128, 14336, 128256)
MIXTURE = Shape(24, 2048, 16, 4, 128, 6144, 151936, experts=64, top_k=8, expert_ffn=768, dense_layers=2)
LATENT = replace(MIXTURE, heads=32, kv_heads=32, q_lora=1536, kv_lora=512, nope_dim=128, rope_dim=64, value_dim=128)


def job(shape: Shape, seq_len: int = 2048, batch: int = 64, precision: str = "bf16", **layout: object) -> JobColumns:
    """One job on A100s."""
    for name, codes in (("sharding", SHARDING), ("recompute", RECOMPUTE)):
        if name in layout:
            layout[name] = codes.index(str(layout[name]))
    return JobColumns(shape, DEVICE, LayoutColumns(**layout), seq_len, batch, PRECISIONS.index(precision))


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tp", "sequence_parallel", "recompute", "expected"),
    [
        (1, False, "none", lambda s, h, a, t: 34 + 5 * a * s / h),
        (8, False, "none", lambda s, h, a, t: 10 + 24 / t + 5 * a * s / (h * t)),
        (8, True, "none", lambda s, h, a, t: 34 / t + 5 * a * s / (h * t)),
        (8, False, "selective", lambda s, h, a, t: 10 + 24 / t),
        (8, True, "selective", lambda s, h, a, t: 34 / t),
        (1, False, "full", lambda s, h, a, t: 2),
    ],
)
@pytest.mark.parametrize("shape", [GPT3, MT_NLG])
def test_activations_of_a_layer_are_korthikanti_table_2(shape, tp, sequence_parallel, recompute, expected):
    jobs = job(shape, tp=tp, sequence_parallel=sequence_parallel, recompute=recompute)
    kept, _ = layer_bytes(jobs, KORTHIKANTI)
    assert kept == pytest.approx(shape.hidden * expected(2048, shape.hidden, shape.heads, tp), rel=1e-12)


@pytest.mark.parametrize(("shape", "saved"), [(GPT3, 0.70), (MT_NLG, 0.65)])
def test_selective_recomputation_saves_what_the_paper_prints(shape, saved):
    whole, _ = layer_bytes(job(shape), KORTHIKANTI)
    kept, _ = layer_bytes(job(shape, recompute="selective"), KORTHIKANTI)
    assert 1 - kept / whole == pytest.approx(saved, abs=0.005)  # arXiv 2205.05198 section 5


@pytest.mark.parametrize("vp", [1, 3])
def test_first_stage_of_a_pipeline(vp):
    # arXiv 2205.05198 section 4.3: L layers for any number of stages, (1 + (p - 1)/(p m)) times that when
    # interleaved, and the embedding's dropout mask sbhp/t.
    jobs = job(GPT3, tp=8, pp=8, vp=vp, recompute="selective", sharding="ddp")
    penalty = 1 + 7 / (8 * vp) if vp > 1 else 1
    first, _ = layers_in_flight(jobs, KORTHIKANTI)
    assert first == pytest.approx(96 * penalty)
    size = 2048 * 12288 / 8
    assert embedding_bytes(jobs, KORTHIKANTI, first) == pytest.approx(size * 8 * penalty)
    parts = memory(jobs, KORTHIKANTI)
    assert parts["activations"] == pytest.approx((34 * 96 + 8) * size * penalty)
    assert parts["logits"] == 0


def test_few_micro_batches_do_not_fill_a_pipeline():
    first, last = layers_in_flight(job(GPT3, pp=8, batch=2), KORTHIKANTI)
    assert (first, last) == (2 * 12, 12)


def test_head_and_logits():
    jobs = job(GPT3, tp=8)  # 4sbh/t (1 + V/h), same section
    assert logit_bytes(jobs, KORTHIKANTI) == pytest.approx(4 * 2048 * 12288 / 8 * (1 + 51200 / 12288))
    chunked = logit_bytes(jobs, replace(KORTHIKANTI, logit_tokens=256))
    assert chunked == pytest.approx((4 * 256 + 4 * 12288) * 51200 / 8 + 4 * 2048 * 12288 / 8)


@pytest.mark.parametrize("ranks", [1, 8, 64])
def test_megatron_bytes_of_a_parameter(ranks):
    # Megatron-LM theoretical_memory_usage.py: 18, and 6 + 12/D with the distributed optimizer.
    parameters = float(GPT3.num_parameters())
    for sharding, expected in (("ddp", 18), ("zero1", 6 + 12 / ranks)):
        parts = memory(job(GPT3, dp=ranks, sharding=sharding), MemoryRules())
        assert sum(parts[name] for name in STATES) == pytest.approx(expected * parameters, rel=1e-9)


def test_single_precision_has_one_copy_of_everything():
    for stack in ("megatron-2021", "puna"):
        parts = memory(job(LLAMA_8B, dp=8, precision="fp32", sharding="ddp"), rules_for(stack))
        assert sum(parts[name] for name in STATES) == pytest.approx(16 * LLAMA_8B.num_parameters(), rel=1e-9)
        assert parts["gathered"] == 0
        half = memory(job(LLAMA_8B, dp=8), rules_for(stack))
        assert parts["activations"] == pytest.approx(2 * half["activations"], rel=1e-3)  # a mask is one byte


@pytest.mark.parametrize(("sharding", "printed"), [("ddp", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.88)])
def test_zero_stages_as_printed(sharding, printed):
    # arXiv 1910.02054 figure 1: 7.5 billion parameters on 64 ranks, gradients in fp16, GB.
    rules = MemoryRules(gradient_bytes=2)
    parts = memory(job(GPT3, dp=64, sharding=sharding), rules)
    held = sum(parts[name] for name in STATES) / GPT3.num_parameters() * 7.5
    assert held == pytest.approx(printed, rel=0.005)


def test_fsdp_holds_sixteen_bytes_over_all_ranks_and_a_few_gathered_blocks():
    rules = rules_for("torchtitan")
    parts = memory(job(LLAMA_8B, 8192, 64, dp=64, sharding="zero3"), rules)
    assert sum(parts[name] for name in STATES) == pytest.approx(16 * LLAMA_8B.num_parameters() / 64, rel=1e-9)
    block = (LLAMA_8B.block_parameters()) / 32
    outer = 2 * LLAMA_8B.embedding_parameters() + 4096
    assert parts["gathered"] == pytest.approx(2 * 2 * (outer + 2 * block))


def test_hsdp_shards_over_a_node_only():
    rules = rules_for("torchtitan")
    node, all_ranks = (memory(job(LLAMA_8B, dp=64, sharding=kind), rules) for kind in ("hsdp", "zero3"))
    assert node["weights"] == pytest.approx(8 * all_ranks["weights"])


def test_experts_lie_over_their_own_ranks():
    dense, spread = (stage_parameters(job(MIXTURE, dp=16, ep=ep)) for ep in (1, 8))
    assert spread.routed == pytest.approx(dense.routed / 8)
    assert spread.dense == pytest.approx(dense.dense)
    assert (dense.expert_ranks, spread.expert_ranks) == (16, 2)
    # More expert ranks than data ranks: they include the tensor ranks, and no expert is split further.
    wide = stage_parameters(job(MIXTURE, tp=2, dp=16, ep=32))
    assert wide.routed == pytest.approx(dense.routed / 32)
    assert wide.expert_ranks == 1


def test_last_stage_can_be_the_fullest():
    # One micro-batch: equal activations everywhere, and the logits only on the last stage.
    parts = memory(job(LLAMA_8B, 8192, 1, pp=2, micro_batch=1), rules_for("torchtitan"))
    assert parts["logits"] > 8192 * 128256 * 14


def test_context_parallelism_splits_the_sequence():
    one, four = (memory(job(LLAMA_8B, 32768, 8, cp=cp), rules_for("torchtitan")) for cp in (1, 4))
    assert four["activations"] == pytest.approx(one["activations"] / 4)
    assert four["logits"] == pytest.approx(one["logits"] / 4)
    assert four["gathered"] > one["gathered"]  # keys and values of the other three quarters


# -- invariants -------------------------------------------------------------------------------------------------------

shapes = st.sampled_from([GPT3, LLAMA_8B, MIXTURE, LATENT])
rules_of_stacks = st.sampled_from(sorted(STACK_RULES)).map(rules_for)
powers = st.sampled_from([1, 2, 4, 8])
layouts = st.fixed_dictionaries(
    {
        "tp": powers,
        "cp": st.sampled_from([1, 2, 4]),
        "pp": st.sampled_from([1, 2, 4, 8]),
        "vp": st.just(1),
        "dp": st.sampled_from([1, 2, 8, 64]),
        "ep": powers,
        "micro_batch": st.sampled_from([1, 2, 4]),
        "sharding": st.sampled_from(SHARDING),
        "recompute": st.sampled_from(RECOMPUTE),
        "sequence_parallel": st.booleans(),
    }
)


def size(shape: Shape, layout: dict[str, object], rules: MemoryRules) -> float:
    """Bytes that the allocator reserves, for a batch that fills every pipeline."""
    return float(reserved(memory(job(shape, batch=4 * 64 * 16, **layout), rules)))


@given(shapes, layouts, rules_of_stacks, st.sampled_from([1, 2, 3]), st.sampled_from(PRECISIONS))
def test_parts_are_finite_not_negative_and_sum_up(shape, layout, rules, vp, precision):
    jobs = job(shape, batch=1024, precision=precision, **{**layout, "vp": vp})
    parts = memory(jobs, rules)
    assert tuple(parts) == PARTS
    assert all(np.isfinite(value) and value >= 0 for value in parts.values())
    assert total(parts) == pytest.approx(sum(parts.values()))
    assert reserved(parts) == pytest.approx(total(parts) - parts["context"])


@given(shapes, layouts, rules_of_stacks, st.sampled_from(["tp", "cp", "dp", "ep"]))
def test_more_ranks_never_need_more(shape, layout, rules, way):
    more = {**layout, way: 2 * layout[way]}
    assert size(shape, more, rules) <= size(shape, layout, rules) * (1 + 1e-9)


@given(shapes, layouts, rules_of_stacks)
def test_more_stages_hold_less_of_the_model(shape, layout, rules):
    # Their activations stay: more micro-batches are in flight. A stack may give up resharding in pipelines.
    assume(shape.layers % (2 * layout["pp"]) == 0 and not (layout["pp"] == 1 and rules.pipeline_whole))
    fewer, more = (memory(job(shape, batch=4096, **{**layout, "pp": layout["pp"] * by}), rules) for by in (1, 2))
    assert sum(more[name] for name in STATES) < sum(fewer[name] for name in STATES)


@given(shapes, layouts, rules_of_stacks)
def test_more_sharding_never_needs_more(shape, layout, rules):
    stages = [size(shape, {**layout, "sharding": kind}, rules) for kind in ("ddp", "zero1", "zero2", "zero3")]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(stages))


@given(shapes, layouts, rules_of_stacks)
def test_more_recomputation_never_needs_more(shape, layout, rules):
    need = {kind: size(shape, {**layout, "recompute": kind}, rules) for kind in RECOMPUTE}
    for less, more in (
        ("none", "selective"),
        ("selective", "ops"),
        ("ops", "full"),
        ("none", "blocks"),
        ("blocks", "full"),
    ):
        assert need[more] <= need[less] * (1 + 1e-9), (less, more)


@given(st.lists(st.tuples(shapes, layouts, st.sampled_from(sorted(STACK_RULES))), min_size=2, max_size=6))
def test_columns_are_the_jobs_one_by_one(rows):
    alone = [job(shape, batch=1024, **dict(layout)) for shape, layout, _ in rows]
    columns = JobColumns(
        stack_columns([each.shape for each in alone]),
        DEVICE,
        stack_columns([each.layout for each in alone]),
        np.full(len(rows), 2048),
        np.full(len(rows), 1024),
        np.array([each.precision for each in alone]),
    )
    together = memory(columns, rules_columns([stack for _, _, stack in rows]))
    for index, each in enumerate(alone):
        for name, value in memory(each, rules_for(rows[index][2])).items():
            assert together[name][index] == pytest.approx(float(value), rel=1e-9, abs=1e-6)


def test_every_stack_has_rules_and_unknown_ones_are_named():
    assert all(isinstance(rules_for(name), MemoryRules) for name in STACKS)
    assert rules_for("megatron-bridge-26.06") is STACK_RULES["megatron-core"]  # its parents'
    with pytest.raises(PunaError, match="torchtitna"):
        rules_for("torchtitna")


def test_fits_keeps_a_margin():
    parts = memory(job(LLAMA_8B, dp=8), rules_for("puna"))
    assert fits(parts, total(parts) * (1 + MARGIN))
    assert not fits(parts, total(parts) * (1 + MARGIN / 2))


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_agrees_with_the_trainers_own_prediction(recompute):
    # train.planning.memory counts Puna's own tensors; the planner must agree about the same run.
    from puna.train.planning.memory import predict_memory
    from puna.train.recipe import Recipe

    recipe = Recipe.model_validate(
        {
            "model": {"preset": "llama3-8b"},
            "train": {"steps": 1, "seq_len": 2048, "batch": 32, "micro_batch": 2, "recompute": recompute},
            "optimizer": {"kind": "adamw"},
            "layout": {"dp_shard": 8},
        }
    )
    code = {"none": "none", "selective": "ops", "full": "full"}[recompute]
    jobs = job(from_config(recipe.model), 2048, 32, dp=8, micro_batch=2, sharding="zero3", recompute=code)
    counted = predict_memory(recipe, device_type="cuda", world_size=8).total
    assert float(reserved(memory(jobs, rules_for("puna")))) == pytest.approx(counted, rel=0.08)


# -- published runs ----------------------------------------------------------------------------------------------------


def stack_of(row: PublishedRun) -> str:
    """The name of the stack in the rules: torchtitan compiles its loss since 2025, and rows since then say so."""
    return "torchtitan-2025" if row.source == "torchtitan" and "2025" in str(row.values.get("stack")) else row.stack


def measured_rows() -> tuple[list[PublishedRun], np.ndarray]:
    rows = [row for row in read_runs(RUNS) if row.memory_gib]
    return rows, np.array([row.memory_gib for row in rows]) * GIB


def fitted(rows: list[PublishedRun], sizes: np.ndarray) -> tuple[float, float]:
    return fit_rules(jobs_of(rows)[0], rules_columns([stack_of(row) for row in rows]), sizes)


def predicted(rows: list[PublishedRun], constants: tuple[float, float] | None = None) -> np.ndarray:
    rules = rules_columns([stack_of(row) for row in rows])
    if constants:
        rules = replace(rules, fragmentation=constants[0], tensor_buffers=constants[1])
    return np.asarray(reserved(memory(jobs_of(rows)[0], rules)))


@needs_runs
def test_measured_peaks_of_torchtitan():
    rows, sizes = measured_rows()
    assert len(rows) == 8
    defaults = MemoryRules()
    assert fitted(rows, sizes) == (defaults.fragmentation, defaults.tensor_buffers)
    assert np.median(np.abs(predicted(rows) / sizes - 1)) < 0.03
    # Each row with constants that were fitted without it.
    errors = []
    for index, row in enumerate(rows):
        others = rows[:index] + rows[index + 1 :]
        constants = fitted(others, np.delete(sizes, index))
        errors.append(abs(predicted([row], constants)[0] / sizes[index] - 1))
    assert np.median(errors) < 0.04
    assert max(errors) < 0.07


def visible_bytes(accelerator: Accelerator) -> float:
    """The memory that torch reports as usable: 79.1 of an H100's 80 GiB, 139.8 of an H200's 141, 267.7 on a B300."""
    return 267.7 * GIB if accelerator.name in ("b300", "gb300") else 0.99 * accelerator.memory_gb * GIB


# Rows that ran but are predicted not to fit, with the reason.
DO_NOT_FIT = {
    "bloom-0070": "its optimizer states were sharded, which the row does not say",
    "opt-0071": "FSDP over an unknown number of ranks; half of its layout is published",
    "mbridge-0418": "70 B parameters on one GPU each way: sharded as its neighbours, which the row does not say",
    "dgxc-v25.02-0153": "4 % too much: 340 B parameters with the optimizer over two ranks",
    "dgxc-v25.02-0158": "the same in fp8, within the margin",
}


@needs_runs
def test_published_runs_fit_their_accelerators():
    rows = read_runs(RUNS)
    jobs, index = jobs_of(rows)
    parts = memory(jobs, rules_columns([stack_of(rows[i]) for i in index]))
    good = fits(parts, np.array([visible_bytes(rows[i].accelerator) for i in index]))
    bad = {row.id for number, row in enumerate(rows) if not good[index == number].any()}
    assert len(rows) > 500
    assert bad <= set(DO_NOT_FIT)
