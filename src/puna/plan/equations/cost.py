"""How long a training step takes: the equations, and nothing else.

A step is the computation of the fullest pipeline stage, plus the communication that nothing hides, plus the pipeline's
bubble, plus the optimizer. Every part is one short function of `JobColumns` and `Constants` (what a software stack
reaches on a generation of hardware; fitted in `fit`, kept in constants.toml). Sources, by the number in brackets:

[1] Narayanan 2021, arXiv 2104.04473: tensor, pipeline and data parallel volumes, bubbles, interleaving.
[2] Korthikanti 2022, arXiv 2205.05198: sequence parallelism, selective recomputation.
[3] Rajbhandari 2020, arXiv 1910.02054 and Zhao 2023, arXiv 2304.11277: ZeRO and FSDP volumes.
[4] Dao 2023, arXiv 2307.08691: FLOPs of flash attention, forward and backward.
[5] Liu 2023, arXiv 2310.01889 and Llama 3, arXiv 2407.21783 section 3.3: context parallelism.
[6] Thakur 2005, the ring collectives' (n-1)/n volumes and per-step latency.
[7] Williams 2009, the roofline.
"""

from dataclasses import dataclass

import numpy as np

from puna.model.layout import RECOMPUTE, SHARDING
from puna.plan.equations.columns import PRECISIONS, JobColumns
from puna.plan.equations.shape import Number

BF16 = PRECISIONS.index("bf16")
# Parts of a step, in the order in which they are printed. Their sum is the step.
COMPUTE_PARTS = ("matmul", "attention", "elementwise", "launch", "recompute", "head")
PARTS = (*COMPUTE_PARTS, "tensor", "context", "expert", "pipeline", "bubble", "data", "optimizer", "straggler")
# FLOPs of a backward pass over those of the forward pass: products twice [1]; flash attention 2.5 times [4].
BACKWARD_PRODUCTS, BACKWARD_FLASH = 2.0, 2.5
HALF_SIZE_PEAK = 989e12  # FLOP/s at which the constant half_size is given


@dataclass(frozen=True)
class Constants:
    """What a stack reaches on a generation of accelerators. Shares are of the datasheet's figure."""

    reference_watts: Number  # watts for each TFLOP/s of bf16 peak at which the shares below were reached
    power: Number  # the rate of products grows with (watts a peak TFLOP/s) to this power: clocks follow the power limit
    matmul: Number  # share of the peak that a very large product reaches, in the job's precision
    matmul_bf16: Number  # the same in bf16, for the parts that stay in bf16
    half_size: Number  # a dimension of this length halves the rate, at 989 TFLOP/s
    half_power: Number  # it grows with the peak to this power, as starting a tile takes the same time
    attention: Number  # share of the bf16 peak of flash attention's forward pass
    attention_half: Number  # a span of this many tokens halves the rate of attention
    recompute: Number  # time of a recomputed pass over its first time: nothing after its last product is needed
    flash: Number  # 1: flash attention; 0: scores are written out, scaled, masked, normalised and read again
    memory: Number  # share of the memory rate that element-wise work reaches
    elementwise: Number  # times the fewest passes over memory
    cast: Number  # times the fewest passes for quantising inputs to 8 or 4 bits
    launch_seconds: Number  # a layer's fixed cost, forward and backward together
    link: Number  # share of the scale-up rate
    nic: Number  # share of the scale-out rate
    rails: Number  # 1: a group uses the network cards of all its ranks in a node; 0: one card
    latency_seconds: Number  # of one step of a collective
    tensor_hidden: Number  # shares of communication that computation hides
    context_hidden: Number
    expert_hidden: Number
    pipeline_hidden: Number
    data_hidden: Number
    gradient_bytes: Number  # of one gradient as it is reduced
    expert_moves: Number  # times the fewest passes of permuting tokens to their experts and back
    expert_seconds: Number  # fixed cost of each expert that a rank holds of a layer: small kernels, launched in turn
    straggler: Number  # the slowest of n is 1 + straggler·sqrt(2 ln n) times the mean


