"""The cost model: every equation against its closed form or a published figure, and invariants of legal jobs.

`IDEAL` is a machine whose units, memory and links reach their datasheet's rates, hide nothing and start immediately, so
that each part of a step is one formula.
"""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.model.layout import RECOMPUTE, SHARDING
from puna.plan.equations.columns import (
    PRECISIONS,
    DeviceColumns,
    JobColumns,
    LayoutColumns,
    device_columns,
    stack_columns,
)
from puna.plan.equations.constants import STACKS, Owners, constants_for, load_constants
from puna.plan.equations.cost import (
    COMPUTE_PARTS,
    PARTS,
    Constants,
    clock,
    collective_seconds,
    exposed,
    group_rate,
    product_seconds,
    rank_parameters,
    step_time,
    total_seconds,
)
from puna.plan.equations.hardware import find_accelerator
from puna.plan.equations.shape import Shape

BF16 = PRECISIONS.index("bf16")
LLAMA_8B = Shape(32, 4096, 32, 8, 128, 14336, 128256)
LLAMA_70B = Shape(80, 8192, 64, 8, 128, 28672, 128256)
LLAMA_405B = Shape(126, 16384, 128, 8, 128, 53248, 128256)
GPT3 = Shape(96, 12288, 96, 96, 128, 49152, 51200, gated=False, tied=True)
MIXTURE = Shape(48, 2048, 32, 4, 128, 6144, 151936, experts=128, top_k=8, expert_ffn=768)
LATENT = Shape(
    61, 7168, 128, 128, 192, 18432, 129280, experts=256, top_k=8, shared_experts=1, expert_ffn=2048, dense_layers=3,
    q_lora=1536, kv_lora=512, nope_dim=128, rope_dim=64, value_dim=128, mtp_layers=1,
)  # fmt: skip

H100, A100, B200 = (device_columns(find_accelerator(name)) for name in ("h100", "a100", "b200"))
SHIPPED = load_constants()
always = settings(deadline=None, max_examples=60)
# No memory traffic, no launches, no latency, no stragglers: only FLOPs over peaks and bytes over links remain.
IDEAL = Constants(
    reference_watts=700 / 989,
    power=0.0,
    matmul=1.0,
    matmul_bf16=1.0,
    half_size=0.0,
    half_power=0.0,
    attention=1.0,
    attention_half=0.0,
    recompute=1.0,
    flash=1.0,
    memory=1.0,
    elementwise=0.0,
    cast=0.0,
    launch_seconds=0.0,
    link=1.0,
    nic=1.0,
    rails=1.0,
    latency_seconds=0.0,
    tensor_hidden=0.0,
    context_hidden=0.0,
    expert_hidden=0.0,
    pipeline_hidden=0.0,
    data_hidden=0.0,
    gradient_bytes=2.0,
    expert_moves=0.0,
    expert_seconds=0.0,
    straggler=0.0,
)
NO_TRAFFIC = replace(H100, memory_rate=np.inf)


def job(
    shape: Shape,
    seq_len: int = 4096,
    batch: int = 64,
    precision: str = "bf16",
    device: DeviceColumns = NO_TRAFFIC,
    **layout: object,
) -> JobColumns:
    """One job on H100s with infinitely fast memory, or on `device`."""
    for name, codes in (("sharding", SHARDING), ("recompute", RECOMPUTE)):
        if name in layout:
            layout[name] = codes.index(str(layout[name]))
    return JobColumns(shape, device, LayoutColumns(**layout), seq_len, batch, PRECISIONS.index(precision))


def shipped(stack: str = "megatron-core", generation: str = "hopper", precision: str = "bf16") -> Constants:
    """The fitted constants of one stack, as a search receives them."""
    return constants_for(SHIPPED, Owners(((stack, generation, PRECISIONS.index(precision)),), 0))


def seconds(jobs: JobColumns, constants: Constants) -> float:
    return float(total_seconds(step_time(jobs, constants)))


