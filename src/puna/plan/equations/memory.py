"""Memory of a layout on its fullest accelerator, by part: equations over columns, like `cost`.

The peak is at one of two moments: the backward pass of a block on the first pipeline stage, which holds most
micro-batches in flight, while activations are recomputed and gradients flow; or the loss on the last stage, when the
logits exist next to its activations. `memory` takes the larger. `MemoryRules` says how a software stack stores things:
two of its numbers are fitted (`fit_rules`), the rest are facts with their source. Where nothing is known the equations
overestimate: a run that dies costs more than one that could have been tighter. Sources, by the number in brackets:

[1] Korthikanti 2022, arXiv 2205.05198: activations of a GPT layer (table 2), embedding, head, interleaving (section 4).
[2] Rajbhandari 2020, arXiv 1910.02054: what each stage of ZeRO shards. Zhao 2023, arXiv 2304.11277: FSDP's units.
[3] Megatron-LM, docs/dist_optimizer and theoretical_memory_usage.py: 18 bytes a parameter, 6 + 12/D distributed.
[4] pytorch/torchtitan, parallelize_llama.py and train.py of December 2024: FSDP2 of each block, fp32 shards, bf16
    gathered, no resharding in pipelines, every second product kept, the loss not compiled, the peak as reserved.
[5] Llama 3, arXiv 2407.21783 section 3.3: context parallelism by all-gather of keys and values.
[6] Qi 2024, arXiv 2401.10241: zero-bubble schedules, of which ZB-H1 keeps what 1F1B keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from puna.model.layout import RECOMPUTE, SHARDING
from puna.plan.equations.columns import PRECISIONS, JobColumns, stack_columns
from puna.plan.equations.constants import STACKS, find_stack
from puna.plan.equations.shape import Number

# Parts of an accelerator's memory, in the order in which they are printed. Their sum is the total.
STATES = ("weights", "gradients", "optimizer")
PARTS = (*STATES, "activations", "logits", "workspace", "gathered", "fragmentation", "context")
# Memory outside of torch's allocator; a source that prints the allocator's reserve leaves it out.
OUTSIDE_ALLOCATOR = ("context",)
# Share that `fits` keeps free: the median error on torchtitan's rows with each left out of the fit in turn.
MARGIN = 0.03

GIB = 2**30
# Extra fp32 copies, from torch's sources and counted with saved_tensors_hooks and the allocator's rules (torch 2.13,
# 2026-11): bytes for each (token, vocabulary entry) that the loss holds at most.
#   eager cross entropy: bf16 product 2 and its fp32 copy 4, whose block is too small for the gradient, plus
#   log-softmax 4 and the loss's own gradient 4: the allocator ends with 14. Split over tensor ranks (loss_parallel of
#   torch/distributed/tensor/parallel/loss.py) four fp32 arrays live at once: 18 with the same rule.
#   compiled: the bf16 product and its bf16 gradient. Megatron: the bf16 product and fp32 logits changed in place.
_EAGER_LOSS, _EAGER_LOSS_SPLIT, _COMPILED_LOSS, _MEGATRON_LOSS = 14.0, 18.0, 4.0, 6.0


@dataclass(frozen=True)
class MemoryRules:
    """How a software stack stores things: numbers, or columns with one per job, in bytes unless named.

    The defaults are Megatron-Core's with Transformer Engine in bf16.
    """

    weight_bytes: Number = 2.0  # of a stored weight; above `gathered_bytes` it is a master copy that is cast to compute
    gradient_bytes: Number = 4.0
    optimizer_bytes: Number = 12.0  # moments, and the master copy where `weight_bytes` are not it
    gathered_bytes: Number = 2.0  # of a weight in computation
    gathered_layers: Number = 2.0  # blocks gathered at a time: the current one and the prefetched one
    gather_copies: Number = 1.0  # 2 where the collective's buffer is not the weights themselves
    pipeline_whole: Number = 0.0  # 1: in pipelines, gathered weights and unreduced gradients stay through the step
    norm_bytes: Number = 4.0  # kept for each token and hidden entry by a layer's two norms
    mask_bytes: Number = 0.0  # the same of dropout: 2 masks of a byte
    activation_copies: Number = 0.0  # widths of the feed-forward kept beyond those of its products and their input
    expand_kv: Number = 0.0  # 1: keys and values are repeated for every query head, and kept so
    flash: Number = 1.0  # 0: scores, probabilities and their dropout mask are kept, 5 bytes for each pair
    keep_down: Number = 0.0  # 1: "ops" recomputation keeps the last product too, though nothing needs it
    keep_all: Number = 0.0  # 1: "ops" keeps every product that is needed, not every second one
    logit_bytes: Number = _MEGATRON_LOSS
    logit_split_bytes: Number = _MEGATRON_LOSS  # the same where tensor parallelism splits the vocabulary
    logit_tokens: Number = np.inf  # tokens whose logits are held at once: fewer than all for a chunked loss
    narrow_input_bytes: Number = 2.0  # of a product's kept input when products run in 8 or 4 bits
    in_flight: Number = 1.0  # micro-batches in flight over those of 1F1B: ZB-H1 1, ZB-H2 2 [6]
    # The two fitted numbers (`fit_rules` on torchtitan's development rows, 2026-11): whole sequences that gathering
    # before a split product and reducing after it leave, and the gaps of the allocator, a share of all that moves.
    tensor_buffers: Number = 2.75
    fragmentation: Number = 0.04
    # CUDA's context: over 300 MB, more with every kernel (pytorch/pytorch#107667). Buffers of a communicator: 0.65 GiB
    # measured (Lumi-supercomputer/LUMI-AI-Guide#111), 0.53 to 0.67 (NVIDIA/nccl#964).
    context_bytes: Number = 0.5 * GIB
    group_bytes: Number = 0.65 * GIB


_TORCH = MemoryRules(
    weight_bytes=4.0, optimizer_bytes=8.0, logit_bytes=_COMPILED_LOSS, logit_split_bytes=_COMPILED_LOSS, expand_kv=1.0
)
_TITAN = replace(_TORCH, gather_copies=2.0, pipeline_whole=1.0)
_TITAN_2024 = replace(_TITAN, logit_bytes=_EAGER_LOSS, logit_split_bytes=_EAGER_LOSS_SPLIT)
# NeMo's benchmark recipes (scripts/performance/helpers.py; the launcher's grad_sync_dtype): gradients in bf16, and in
# fp8 weights that are stored so with their transposes, two bytes as before; products keep their inputs in fp8.
_NEMO = MemoryRules(gradient_bytes=2.0, narrow_input_bytes=1.0)
# By names of `constants.STACKS`; a missing one has its parent's. torchtitan has compiled its loss since 2025 [4].
STACK_RULES = {
    "megatron-core": _NEMO,
    "megatron-2023": MemoryRules(mask_bytes=2.0),
    "megatron-2022": MemoryRules(mask_bytes=2.0, flash=0.0, logit_bytes=4.0, logit_split_bytes=4.0),
    "megatron-2021": MemoryRules(mask_bytes=2.0, flash=0.0),
    "metaseq": MemoryRules(mask_bytes=2.0, flash=0.0, gradient_bytes=2.0),
    "deepspeed-zero3": MemoryRules(mask_bytes=2.0, flash=0.0, gradient_bytes=2.0),
    "llama3": replace(_TORCH, activation_copies=-1.0, expand_kv=0.0),
    "maxtext": replace(_TORCH, logit_bytes=8.0, logit_split_bytes=8.0, expand_kv=0.0),
    "composer": _TORCH,  # its loss is flash-attn's, which keeps and returns bf16 like a compiled one
    "fsdp": replace(_TORCH, logit_bytes=_EAGER_LOSS, logit_split_bytes=_EAGER_LOSS_SPLIT),
    "torchtitan": _TITAN_2024,
    "torchtitan-2025": _TITAN,
    "torchtitan-eager": replace(_TITAN_2024, keep_down=1.0, norm_bytes=12.0, activation_copies=1.0),
    "puna": replace(_TITAN, logit_tokens=1024, logit_bytes=10.0, logit_split_bytes=10.0, expand_kv=0.0, keep_all=1.0),
}


def rules_for(stack: str) -> MemoryRules:
    """The rules of a stack, or of its nearest parent that has some. Raises PunaError for an unknown stack."""
    name: str | None = stack
    while name is not None:
        if name in STACK_RULES:
            return STACK_RULES[name]
        name = STACKS[find_stack(name)].parent
    return MemoryRules()


def rules_columns(stacks: Sequence[str]) -> MemoryRules:
    """Columns of rules, one row per job."""
    return stack_columns([rules_for(stack) for stack in stacks])


def memory(jobs: JobColumns, rules: MemoryRules) -> dict[str, Number]:
    """Bytes on the fullest accelerator by part (PARTS), at the moment of its peak; their sum is the total.

    Shapes: every value has the jobs' broadcast shape. A million layouts take about a second.
    """
    held = stage_parameters(jobs)
    states = _states(jobs, rules, held)
    passing = _passing(jobs, rules)
    first, last = layers_in_flight(jobs, rules)
    kept, recomputed = layer_bytes(jobs, rules)
    tokens = jobs.tokens
    # Every stage has as many weights; the first has the most micro-batches in flight, the last has the logits. With one
    # stage both moments belong to it. The head's product gathers its input like any other.
    moments = []
    for layers, in_block in ((first, True), (last, False)):
        activations = tokens * kept * layers + embedding_bytes(jobs, rules, layers)
        logits = 0.0 if in_block else logit_bytes(jobs, rules)
        workspace = tokens * (recomputed + _flowing(jobs)) if in_block else 0.0
        gathered = states.gathered + (states.reducing if in_block else 0.0)
        # Gathered blocks are all of one size and reuse each other's memory; everything else that is freed leaves gaps.
        gaps = np.asarray(rules.fragmentation) * (activations + logits + workspace + passing)
        moments.append((activations, logits, workspace, gathered + passing, gaps))
    peak = sum(moments[0]) >= sum(moments[1])
    activations, logits, workspace, gathered, gaps = (
        np.where(peak, block, head) for block, head in zip(*moments, strict=True)
    )
    parts = {
        "weights": states.weights,
        "gradients": states.gradients,
        "optimizer": states.optimizer,
        "activations": activations,
        "logits": logits,
        "workspace": workspace,
        "gathered": gathered,
        "fragmentation": gaps,
        "context": _context(jobs, rules),
    }
    shape = np.broadcast_shapes(*(np.shape(value) for value in parts.values()))
    return {name: np.broadcast_to(np.asarray(parts[name], dtype=float), shape) for name in PARTS}


def total(parts: dict[str, Number]) -> Number:
    """The sum of all parts, which must fit the accelerator's memory."""
    return sum(parts[name] for name in PARTS)