def step_time(jobs: JobColumns, constants: Constants) -> dict[str, Number]:
    """Seconds of one optimizer step by part (PARTS); their sum is the step.

    Shapes: every value has the jobs' broadcast shape.
    """
    shape, layout = jobs.shape, jobs.layout
    micro_batches = jobs.micro_batches
    layer = _layer(jobs, constants)
    head = _head(jobs, constants)
    layer_total = sum(layer.values())
    here, with_head = _fullest_stage(jobs, head / layer_total)

    # One micro-batch on the fullest stage.
    parts = {name: micro_batches * here * value for name, value in layer.items()}
    parts["head"] = np.where(with_head, micro_batches * head, 0.0)
    crossing = _boundary(jobs, constants)
    parts["pipeline"] = micro_batches * crossing
    stage = here * layer_total + np.where(with_head, head, 0.0) + crossing

    # The first micro-batch must reach the last stage and come back: (pp - 1) stages of waiting, split by interleaving
    # [1].
    mean_stage = (layers_of(jobs) * layer_total + head) / np.asarray(layout.pp)
    parts["bubble"] = (np.asarray(layout.pp) - 1) / np.asarray(layout.vp) * mean_stage
    parts["data"] = _data(jobs, constants, stage, parts["bubble"], micro_batches)
    parts["optimizer"] = _optimizer(jobs, constants)
    total = sum(parts.values())
    # The slowest of n equal machines, for normal noise: the expected maximum grows with sqrt(2 ln n).
    parts["straggler"] = total * constants.straggler * np.sqrt(2 * np.log(np.maximum(layout.accelerators, 1)))
    shaped = np.broadcast_shapes(*(np.shape(value) for value in parts.values()), np.shape(shape.layers))
    return {name: np.broadcast_to(np.asarray(parts[name], dtype=float), shaped) for name in PARTS}


def total_seconds(parts: dict[str, Number]) -> Number:
    """The step: all parts together."""
    return sum(parts.values())


# -- one layer ---------------------------------------------------------------------------------------------------------


def product_seconds(
    rows: Number, inputs: Number, outputs: Number, peak: Number, share: Number, half: Number, rate: Number
) -> Number:
    """Seconds of one matrix product (rows, inputs) x (inputs, outputs): a roofline [7].

    Its roof falls for small sizes: each dimension d reaches d / (d + half) of the rate, as tiles at the edge are partly
    empty and short sums do not fill the units. Below the ridge bytes count, two for each operand and the result.
    """
    rows, inputs, outputs = (np.asarray(value, dtype=float) for value in (rows, inputs, outputs))
    reached = share * peak / ((1 + half / np.maximum(rows, 1)) * (1 + half / np.maximum(outputs, 1)))
    reached = reached / (1 + half / np.maximum(inputs, 1))
    traffic = 2 * (rows * inputs + inputs * outputs + rows * outputs)
    return np.where(inputs * outputs > 0, np.maximum(2 * rows * inputs * outputs / reached, traffic / rate), 0.0)


def half_size(peak: Number, c: Constants) -> Number:
    """The dimension at which a product at `peak` FLOP/s has half of its rate."""
    return c.half_size * (peak / HALF_SIZE_PEAK) ** c.half_power


def clock(jobs: JobColumns, c: Constants) -> Number:
    """Clock relative to the generation's reference part (700 W for Hopper), by the power limit.

    Dense products are limited by power, so the clock drops; dynamic power grows with about its 2.5th power.
    """
    relative = np.asarray(jobs.device.watts) / (jobs.peak_of(np.full(np.shape(jobs.precision), BF16)) / 1e12)
    return (relative / np.asarray(c.reference_watts)) ** c.power


def wide_peak(jobs: JobColumns, c: Constants) -> Number:
    """Peak FLOP/s of attention and the head: bf16 where the linear layers use fewer bits, else theirs."""
    return jobs.peak_of(np.minimum(jobs.precision, BF16)) * clock(jobs, c)


def _layer(jobs: JobColumns, c: Constants) -> dict[str, Number]:
    """Seconds of one micro-batch's forward and backward pass through an average layer, by part."""
    matmul = _products(jobs, c)
    attention, backward = _attention(jobs, c)
    elementwise = _elementwise(jobs, c)
    tensor = _tensor(jobs, c)
    expert = _expert(jobs, c)
    forward = matmul + attention + elementwise
    recompute = np.asarray(jobs.layout.recompute)
    repeated = np.select(
        [recompute == RECOMPUTE.index(name) for name in ("selective", "ops", "blocks", "full")],
        [np.where(np.asarray(c.flash) > 0, 0.0, attention), matmul / 2 + elementwise, forward / 2, forward],
        0.0,
    )
    # A block that is recomputed repeats its collectives.
    collectives = np.select([recompute == RECOMPUTE.index(name) for name in ("blocks", "full")], [0.5, 1.0], 0.0)
    return {
        "matmul": (1 + BACKWARD_PRODUCTS) * matmul,
        "attention": attention + backward,
        "elementwise": 3 * elementwise,
        "launch": _launch(jobs, c) * (1 + collectives / 3),
        "recompute": repeated * c.recompute,
        "tensor": (2 + collectives) * tensor * (1 - np.asarray(c.tensor_hidden)),
        "context": _context(jobs, c, attention, backward),
        "expert": (2 + collectives) * expert * (1 - np.asarray(c.expert_hidden)),
    }