# -- products and attention --------------------------------------------------------------------------------------------


def test_a_product_is_a_roofline():
    flops, traffic = 2 * 512 * 1024 * 2048, 2 * (512 * 1024 + 1024 * 2048 + 512 * 2048)
    assert product_seconds(512, 1024, 2048, 1e12, 0.5, 0, 1e15) == pytest.approx(flops / 0.5e12)
    assert product_seconds(512, 1024, 2048, 1e18, 0.5, 0, 1e9) == pytest.approx(traffic / 1e9)
    assert product_seconds(512, 0, 2048, 1e12, 0.5, 100, 1e9) == 0


@pytest.mark.parametrize("size", [(100, 1e9, 1e9), (1e9, 100, 1e9), (1e9, 1e9, 100)])
def test_a_short_side_halves_the_rate(size):
    rows, inputs, outputs = size
    whole, halved = (product_seconds(rows, inputs, outputs, 1e12, 0.7, half, np.inf) for half in (0, 100))
    assert halved == pytest.approx(2 * whole, rel=1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"dp": 8, "sharding": "zero3"},
        {"tp": 8, "dp": 2},
        {"tp": 2, "cp": 2, "pp": 4, "dp": 2, "micro_batch": 2},
        {"pp": 8, "vp": 2, "dp": 2, "sharding": "zero1"},
    ],
)
@pytest.mark.parametrize("shape", [LLAMA_8B, LLAMA_70B, GPT3])
def test_products_are_the_shapes_flops_wherever_they_lie(shape, layout):
    # Summed over all accelerators, the products' time is 6 FLOPs per parameter and token over the peak; the head's is
    # that of the last stage. The norms' gains are not products.
    jobs = job(shape, **layout)
    parts = step_time(jobs, IDEAL)
    ranks = jobs.layout.accelerators
    spent = parts["matmul"] * ranks + parts["head"] * ranks / layout.get("pp", 1)
    gains = 2 * shape.layers * shape.hidden
    assert spent * 989e12 == pytest.approx(6 * (shape.active_parameters() - gains) * 64 * 4096, rel=1e-9)
    # Attention: forward as the causal convention counts it, backward 2.5 times instead of 2 times [arXiv 2307.08691].
    counted = (shape.flops_per_token(4096, causal=True) - 6 * shape.active_parameters()) * 64 * 4096
    assert parts["attention"] * ranks * 989e12 == pytest.approx(counted * 3.5 / 3, rel=1e-9)


@pytest.mark.parametrize("layout", [{}, {"dp": 16, "ep": 8}, {"tp": 4, "dp": 8, "ep": 16, "micro_batch": 2}])
def test_products_of_a_mixture_are_its_active_parameters(layout):
    jobs = job(MIXTURE, **layout)
    parts = step_time(jobs, IDEAL)
    unsplit = 48 * (2 * 2048 + 2048 * 128)  # without the norms' gains and routers
    counted = 6 * (MIXTURE.active_parameters() - unsplit) * 64 * 4096
    assert (parts["matmul"] + parts["head"]) * jobs.layout.accelerators * 989e12 == pytest.approx(counted, rel=1e-9)


def test_products_of_latent_attention():
    shape = replace(LATENT, mtp_layers=0)
    parts = step_time(job(shape, dp=8, ep=8), IDEAL)
    unsplit = 61 * 2 * 7168 + 58 * 7168 * 256
    counted = 6 * (shape.active_parameters() - unsplit) * 64 * 4096
    assert (parts["matmul"] + parts["head"]) * 8 * 989e12 == pytest.approx(counted, rel=1e-9)
    counted = (shape.flops_per_token(4096, causal=True) - 6 * shape.active_parameters()) * 64 * 4096
    assert parts["attention"] * 8 * 989e12 == pytest.approx(counted * 3.5 / 3, rel=1e-9)