def reserved(parts: dict[str, Number]) -> Number:
    """Bytes reserved by torch's caching allocator: all but CUDA's context and communicator buffers."""
    return sum(parts[name] for name in PARTS if name not in OUTSIDE_ALLOCATOR)


def fits(parts: dict[str, Number], memory_bytes: Number) -> Number:
    """Whether it fits into `memory_bytes` with MARGIN to spare."""
    return total(parts) * (1 + MARGIN) <= np.asarray(memory_bytes)


def fit_rules(jobs: JobColumns, rules: MemoryRules, reserved_bytes: Sequence[float]) -> tuple[float, float]:
    """(fragmentation, tensor_buffers) that fit the measured reserves of the allocator best.

    Least squares of log(predicted / measured) over a grid: one percent of fragmentation, a quarter of a buffer. The
    other `rules` stay as they are.
    """
    measured = np.log(np.asarray(reserved_bytes, dtype=float))
    grid = [(percent / 100, quarters / 4) for percent in range(21) for quarters in range(25)]

    def error(candidate: tuple[float, float]) -> float:
        changed = replace(rules, fragmentation=candidate[0], tensor_buffers=candidate[1])
        return float(np.sum((np.log(reserved(memory(jobs, changed))) - measured) ** 2))

    return min(grid, key=error)