def _products(jobs: JobColumns, c: Constants) -> Number:
    """Forward seconds of an average layer's linear products on one rank."""
    shape, tp = jobs.shape, np.asarray(jobs.layout.tp)
    peak, rate = jobs.peak_flops() * clock(jobs, c), jobs.device.memory_rate

    def seconds(rows: Number, inputs: Number, outputs: Number) -> Number:
        return product_seconds(rows, inputs, outputs, peak, c.matmul, half_size(peak, c), rate)

    total: Number = 0.0
    for index, (inputs, outputs, split) in enumerate(shape.attention_products()):
        ways = tp if split else 1
        row_split = index == len(shape.attention_products()) - 1  # the last one sums over heads: its inputs are split
        total = total + seconds(jobs.tokens, inputs / (ways if row_split else 1), outputs / (1 if row_split else ways))

    def feed_forward(rows: Number, width: Number) -> Number:
        up = seconds(rows, shape.hidden, (shape.matrices - 1) * width)
        return up + seconds(rows, width, shape.hidden)

    dense_share = 1 - shape.moe_layers / np.asarray(shape.layers)
    total = total + dense_share * feed_forward(jobs.tokens, np.asarray(shape.ffn) / tp)
    # Experts: each of a rank's experts/ep sees tokens·top_k·ep/experts rows when the router is balanced.
    experts, ep = np.maximum(shape.experts, 1), np.asarray(jobs.layout.ep)
    rows = jobs.tokens * shape.top_k * ep / experts
    routed = experts / ep * feed_forward(rows, np.asarray(shape.expert_ffn) / tp)
    shared = feed_forward(jobs.tokens, np.asarray(shape.shared_experts) * shape.expert_ffn / tp)
    return total + np.where(np.asarray(shape.experts) > 0, (1 - dense_share) * (routed + shared), 0.0)


def _attention(jobs: JobColumns, c: Constants) -> tuple[Number, Number]:
    """Seconds of attention's core, forward and backward, on one rank.

    Flash attention skips the half of the square that causality masks [4]. Without it scores are written to memory:
    11 bytes per score forward (write, scale and mask, softmax, dropout, read: 16 bit and a mask byte), and as many in
    the backward pass.
    """
    shape = jobs.shape
    heads = np.asarray(shape.heads) / jobs.layout.tp
    widths = shape.key_dim + np.asarray(shape.output_dim)
    seq_len = np.asarray(jobs.seq_len, dtype=float)
    window = np.asarray(shape.window)
    span = np.where(window > 0, (seq_len + np.minimum(2.0 * window, seq_len)) / 2, seq_len)
    square = 2 * jobs.tokens * span * heads * widths
    peak = wide_peak(jobs, c)
    flash = 0.5 * square / (peak * c.attention) * (1 + c.attention_half / span)
    part = np.asarray(jobs.seq_len) / np.asarray(jobs.layout.cp)
    products = product_seconds(
        part, widths / 2, seq_len, peak, c.matmul_bf16, half_size(peak, c), jobs.device.memory_rate
    )
    sequences = jobs.layout.micro_batch * heads
    traffic = 11.0 * jobs.tokens * seq_len * heads / (jobs.device.memory_rate * c.memory)
    written = 2 * sequences * products + traffic
    use_flash = np.asarray(c.flash) > 0
    return np.where(use_flash, flash, written), np.where(use_flash, BACKWARD_FLASH * flash, 2 * written)