def test_a_further_token_layer_is_a_layer_and_a_head():
    alone, more = (step_time(job(replace(LATENT, mtp_layers=n), dp=8, ep=8), IDEAL) for n in (0, 1))
    assert more["head"] == pytest.approx(2 * alone["head"])
    assert more["matmul"] == pytest.approx(alone["matmul"] * 62 / 61)


def test_narrow_products_leave_attention_and_the_head_wide():
    wide, narrow = (step_time(job(LLAMA_8B, precision=name), IDEAL) for name in ("bf16", "fp8"))
    assert narrow["matmul"] == pytest.approx(wide["matmul"] * 989 / 1979)
    assert narrow["attention"] == pytest.approx(wide["attention"])
    assert narrow["head"] == pytest.approx(wide["head"])


def test_single_precision_is_slow_everywhere():
    wide, single = (step_time(job(LLAMA_8B, precision=name), IDEAL) for name in ("bf16", "fp32"))
    for part in ("matmul", "attention", "head"):
        assert single[part] == pytest.approx(2 * wide[part])


def test_a_window_reads_less():
    shape = replace(LLAMA_8B, window=128)
    whole, windowed = (float(step_time(job(s, seq_len=8192), IDEAL)["attention"]) for s in (LLAMA_8B, shape))
    assert windowed / whole == pytest.approx((1 + 256 / 8192) / 2)


def test_scores_written_out_cost_the_whole_square_and_pass_over_memory():
    old = replace(IDEAL, flash=0.0)
    square = 4 * 4096 * 12288 * 96 * 4096 * 64  # two products of 2·s·h, full square
    plain = step_time(job(GPT3), old)
    assert plain["attention"] == pytest.approx(3 * square / 989e12)
    slow = step_time(job(GPT3, device=H100), old)
    scores = 96 * 96 * 4096 * 4096 * 64
    assert slow["attention"] - plain["attention"] >= 0.999 * 3 * 11 * scores / 3350e9


def test_less_power_lowers_the_clock():
    at = replace(IDEAL, power=0.4)
    assert clock(job(LLAMA_8B), at) == pytest.approx(1, rel=1e-6)
    capped = job(LLAMA_8B, device=replace(NO_TRAFFIC, watts=500))
    assert clock(capped, at) == pytest.approx((500 / 700) ** 0.4)
    slower = step_time(capped, at)["matmul"] / step_time(job(LLAMA_8B), at)["matmul"]
    assert slower == pytest.approx((700 / 500) ** 0.4)


# -- recomputation -----------------------------------------------------------------------------------------------------


def test_recomputation_does_again_what_it_says():
    none, selective, ops, blocks, full = (step_time(job(GPT3, recompute=kind), IDEAL) for kind in RECOMPUTE)
    products, attention = float(none["matmul"]) / 3, float(none["attention"]) / 3.5  # one forward pass of each
    assert none["recompute"] == selective["recompute"] == 0
    assert full["recompute"] == pytest.approx(products + attention)  # 4/3 of the FLOPs, arXiv 2104.04473 equation 2
    assert blocks["recompute"] == pytest.approx(full["recompute"] / 2)
    assert ops["recompute"] == pytest.approx(products / 2)
    # Without flash attention "selective" recomputes the scores, arXiv 2205.05198 section 5.
    written = step_time(job(GPT3, recompute="selective"), replace(IDEAL, flash=0.0))
    assert written["recompute"] == pytest.approx(written["attention"] / 3)


def test_a_block_done_again_sends_again():
    sent = {kind: float(step_time(job(GPT3, tp=8, recompute=kind), IDEAL)["tensor"]) for kind in RECOMPUTE}
    assert sent["none"] == sent["selective"] == sent["ops"]
    assert sent["full"] == pytest.approx(1.5 * sent["none"])
    assert sent["blocks"] == pytest.approx(1.25 * sent["none"])