# -- weights, gradients, optimizer -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageParameters:
    """Parameters on one rank of a stage before data parallelism shards them, and the ranks that hold the same."""

    dense: Number  # all but routed experts, with the stage's vocabulary
    routed: Number
    outer: Number  # of `dense`, the vocabulary's
    layers: Number  # of the fullest stage
    ranks: Number  # that hold the same dense weights
    expert_ranks: Number  # that hold the same experts

    @property
    def whole(self) -> Number:
        """Dense and routed parameters together."""
        return self.dense + self.routed

    @property
    def layer(self) -> Number:
        """Parameters of an average block."""
        return (self.dense - self.outer + self.routed) / self.layers


def stage_layers(jobs: JobColumns) -> Number:
    """Layers of the fullest pipeline stage: whole chunks of ceil(layers / (pp·vp)), as `cost` counts them."""
    layers = np.asarray(jobs.shape.layers) + np.asarray(jobs.shape.mtp_layers)
    pp, vp = np.asarray(jobs.layout.pp), np.asarray(jobs.layout.vp)
    return np.minimum(np.ceil(layers / (pp * vp)) * vp, layers)


def stage_parameters(jobs: JobColumns) -> StageParameters:
    """Parameters that a rank of the fullest stage holds [1, 2, 3].

    Tensor parallelism splits the products that `Shape.attention_products` marks, feed-forwards and the vocabulary;
    norms, latent projections and routers are whole on every rank. Experts are spread over ep·tp ranks, or over all
    ranks of the stage.
    """
    shape, layout = jobs.shape, jobs.layout
    tp, pp = np.asarray(layout.tp), np.asarray(layout.pp)
    layers = stage_layers(jobs)
    mixtures = np.minimum(layers, shape.moe_layers)
    products = shape.attention_products()
    split = sum(np.asarray(inputs, dtype=float) * outputs for inputs, outputs, by_tp in products if by_tp)
    alone = sum(np.asarray(inputs, dtype=float) * outputs for inputs, outputs, by_tp in products if not by_tp)
    shared = shape.matrices * shape.hidden * shape.shared_experts * shape.expert_ffn
    router = shape.hidden * np.asarray(shape.experts, dtype=float)
    blocks = layers * (split / tp + alone + 2 * np.asarray(shape.hidden))
    blocks = blocks + (layers - mixtures) * (shape.dense_ffn_parameters() / tp) + mixtures * (shared / tp + router)
    # The first stage has the embedding, the last the head: one matrix each, also where the two are tied.
    matrices = np.where((pp == 1) & ~np.asarray(shape.tied, dtype=bool), 2, 1)
    outer = shape.embedding_parameters() * matrices / tp + shape.hidden
    ranks = np.asarray(layout.dp) * layout.cp
    ways = np.minimum(tp * layout.ep, tp * ranks)
    routed = mixtures * shape.expert_parameters() / ways
    return StageParameters(blocks + outer, routed, outer, layers, ranks, np.maximum(1, tp * ranks / ways))