def _elementwise(jobs: JobColumns, c: Constants) -> Number:
    """Forward seconds of norms, residuals, rotary embedding, activation and casts in one layer: bytes over the rate.

    The fewest passes, 16 bit: two norms read and write h, two residual sums read two and write one, rotary embedding
    reads and writes queries and keys, the activation reads what the first products wrote and writes one width.
    """
    shape, tp = jobs.shape, np.asarray(jobs.layout.tp)
    hidden = np.asarray(shape.hidden, dtype=float) / np.where(jobs.layout.sequence_parallel, tp, 1)
    heads = (shape.heads + np.asarray(shape.kv_heads)) * shape.key_dim / tp
    dense_share = 1 - shape.moe_layers / np.asarray(shape.layers)
    routed = (np.asarray(shape.top_k) + shape.shared_experts) * shape.expert_ffn
    width = (dense_share * shape.ffn + (1 - dense_share) * routed) / tp
    moved = np.asarray(shape.top_k) * (1 - dense_share) * shape.hidden / tp  # tokens copied to experts and back
    passes = 2.0 * (10 * hidden + 2 * heads + shape.matrices * width + 4 * moved * c.expert_moves)
    # Eight or four bits: each product's input is read, and written in the narrow format, plain and transposed.
    narrow = np.asarray(jobs.precision) > BF16
    casts = np.where(narrow, 4.0 * (2 * np.asarray(shape.hidden) / tp + heads + width), 0.0)
    return jobs.tokens * (passes * c.elementwise + casts * c.cast) / (jobs.device.memory_rate * c.memory)


def _launch(jobs: JobColumns, c: Constants) -> Number:
    """Seconds of an average layer's fixed cost, forward and backward, whatever its size."""
    mixture = jobs.shape.moe_layers / np.asarray(jobs.shape.layers)
    held = np.asarray(jobs.shape.experts) / np.asarray(jobs.layout.ep)
    return np.asarray(c.launch_seconds) + mixture * held * c.expert_seconds


def _head(jobs: JobColumns, c: Constants) -> Number:
    """Seconds of the vocabulary's product and the loss, forward and backward, for one micro-batch.

    The loss passes over fp32 logits: written, read for the maximum and the sum, read and written as the gradient.
    """
    shape = jobs.shape
    columns = np.asarray(shape.vocab) / np.asarray(jobs.layout.tp)
    peak = wide_peak(jobs, c)
    rate = jobs.device.memory_rate
    product = product_seconds(jobs.tokens, shape.hidden, columns, peak, c.matmul_bf16, half_size(peak, c), rate)
    passes = 20.0 * jobs.tokens * columns / (rate * c.memory)
    return (1 + np.asarray(shape.mtp_layers)) * ((1 + BACKWARD_PRODUCTS) * product + passes)


# -- communication -----------------------------------------------------------------------------------------------------