# -- pipelines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pp", "vp"), [(2, 1), (8, 1), (8, 2), (16, 3)])
def test_bubble_is_narayanans(pp, vp):
    # arXiv 2104.04473 section 2.2: (p - 1)/(v·m) of the time of the work itself.
    shape = replace(GPT3, vocab=0)
    parts = step_time(job(shape, pp=pp, vp=vp, batch=64), replace(IDEAL, pipeline_hidden=1.0))
    work = sum(float(parts[name]) for name in COMPUTE_PARTS)
    assert parts["bubble"] / work == pytest.approx((pp - 1) / (vp * 64))


def test_head_lies_on_the_last_stage():
    # 128 layers on 16 stages: 8 each and the head on top. Llama 3's 126: the last stage has fewer, the head is hidden.
    for layers, with_head in ((128, True), (126, False)):
        parts = step_time(job(replace(LLAMA_405B, layers=layers), pp=16), IDEAL)
        assert bool(parts["head"]) is with_head
        each = float(step_time(job(replace(LLAMA_405B, layers=16), pp=16), IDEAL)["matmul"])
        assert parts["matmul"] == pytest.approx(8 * each)


@pytest.mark.parametrize("vocab", [0, 30_000, 128_256, 500_000, 2_000_000])
@pytest.mark.parametrize(("layers", "pp"), [(126, 16), (105, 8), (30, 16), (9, 8), (61, 4)])
def test_uneven_stages_are_spread_as_well_as_can_be(layers, pp, vocab):
    # By brute force: every number of layers on the stages without the head.
    shape = replace(LLAMA_8B, layers=layers, vocab=vocab)
    parts = step_time(job(shape, pp=pp), IDEAL)
    alone = step_time(job(replace(shape, layers=1), batch=1), IDEAL)
    layer = sum(float(alone[name]) for name in COMPUTE_PARTS if name != "head")
    head = float(alone["head"])
    spread = min(
        max(each * layer, max(0, layers - (pp - 1) * each) * layer + head)
        for each in range(-(-layers // pp), layers + 1)
    )
    assert layers % pp
    assert sum(float(parts[name]) for name in COMPUTE_PARTS) == pytest.approx(64 * spread)


def test_stages_pass_activations_on():
    # 2·b·s·h bytes over the tensor group, each way, for every chunk [arXiv 2104.04473 section 3.2].
    volume = 2 * 4096 * 12288
    far = step_time(job(GPT3, tp=8, pp=8, vp=3, dp=2), IDEAL)  # stages 16 apart: another node
    assert far["pipeline"] == pytest.approx(32 * 2 * 3 * volume / 8 / 50e9)
    near = step_time(job(GPT3, tp=2, pp=4), IDEAL)
    assert near["pipeline"] == pytest.approx(64 * 2 * volume / 2 / 450e9)
    hidden = step_time(job(GPT3, tp=8, pp=8, vp=3, dp=2), replace(IDEAL, pipeline_hidden=0.25))
    assert hidden["pipeline"] == pytest.approx(0.75 * far["pipeline"])


# -- collectives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_ring_sends_its_share_of_the_volume(ranks):
    jobs = job(LLAMA_8B)
    assert collective_seconds(jobs, IDEAL, 1e9, ranks, 1) == pytest.approx(1e9 * (ranks - 1) / ranks / 450e9)
    assert collective_seconds(jobs, IDEAL, 1e9, 1, 1) == 0
    late = replace(IDEAL, latency_seconds=1e-5)
    waited = collective_seconds(jobs, late, 0, ranks, 1)
    assert waited == pytest.approx(1e-5 * (np.log2(ranks) + 1))


@pytest.mark.parametrize(
    ("ranks", "stride", "cards"),
    [
        (8, 1, None),  # inside a node: the link
        (2, 4, None),
        (16, 1, 8),  # two nodes, eight cards each: 400 GB/s
        (64, 2, 4),  # four of the node's ranks belong to the group
        (64, 8, 1),  # one rank a node: one card
        (128, 16, 1),
    ],
)
def test_a_group_has_the_cards_of_its_ranks_in_a_node(ranks, stride, cards):
    rate = group_rate(job(LLAMA_8B), IDEAL, ranks, stride)
    assert rate == pytest.approx(450e9 if cards is None else cards * 50e9)
    one_card = group_rate(job(LLAMA_8B), replace(IDEAL, rails=0.0), ranks, stride)
    assert one_card == pytest.approx(450e9 if cards is None else 50e9)


def test_more_cards_than_links_do_not_help():
    fast = replace(NO_TRAFFIC, nic_rate=200e9)
    assert group_rate(job(LLAMA_8B, device=fast), IDEAL, 64, 1) == 450e9


def test_ranks_beyond_a_pod_share_its_uplinks():
    # Llama 3, arXiv 2407.21783 section 3.3.1: 3,072 GPUs in a pod, 1:7 above. 16-apart groups crowd the uplinks least.
    device = replace(NO_TRAFFIC, pod=3072, oversubscription=7.0)
    inside, across = (group_rate(job(LLAMA_8B, device=device), IDEAL, ranks, 8) for ranks in (384, 768))
    assert inside == 50e9
    assert across == 50e9  # eight of 3,072 do not saturate a seventh of the uplinks
    crowded = group_rate(job(LLAMA_8B, device=device), IDEAL, 2, 3072)
    assert crowded == pytest.approx(50e9 / 7)


def test_a_domain_of_72_is_one_node():
    gb200 = device_columns(find_accelerator("gb200"))
    assert group_rate(job(LLAMA_8B, device=gb200), IDEAL, 64, 1) == gb200.link_rate
    assert group_rate(job(LLAMA_8B, device=gb200), IDEAL, 128, 1) == min(gb200.link_rate, 72 * gb200.nic_rate)


# -- traffic of each kind of parallelism -------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence_parallel", [True, False])
@pytest.mark.parametrize("tp", [2, 8])
def test_tensor_parallel_volume_is_megatrons(tp, sequence_parallel):
    # Four all-reduces of 2·b·s·h bytes per layer, two each way [arXiv 2104.04473 section 3.2]; as gathers and scatters
    # they are the same bytes [arXiv 2205.05198 section 4.2.2].
    parts = step_time(job(GPT3, tp=tp, sequence_parallel=sequence_parallel), IDEAL)
    all_reduce = 2 * (2 * 4096 * 12288) * (tp - 1) / tp / 450e9
    assert parts["tensor"] == pytest.approx(64 * 96 * 4 * all_reduce)


@pytest.mark.parametrize("cp", [2, 8])
def test_context_parallel_ring_passes_keys_and_values(cp):
    # 4·s·b·K·d/c·(c - 1) bytes per layer forward, twice that backward with their gradients; tokens of the others only.
    parts = step_time(job(LLAMA_8B, seq_len=32768, cp=cp), IDEAL)
    once = 4 * 32768 / cp * 8 * 128 * (cp - 1) / 450e9
    assert parts["context"] == pytest.approx(64 * 32 * 3 * once)
    hidden = step_time(job(LLAMA_8B, seq_len=131072, cp=cp), replace(IDEAL, context_hidden=1.0))
    assert hidden["context"] == 0  # at this length attention takes longer than sending


@pytest.mark.parametrize("kind", ["ddp", "zero1", "zero2"])
def test_data_parallel_volume_is_two_parameters_a_step(kind):
    # arXiv 1910.02054 section 7: an all-reduce, or a reduce-scatter and a gather: 2·Ψ, unless weights are sharded.
    parts = step_time(job(LLAMA_8B, dp=8, sharding=kind), IDEAL)
    dense, _ = rank_parameters(job(LLAMA_8B))
    assert parts["data"] == pytest.approx(2 * 2 * dense * 7 / 8 / 450e9)
    assert dense == pytest.approx(LLAMA_8B.num_parameters(), rel=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_sharded_weights_send_three_parameters_a_pass(micro_batch):
    # arXiv 1910.02054 section 7.2.2 and arXiv 2304.11277: two gathers and a reduce-scatter, 3·Ψ, in every pass.
    parts = step_time(job(LLAMA_8B, dp=16, sharding="zero3", micro_batch=micro_batch), IDEAL)
    dense, _ = rank_parameters(job(LLAMA_8B))
    assert parts["data"] == pytest.approx(64 / 16 / micro_batch * 3 * 2 * dense * 15 / 16 / 400e9)


def test_sharding_within_a_node_keeps_the_gathers_there():
    parts = step_time(job(LLAMA_8B, dp=32, sharding="hsdp", batch=128), IDEAL)
    dense, _ = rank_parameters(job(LLAMA_8B))
    passes = 4 * 3 * 2 * dense * 7 / 8 / 450e9
    across = 2 * 2 * dense / 8 * 3 / 4 / 50e9  # an all-reduce of the shards over four nodes
    assert parts["data"] == pytest.approx(passes + across)


def test_wide_gradients_send_more():
    narrow, wide = (
        step_time(job(LLAMA_8B, dp=8, sharding="zero1"), replace(IDEAL, gradient_bytes=size)) for size in (2, 4)
    )
    assert wide["data"] == pytest.approx(1.5 * narrow["data"])


def test_experts_sum_their_gradients_over_their_own_ranks():
    dense, routed = rank_parameters(job(MIXTURE, dp=8, ep=8))
    parts = step_time(job(MIXTURE, dp=8, ep=8, sharding="zero1"), IDEAL)
    assert parts["data"] == pytest.approx(2 * 2 * dense * 7 / 8 / 450e9)  # each expert is on one rank only
    assert routed == pytest.approx(MIXTURE.routed_parameters() / 8)


def test_tokens_go_to_experts_within_a_node():
    # Every token's top_k copies, of which (e - 1)/e leave the rank; there and back, forward and backward.
    parts = step_time(job(MIXTURE, dp=8, ep=8), IDEAL)
    once = 2 * 4096 * 2048 * 8 * 7 / 8 / 450e9
    assert parts["expert"] == pytest.approx(8 * 48 * 2 * 2 * once)


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_token_is_sent_to_a_node_once(nodes):
    # By brute force: the mean number of distinct other nodes that have three random experts.
    shape = replace(MIXTURE, top_k=3)
    chosen = itertools.product(range(nodes), repeat=3)
    others = np.mean([len(set(experts) - {0}) for experts in chosen])
    parts = step_time(job(shape, dp=8 * nodes, ep=8 * nodes), IDEAL)
    far = 2 * 4096 * 2048 * others / 50e9
    near = 2 * 4096 * 2048 * 3 * 7 / 8 / 450e9
    assert parts["expert"] == pytest.approx(64 / (8 * nodes) * 48 * 2 * 2 * (far + near))


def test_a_dense_model_sends_no_tokens():
    assert step_time(job(LLAMA_8B, dp=8), shipped())["expert"] == 0


def test_optimizer_passes_over_its_shard():
    # AdamW: fp32 master weight and two moments read and written, gradient read, weight written: 30 bytes.
    whole = step_time(job(LLAMA_8B, dp=8, sharding="ddp", device=H100), IDEAL)["optimizer"]
    assert whole == pytest.approx(30 * LLAMA_8B.num_parameters() / 3350e9, rel=1e-6)
    for kind in SHARDING[1:]:
        assert step_time(job(LLAMA_8B, dp=8, sharding=kind, device=H100), IDEAL)["optimizer"] == pytest.approx(
            whole / 8
        )


def test_stragglers_grow_with_the_number_of_machines():
    constants = replace(IDEAL, straggler=0.01)
    parts = step_time(job(LLAMA_8B, dp=64, device=H100), constants)
    others = sum(float(parts[name]) for name in PARTS if name != "straggler")
    assert parts["straggler"] / others == pytest.approx(0.01 * np.sqrt(2 * np.log(64)))
    assert step_time(job(LLAMA_8B), constants)["straggler"] == 0


@always
@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 1))
def test_what_shows_of_hidden_traffic(sent, room, hidden):
    shows = exposed(sent, room, hidden)
    assert max(0, sent - room) - 1e-9 <= shows <= sent + 1e-9
    assert shows >= (1 - hidden) * sent - 1e-9
    assert exposed(sent, room, 0) == sent
    assert exposed(sent, sent, 1) == 0


# -- invariants -------------------------------------------------------------------------------------------------------

powers = st.sampled_from([1, 2, 4, 8])
shapes = st.sampled_from([LLAMA_8B, LLAMA_70B, LLAMA_405B, GPT3, MIXTURE, LATENT])
devices = st.sampled_from(
    [H100, A100, B200, device_columns(find_accelerator("gb200")), device_columns(find_accelerator("mi300x"))]
)
owners = st.tuples(st.sampled_from(sorted(STACKS)), st.sampled_from(["ampere", "hopper", "blackwell", "cdna3"]))
layouts = st.fixed_dictionaries(
    {
        "tp": powers,
        "cp": powers,
        "pp": powers,
        "vp": st.sampled_from([1, 2, 4]),
        "dp": st.sampled_from([1, 2, 8, 64]),
        "ep": st.sampled_from([1, 8, 64]),
        "micro_batch": st.sampled_from([1, 2, 4]),
        "sharding": st.sampled_from(SHARDING),
        "recompute": st.sampled_from(RECOMPUTE),
        "sequence_parallel": st.booleans(),
    }
)


@st.composite
def jobs_and_constants(draw: st.DrawFn) -> tuple[JobColumns, Constants]:
    """A legal job of a model of realistic size, and some stack's fitted constants."""
    layout, precision = draw(layouts), draw(st.sampled_from(PRECISIONS))
    layout["ep"] = min(layout["ep"], layout["dp"] * layout["cp"])
    layout["vp"] = layout["vp"] if layout["pp"] > 1 else 1
    batch = layout["dp"] * layout["micro_batch"] * layout["pp"] * draw(st.sampled_from([1, 2, 5]))
    jobs = job(draw(shapes), draw(st.sampled_from([4096, 32768])), batch, precision, draw(devices), **layout)
    return jobs, shipped(*draw(owners), precision)


@always
@given(jobs_and_constants())
def test_parts_are_finite_not_negative_and_make_the_step(asked):
    parts = step_time(*asked)
    assert tuple(parts) == PARTS
    assert all(np.isfinite(value) and value >= 0 for value in parts.values())
    assert total_seconds(parts) == pytest.approx(sum(float(value) for value in parts.values()))
    assert parts["matmul"] > 0


@always
@given(jobs_and_constants())
def test_no_step_beats_the_peak(asked):
    jobs, constants = asked
    flops = jobs.batch * jobs.seq_len * float(jobs.shape.flops_per_token(jobs.seq_len, causal=True))
    peak = float(np.max(jobs.device.peak)) * float(jobs.layout.accelerators)
    assert seconds(jobs, constants) > flops / peak


@always
@given(jobs_and_constants(), st.sampled_from(["link_rate", "nic_rate", "memory_rate"]), st.floats(1.01, 10))
def test_more_bandwidth_is_never_slower(asked, field, times):
    jobs, constants = asked
    faster = replace(jobs.device, **{field: getattr(jobs.device, field) * times})
    assert seconds(replace(jobs, device=faster), constants) <= seconds(jobs, constants) * (1 + 1e-9)


@always
@given(jobs_and_constants(), st.sampled_from(["peak", "watts"]), st.floats(1.01, 3))
def test_faster_units_are_never_slower(asked, field, times):
    # Within half a percent: with an expert's small products a unit with a higher peak reaches a smaller share of it.
    jobs, constants = asked
    faster = replace(jobs.device, **{field: getattr(jobs.device, field) * times})
    assert seconds(replace(jobs, device=faster), constants) <= seconds(jobs, constants) * 1.005


@always
@given(
    jobs_and_constants(),
    st.sampled_from(
        ["latency_seconds", "launch_seconds", "elementwise", "cast", "straggler", "expert_moves", "expert_seconds"]
    ),
)
def test_less_of_a_cost_is_never_slower(asked, field):
    jobs, constants = asked
    less = replace(constants, **{field: np.asarray(getattr(constants, field)) / 2})
    assert seconds(jobs, less) <= seconds(jobs, constants) * (1 + 1e-9)


@always
@given(jobs_and_constants(), st.sampled_from([f.name for f in fields(Constants) if f.name.endswith("_hidden")]))
def test_hiding_more_is_never_slower(asked, field):
    jobs, constants = asked
    more = replace(constants, **{field: (1 + np.asarray(getattr(constants, field))) / 2})
    assert seconds(jobs, more) <= seconds(jobs, constants) * (1 + 1e-9)


@always
@given(jobs_and_constants())
def test_larger_micro_batches_launch_no_more_and_multiply_no_slower(asked):
    jobs, constants = asked
    layout = replace(jobs.layout, pp=1, vp=1)  # the fullest stage may change with the head's share
    smaller = replace(jobs, layout=layout, batch=2 * jobs.batch)
    larger = replace(smaller, layout=replace(layout, micro_batch=2 * layout.micro_batch))
    after, before = step_time(larger, constants), step_time(smaller, constants)
    for part in ("launch", "matmul", "tensor", "attention"):
        assert after[part] <= before[part] * (1 + 1e-9)


@always
@given(jobs_and_constants())
def test_twice_the_batch_takes_longer_but_not_twice_as_long(asked):
    jobs, constants = asked
    once, twice = seconds(jobs, constants), seconds(replace(jobs, batch=2 * jobs.batch), constants)
    assert once < twice <= 2 * once * (1 + 1e-9)


@always
@given(jobs_and_constants())
def test_recomputing_more_is_never_quicker(asked):
    jobs, constants = asked
    took = {
        kind: seconds(replace(jobs, layout=replace(jobs.layout, recompute=code)), constants)
        for code, kind in enumerate(RECOMPUTE)
    }
    for less, more in (
        ("none", "selective"),
        ("selective", "full"),
        ("none", "ops"),
        ("none", "blocks"),
        ("blocks", "full"),
    ):
        assert took[less] <= took[more] * (1 + 1e-9), (less, more)


@always
@given(jobs_and_constants())
def test_more_chunks_make_a_smaller_bubble(asked):
    jobs, constants = asked
    pp = max(2, jobs.layout.pp)
    jobs = replace(jobs, layout=replace(jobs.layout, pp=pp), batch=jobs.batch * pp)
    more = replace(jobs, layout=replace(jobs.layout, vp=2 * jobs.layout.vp))
    assert step_time(more, constants)["bubble"] < step_time(jobs, constants)["bubble"]


@always
@given(shapes, st.sampled_from([1, 4]), owners)
def test_one_accelerator_talks_to_nobody(shape, micro_batch, owner):
    parts = step_time(job(shape, device=H100, micro_batch=micro_batch), shipped(*owner))
    for part in ("tensor", "context", "expert", "pipeline", "bubble", "data", "straggler"):
        assert parts[part] == 0


@settings(deadline=None, max_examples=20)
@given(st.lists(jobs_and_constants(), min_size=2, max_size=5), st.sampled_from(sorted(STACKS)))
def test_columns_are_the_jobs_one_by_one(asked, stack):
    alone = [jobs for jobs, _ in asked]
    constants = shipped(stack)
    columns = JobColumns(
        *(stack_columns([getattr(jobs, name) for jobs in alone]) for name in ("shape", "device", "layout")),
        *(np.array([getattr(jobs, name) for jobs in alone]) for name in ("seq_len", "batch", "precision")),
    )
    together = step_time(columns, constants)
    for index, jobs in enumerate(alone):
        for name, value in step_time(jobs, constants).items():
            assert together[name][index] == pytest.approx(float(value), rel=1e-9, abs=1e-12)