@dataclass(frozen=True)
class _States:
    """Bytes of persistent states, of gathered weights, and of gradients waiting to be reduced."""

    weights: Number
    gradients: Number
    optimizer: Number
    gathered: Number
    reducing: Number


def _states(jobs: JobColumns, rules: MemoryRules, held: StageParameters) -> _States:
    """Weights, gradients and optimizer states under ZeRO's stages [2], and FSDP's gathered units [4]."""
    layout = jobs.layout
    sharding, pp = np.asarray(layout.sharding), np.asarray(layout.pp)
    whole, layer = held.whole, held.layer
    hybrid = sharding == SHARDING.index("hsdp")
    ways: Number = np.where(hybrid, layout.shard_ranks(jobs.device.link_domain), held.ranks)
    sharded = held.dense / ways + held.routed / np.minimum(ways, held.expert_ranks)

    def spread(condition: Number) -> Number:
        return np.where(condition, sharded, whole)

    # In fp32 there is one copy of everything [3]: 16 bytes a parameter.
    single = _single(jobs)
    weight_size = np.where(single, 4.0, rules.weight_bytes)
    size = np.where(single, 4.0, rules.gradient_bytes)
    gathered_size = np.where(single, 4.0, rules.gathered_bytes)
    master = weight_size > gathered_size  # stored weights do not compute
    from_two = sharding >= SHARDING.index("zero2")
    from_three = sharding >= SHARDING.index("zero3")
    weights = spread(from_three | (master & from_two))
    gradients = spread(from_two)
    optimizer = spread(sharding >= SHARDING.index("zero1"))

    # FSDP gathers a few blocks and keeps the vocabulary gathered; where it does not reshard, the whole copy stays. A
    # stage of so few blocks that this would save nothing holds its weights whole.
    unit = np.minimum(held.outer + np.asarray(rules.gathered_layers) * layer, whole)
    unit = np.where(master, unit, np.minimum(unit, whole - weights))
    stays = (pp > 1) & (np.asarray(rules.pipeline_whole) > 0)
    copy = np.where(from_three & ~stays, unit, np.where(master, whole, np.where(from_three, whole - weights, 0.0)))
    # The collective's own buffer, of what is sharded: experts may have no second rank.
    alone = np.where(held.expert_ranks > 1, 0.0, held.routed)
    sent = np.minimum(unit, held.outer + np.asarray(rules.gathered_layers) * (layer - alone / held.layers))
    buffers = (np.asarray(rules.gather_copies) - 1) * np.where(from_two & (ways > 1), sent, 0.0)
    # Gradients as computed and as they are reduced: of one block and of the head, or of all where they are first
    # summed over a pipeline's micro-batches.
    unreduced = size * (whole - gradients)
    one = (gathered_size + size) * layer + gathered_size * held.outer
    summed = np.where(from_two & stays, unreduced, 0.0)
    return _States(
        weights=weight_size * weights,
        gradients=size * gradients + summed,
        optimizer=np.where(single, 8.0, rules.optimizer_bytes) * optimizer,
        gathered=gathered_size * (copy + buffers),
        reducing=np.where(from_two & ~stays, np.minimum(one, unreduced), 0.0),
    )