def group_rate(jobs: JobColumns, c: Constants, ranks: Number, stride: Number) -> Number:
    """The most bytes/s that one rank of a collective sends, over `ranks` ranks that are `stride` apart.

    Within a scale-up domain that is the link. Beyond it every rank of the group contributes its network card, so a
    group with q ranks per node has q cards (measured: four nodes reach the rate of several cards). Groups that cross an
    oversubscribed switch share its uplinks.
    """
    device = jobs.device
    ranks, stride = np.asarray(ranks, dtype=float), np.asarray(stride, dtype=float)
    link = np.asarray(device.link_rate) * c.link
    inside = np.clip(np.asarray(device.link_domain) // stride, 1, ranks)
    crowd = np.where(
        ranks * stride > device.pod, np.maximum(1, stride * np.asarray(device.oversubscription) / device.pod), 1
    )
    cards = np.where(np.asarray(c.rails) > 0, inside, 1)
    network = np.asarray(device.nic_rate) * c.nic * cards / crowd
    return np.where(inside >= ranks, link, np.minimum(link, network))


def collective_seconds(jobs: JobColumns, c: Constants, volume: Number, ranks: Number, stride: Number) -> Number:
    """Seconds of an all-gather or reduce-scatter of `volume` bytes over a group [6]; an all-reduce is two of them.

    Latency grows with the ring inside a domain and with the tree above it.
    """
    ranks = np.asarray(ranks, dtype=float)
    rate = group_rate(jobs, c, ranks, stride)
    steps = np.where(ranks > 1, np.log2(np.maximum(ranks, 1)) + 1, 0)
    return np.where(ranks > 1, volume * (ranks - 1) / ranks / rate + steps * c.latency_seconds, 0.0)


def _tensor(jobs: JobColumns, c: Constants) -> Number:
    """Seconds of tensor parallelism's collectives in one layer and one direction [1, 2].

    Two all-reduces of the activations, or with sequence parallelism two all-gathers and two reduce-scatters: the same
    bytes.
    """
    volume = 2.0 * jobs.tokens * jobs.shape.hidden
    return 4 * collective_seconds(jobs, c, volume, jobs.layout.tp, 1)


def _context(jobs: JobColumns, c: Constants, forward: Number, backward: Number) -> Number:
    """Exposed seconds of passing keys and values around a ring, forward and (with their gradients) backward [5]."""
    shape, layout = jobs.shape, jobs.layout
    cp = np.asarray(layout.cp, dtype=float)
    latent = np.asarray(shape.kv_lora) > 0
    heads = np.where(latent, shape.heads, shape.kv_heads) * (shape.key_dim + np.asarray(shape.output_dim))
    volume = 2.0 * jobs.tokens * heads / np.asarray(layout.tp) * cp
    once = collective_seconds(jobs, c, volume, cp, layout.tp)
    hidden = np.asarray(c.context_hidden)
    sent, room = np.stack(np.broadcast_arrays(once, 2 * once)), np.stack(np.broadcast_arrays(forward, backward))
    return np.sum(exposed(sent, room, hidden), axis=0)


def _expert(jobs: JobColumns, c: Constants) -> Number:
    """Seconds of sending tokens to their experts and back, in one layer and one direction, averaged over layers.

    An all-to-all: of a token's top_k copies a share goes to each of the ep ranks. To another domain a token is sent
    once, over the rank's own card, whatever the number of its experts there (DeepSeek-V3, arXiv 2412.19437 section
    3.2.2); a balanced router reaches d·(1 - (1 - 1/d)^top_k) of d domains.
    """
    shape, device = jobs.shape, jobs.device
    ep, tp = np.asarray(jobs.layout.ep, dtype=float), np.asarray(jobs.layout.tp)
    top_k = np.asarray(shape.top_k)
    token_bytes = 2.0 * jobs.tokens * shape.hidden / tp
    inside = np.clip(np.asarray(device.link_domain) // tp, 1, ep)
    domains = ep / inside
    reached = domains * (1 - (1 - 1 / domains) ** top_k)
    far = token_bytes * reached * (1 - 1 / domains)
    near = token_bytes * top_k * (inside - 1) / inside
    seconds = near / (np.asarray(device.link_rate) * c.link)
    seconds = seconds + np.where(far > 0, far / np.maximum(np.asarray(device.nic_rate) * c.nic, 1), 0.0)
    share = shape.moe_layers / np.asarray(shape.layers)
    return np.where(ep > 1, 2 * share * (seconds + 2 * c.latency_seconds), 0.0)


def _boundary(jobs: JobColumns, c: Constants) -> Number:
    """Exposed seconds of passing one micro-batch's activations and gradients to the neighbouring stages [1]."""
    layout, device = jobs.layout, jobs.device
    pp, tp = np.asarray(layout.pp), np.asarray(layout.tp)
    volume = 2.0 * jobs.tokens * jobs.shape.hidden / tp  # scattered over the tensor group, gathered on arrival
    stride = tp * layout.cp * layout.dp  # stages are the outermost dimension
    rate = np.where(
        pp * stride <= np.asarray(device.link_domain),
        np.asarray(device.link_rate) * c.link,
        np.asarray(device.nic_rate) * c.nic,
    )
    seconds = 2 * np.asarray(layout.vp) * (volume / np.maximum(rate, 1) + c.latency_seconds)
    return np.where(pp > 1, seconds * (1 - np.asarray(c.pipeline_hidden)), 0.0)


def exposed(sent: Number, room: Number, hidden: Number) -> Number:
    """Exposed seconds of `sent` seconds of communication that overlap with `room` seconds of computation.

    A share 1 - hidden is always exposed (it competes for units and memory, or cannot start in time), the rest where
    it takes longer than the computation.
    """
    return (1 - hidden) * sent + np.maximum(0, hidden * sent - room)


def _data(jobs: JobColumns, c: Constants, stage: Number, bubble: Number, micro_batches: Number) -> Number:
    """Exposed seconds of data parallelism in a step [3].

    ddp all-reduces gradients; zero1 and zero2 reduce-scatter them and gather weights, once a step, overlapping
    the first forward and the last backward pass and a pipeline's filling and draining; zero3 gathers weights
    twice and reduce-scatters once in every pass; hsdp does so inside a domain and all-reduces the shards across
    domains once a step. Context ranks hold the same weights, so they belong to the group.
    """
    layout, tp = jobs.layout, np.asarray(jobs.layout.tp)
    ranks, sharding = np.asarray(layout.dp) * layout.cp, np.asarray(layout.sharding)
    dense, routed = rank_parameters(jobs)

    def gather(values: Number, size: Number, group: Number, stride: Number) -> Number:
        return collective_seconds(jobs, c, values * size, group, stride)

    def once(values: Number, group: Number, stride: Number) -> Number:
        reduced = gather(values, c.gradient_bytes, group, stride)
        second = np.where(sharding == SHARDING.index("ddp"), c.gradient_bytes, 2.0)
        return reduced + gather(values, second, group, stride)

    experts_group = np.maximum(1, ranks // np.asarray(layout.ep))
    a_step = once(dense, ranks, tp) + once(routed, experts_group, tp * np.asarray(layout.ep))
    stepwise = exposed(a_step, stage + bubble, c.data_hidden)

    group = np.where(sharding == SHARDING.index("hsdp"), layout.shard_ranks(jobs.device.link_domain), ranks)
    values = dense + routed
    a_pass = 2 * gather(values, 2.0, group, tp) + gather(values, c.gradient_bytes, group, tp)
    across = 2 * gather(values / group, c.gradient_bytes, ranks / group, tp * group)
    last = a_pass + np.where(sharding == SHARDING.index("hsdp"), across, 0.0)  # it shares the last pass's computation
    passes = (micro_batches - 1) * exposed(a_pass, stage, c.data_hidden) + exposed(last, stage, c.data_hidden)
    return np.where(sharding >= SHARDING.index("zero3"), passes, stepwise)


# -- the rest ----------------------------------------------------------------------------------------------------------


def layers_of(jobs: JobColumns) -> Number:
    """Layers that a micro-batch passes through, multi-token prediction layers included."""
    return np.asarray(jobs.shape.layers) + np.asarray(jobs.shape.mtp_layers)


def _fullest_stage(jobs: JobColumns, head_layers: Number) -> tuple[Number, Number]:
    """Layers of the slowest pipeline stage, and whether the head is on it.

    head_layers: the head's time in layers. Layers that divide evenly are split evenly, with the head added to the last
    stage. Others are split so that the head's stage has fewer (the reason why Llama 3 has 126 = 128 - 2 layers, arXiv
    2407.21783 section 3.3.2): the number per other stage that makes the fullest stage smallest.
    """
    layers, pp = layers_of(jobs), np.asarray(jobs.layout.pp)
    even = layers % (pp * np.asarray(jobs.layout.vp)) == 0

    def last(each: Number) -> Number:
        return np.maximum(0, layers - (pp - 1) * each)

    def fullest(each: Number) -> Number:
        return np.maximum(each, last(each) + head_layers)

    each = np.maximum(np.ceil(layers / pp), np.floor((layers + head_layers) / pp))  # this many, or one more
    each = np.where(fullest(each + 1) < fullest(each), each + 1, each)
    with_head = even | (last(each) + head_layers > each)
    return np.where(even, layers / pp, np.where(with_head, last(each), each)), with_head


def rank_parameters(jobs: JobColumns) -> tuple[Number, Number]:
    """Parameters on one rank of the first stage before data parallelism shards them: (dense, routed experts)."""
    shape, layout = jobs.shape, jobs.layout
    pp = np.asarray(layout.pp)
    vocabulary = shape.embedding_parameters() * np.where((pp == 1) & ~np.asarray(shape.tied, dtype=bool), 2, 1)
    dense = (shape.block_parameters() / pp + vocabulary) / np.asarray(layout.tp)
    return dense, shape.routed_parameters() / (pp * np.asarray(layout.tp) * layout.ep)


def _optimizer(jobs: JobColumns, c: Constants) -> Number:
    """Seconds of AdamW: 30 bytes a parameter over the memory (fp32 master and two moments read and written, gradient
    read, 16-bit weight written), on the rank's shard."""
    layout = jobs.layout
    dense, routed = rank_parameters(jobs)
    ranks = np.asarray(layout.dp) * layout.cp
    sharded = np.asarray(layout.sharding) > SHARDING.index("ddp")
    ways = np.where(sharded, ranks, 1)
    expert_ways = np.where(sharded, np.maximum(1, ranks // np.asarray(layout.ep)), 1)
    return 30.0 * (dense / ways + routed / expert_ways) / (np.asarray(jobs.device.memory_rate) * c.memory)