# -- activations -------------------------------------------------------------------------------------------------------


def _single(jobs: JobColumns) -> Number:
    """Whether products run in single precision, which doubles all bytes relative to bf16."""
    return np.asarray(jobs.precision) == PRECISIONS.index("fp32")


def _stream_ways(jobs: JobColumns) -> Number:
    """Ranks over which the residual stream is split: tp with sequence parallelism, else 1 [1]."""
    return np.where(jobs.layout.sequence_parallel, jobs.layout.tp, 1)


def _width(jobs: JobColumns) -> Number:
    """Feed-forward width of an average layer for one token: of the experts only those it is routed to."""
    shape = jobs.shape
    mixtures = shape.moe_layers / np.asarray(shape.layers)
    routed = (np.asarray(shape.top_k) + shape.shared_experts) * shape.expert_ffn
    return (1 - mixtures) * shape.ffn + mixtures * routed


def layer_bytes(jobs: JobColumns, rules: MemoryRules) -> tuple[Number, Number]:
    """Bytes per token: (kept by an average layer, recomputed in its backward pass).

    For a GPT with dropout these are the rows of [1] table 2 (tests/plan/test_memory.py). In general: norms' inputs, the
    inputs of the first products and dropout's masks along the residual stream; queries, keys, values and attention's
    result; the feed-forward's widths; scores only without flash attention. Full recomputation keeps a block's input;
    torch's "ops" keeps that, every second product's result and attention's (saved_tensors_hooks, torch 2.13, 2026-11).
    """
    shape, tp = jobs.shape, np.asarray(jobs.layout.tp)
    hidden = np.asarray(shape.hidden, dtype=float) / _stream_ways(jobs)
    latent = np.asarray(shape.kv_lora) > 0
    kv_heads = np.where(latent | (np.asarray(rules.expand_kv) > 0), shape.heads, shape.kv_heads)
    query, result = shape.heads * shape.key_dim / tp, shape.heads * shape.output_dim / tp
    keys, values = kv_heads * shape.key_dim / tp, kv_heads * shape.output_dim / tp
    width = _width(jobs) / tp
    mixtures = shape.moe_layers / np.asarray(shape.layers)
    into = np.where(np.asarray(jobs.precision) > PRECISIONS.index("bf16"), rules.narrow_input_bytes, 2.0)

    stream = (np.asarray(rules.norm_bytes) + 2 * into + np.asarray(rules.mask_bytes)) * hidden
    # Latents before and after their norms.
    latents = 4.0 * np.where(latent, np.asarray(shape.q_lora) + shape.kv_lora + shape.rope_dim, 0) / _stream_ways(jobs)
    heads = 2 * (query + keys + values + result) + np.where(into < 2, into * result, 0.0)
    scores = np.where(np.asarray(rules.flash) > 0, 0.0, 5.0 * shape.heads * np.asarray(jobs.seq_len, dtype=float) / tp)
    sums = np.where(np.asarray(rules.flash) > 0, 4.0 * shape.heads / tp, 0.0)  # log-sum-exp of each row, fp32
    wide = 2 * (shape.matrices - 1 + (shape.matrices - 2) * np.asarray(rules.activation_copies)) + into
    # Copies of a token for its experts and back, and the router's logits and probabilities in fp32.
    sent = mixtures * (
        np.asarray(shape.top_k) * (into + 2) * shape.hidden / tp + 8.0 * shape.experts / _stream_ways(jobs)
    )
    whole = stream + latents + heads + scores + sums + wide * width + sent

    full = 2 * hidden
    reduced = np.where(tp > 1, 2 * hidden, 0.0)  # the first product after attention, as summed over tensor ranks
    calibrated_values = np.where(latent, shape.heads, shape.kv_heads) * shape.output_dim / tp
    others = 2 * (calibrated_values + (shape.matrices - 2) * width) + np.where(tp > 1, 0.0, 2 * hidden)  # keys, up, out
    products = 2 * (query + calibrated_values + result + width) + np.asarray(rules.keep_down) * 2 * hidden
    products = products + np.asarray(rules.keep_all) * others
    ops = np.minimum(full + reduced + products + sums, whole - scores)
    code = np.asarray(jobs.layout.recompute)
    choices = [code == RECOMPUTE.index(name) for name in ("selective", "ops", "blocks", "full")]
    kept = np.select(choices, [whole - scores, ops, (whole + full) / 2, full], whole)
    recomputed = np.select(choices, [scores, whole - ops, whole - full, whole - full], 0.0)
    times = np.where(_single(jobs), 2, 1)
    return kept * times, recomputed * times


def layers_in_flight(jobs: JobColumns, rules: MemoryRules) -> tuple[Number, Number]:
    """Layers whose activations the first and the last stage hold, counted once per micro-batch.

    1F1B: pp micro-batches on the first stage, one on the last. Interleaved: chunks of layers/vp, (vp + 1)·pp - 1 of
    them on the first stage, which is 1 + (pp - 1)/(pp·vp) times 1F1B [1], and (vp - 1)·pp + 1 on the last; never more
    than there are micro-batches.
    """
    pp, vp = np.asarray(jobs.layout.pp), np.asarray(jobs.layout.vp)
    there = np.maximum(1, jobs.micro_batches) * vp
    chunk = stage_layers(jobs) / vp
    interleaved = vp > 1
    first = np.where(interleaved, (vp + 1) * pp - 1, pp) * np.asarray(rules.in_flight)
    last = np.where(interleaved, (vp - 1) * pp + 1, 1)
    return np.minimum(first, there) * chunk, np.minimum(last, there) * chunk


def embedding_bytes(jobs: JobColumns, rules: MemoryRules, layers: Number) -> Number:
    """The dropout mask after the embedding, for every micro-batch in flight [1]."""
    mask = np.asarray(rules.mask_bytes) / 2 * jobs.shape.hidden / _stream_ways(jobs)
    return jobs.tokens * mask * layers / stage_layers(jobs)


def logit_bytes(jobs: JobColumns, rules: MemoryRules) -> Number:
    """The last norm, the head's input and the logits of one micro-batch: 4sbh/t (1 + V/h) in [1].

    A chunked loss holds few logits, and the head's gradient in fp32. Multi-token prediction layers have their own
    logits.
    """
    shape, tp = jobs.shape, np.asarray(jobs.layout.tp)
    vocab = np.asarray(shape.vocab, dtype=float) / tp
    held = np.minimum(jobs.tokens, rules.logit_tokens)
    each = np.where(tp > 1, rules.logit_split_bytes, rules.logit_bytes)
    chunked = np.where(held < jobs.tokens, 4.0 * vocab * shape.hidden, 0.0)
    passes = 1 + np.asarray(shape.mtp_layers)
    return passes * (each * held * vocab + chunked + 4.0 * jobs.tokens * shape.hidden / _stream_ways(jobs))


def _flowing(jobs: JobColumns) -> Number:
    """Bytes per token of a block's gradients: feed-forward widths and both branches of the residual stream."""
    width = jobs.shape.matrices * _width(jobs) / jobs.layout.tp
    return np.where(_single(jobs), 4.0, 2.0) * (width + 2 * jobs.shape.hidden / _stream_ways(jobs))


def _passing(jobs: JobColumns, rules: MemoryRules) -> Number:
    """Bytes of activations that communication holds.

    Whole sequences around split products, all keys and values under context parallelism [5], tokens sent to
    experts, and tensors exchanged with neighbouring stages.
    """
    shape, layout = jobs.shape, jobs.layout
    tp = np.asarray(layout.tp)
    tensor = np.where(tp > 1, 2.0 * np.asarray(rules.tensor_buffers) * shape.hidden, 0.0)
    heads = np.where(np.asarray(shape.kv_lora) > 0, shape.heads, shape.kv_heads) * (shape.key_dim + shape.output_dim)
    context = 2.0 * (np.asarray(layout.cp) - 1) * heads / tp
    expert = 4.0 * np.asarray(shape.top_k) * shape.hidden / tp
    stage = np.where(np.asarray(layout.pp) > 1, 4.0 * shape.hidden / _stream_ways(jobs), 0.0)
    return jobs.tokens * (tensor + context + expert + stage) * np.where(_single(jobs), 2, 1)


def _context(jobs: JobColumns, rules: MemoryRules) -> Number:
    """CUDA's context and the buffers of one communicator per parallel dimension."""
    layout = jobs.layout
    ways = (layout.tp, layout.cp, layout.pp, layout.dp, layout.ep)
    groups = sum((np.asarray(way) > 1).astype(float) for way in ways)
    return np.asarray(rules.context_bytes) + np.asarray(rules.group_bytes) * groups
