"""How much memory a training process will need, before it starts. Pure arithmetic, no torch.

The peak is one of five moments: when first weights are counted from the corpus; right after the forward pass, when the
activations of all blocks and the logits of a chunk are there; at the start of the backward pass, when the first block's
gradients come on top; in the optimizer's step, when all gradients and its temporaries are; or when a checkpoint is
copied to be written in the background. What is always there (weights, optimizer states, Python itself) is added to the
largest of them. What a block keeps was counted tensor by tensor with `torch.autograd.graph.saved_tensors_hooks` on
`model.llama` (torch 2.13, November 2026); bench/memory.py compares the whole with what real runs took.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from puna.core.errors import OutOfMemoryError
from puna.core.units import format_bytes, format_count
from puna.model.config import PRESETS, ModelConfig
from puna.model.layout import fill_pipeline
from puna.train.recipe import Recipe

if TYPE_CHECKING:
    from puna.train.measure.machine import Machine

# Resident memory of Python with torch, numpy and the trainer imported, and what torch.compile adds in the process
# itself, read from /proc/self/status (torch 2.13 CPU build, Linux x86-64, 2026-11-23 and 2026-11-30).
_BASE = 330 * 2**20
_COMPILER = 150 * 2**20
# What a run's other work leaves in the process: libraries and heap of counting first weights, evaluations and samples.
# Over the same steps alone, demos took 90 to 130 MiB more (2026-11-30).
_BETWEEN_STEPS = 95 * 2**20
# What glibc's heap keeps in gaps between tensors that stay, on CPUs: so many times the residual stream for each block.
# With every tensor mapped by itself (MALLOC_MMAP_THRESHOLD_) it is gone, and the rest of the prediction is within 2 %;
# fitted to the runs of bench/memory.py, 2026-11-23.
_GAPS_EAGER, _GAPS_COMPILED = 4.5, 2.0
_LARGEST_IN_HEAP = 32 * 2**20  # glibc maps anything larger by itself (mallopt(3), M_MMAP_THRESHOLD)
# Recomputation leaves each block's gradients between the temporaries of its neighbours: measured, three blocks'.
_GAPS_RECOMPUTED = 3.0


@dataclass(frozen=True)
class MemoryEstimate:
    """Expected peak of one process on its device, bytes: `parts` by what they are for, and their sum."""

    parts: dict[str, int]
    held: int = 0
    """What of it the process has before it starts: on CPUs the interpreter with what it imported."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


def predict_memory(recipe: Recipe, *, device_type: str, world_size: int = 1, held: int = 0) -> MemoryEstimate:
    """Peak memory of one of `world_size` processes: on "cpu" resident memory of the process, else the allocator's.

    precision and compile set to "auto" are taken as the device's usual: mixed and compiled on GPUs, fp32 and compiled
    on CPUs. held: on a CPU, bytes that the process has taken already. Raises PunaError when the layout does not fit the
    number of processes.
    """
    return MemoryPrediction(recipe, device_type, world_size, held).estimate()


def largest_preset_that_fits(recipe: Recipe, available: int, *, device_type: str, world_size: int = 1) -> str | None:
    """The preset with the most parameters that this recipe, with the same vocabulary, could train in `available` bytes.

    None when not even the smallest fits.
    """
    best: tuple[int, str] | None = None
    for name in PRESETS:
        model = ModelConfig.model_validate({"preset": name, "vocab_size": recipe.model.vocab_size})
        if model.max_position_embeddings < recipe.train.seq_len:
            continue
        candidate = recipe.model_copy(update={"model": model})
        if predict_memory(candidate, device_type=device_type, world_size=world_size).total <= available:
            best = max(best or (0, ""), (model.num_parameters(), name))
    return best[1] if best else None


def check_fits(recipe: Recipe, estimate: MemoryEstimate, machine: "Machine", advice: str = "") -> None:
    """Raise PunaError when the prediction is more than the machine has free, naming the largest preset that fits.

    advice: said instead, where the model is given. Processes of one node share a CPU's memory; each GPU process has its
    own.
    """
    on_cpu = machine.device == "cpu"
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if on_cpu else 1
    available = machine.memory_bytes // sharing
    if on_cpu:
        available += estimate.held
    if estimate.total <= available:
        return
    parts = sorted(estimate.parts.items(), key=lambda part: -part[1])[:3]
    largest = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts)
    problem = (
        f"A model of {format_count(recipe.model.num_parameters())} parameters would need about "
        f"{format_bytes(estimate.total)} in each process ({largest}), but {format_bytes(available)} are free."
    )
    if advice:
        raise OutOfMemoryError(problem, advice)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    fitting = largest_preset_that_fits(recipe, available, device_type=machine.device, world_size=world_size)
    raise OutOfMemoryError(
        problem,
        (
            f"The largest preset that fits with this recipe is model.preset = '{fitting}'; "
            if fitting
            else "No preset fits with this recipe; "
        )
        + "a smaller train.micro_batch, a shorter train.seq_len or train.recompute = 'full' need less.",
    )


class MemoryPrediction:
    """One recipe on one kind of device: its sizes, and the peak moments made of them.

    held: on a CPU, what the process has taken already, where it is known to be more than an interpreter usually has.
    """

    def __init__(self, recipe: Recipe, device_type: str, world_size: int, held: int = 0) -> None:
        self.recipe, self.model, train = recipe, recipe.model, recipe.train
        self.on_cpu = device_type == "cpu"
        self.held = max(_BASE, held) if self.on_cpu else 0
        auto = "fp32" if self.on_cpu else "mixed"
        self.precision = auto if train.precision == "auto" else train.precision
        self.compiled = train.compile != "off"
        self.layout = recipe.layout.resolve(world_size, on_cpu=self.on_cpu)
        layout = self.layout
        # A matrix is in as many parts as there are processes that share it, whatever they share it for. A pipeline has
        # as many micro-batches under way as stages, so that a process keeps as much as one with all the blocks.
        self.shards = layout.dp_shard * layout.tp * layout.cp * layout.pp
        rows = max(1, train.batch // layout.data_parallel)
        at_once = train.micro_batch or (fill_pipeline(rows, layout.pp)[0] if layout.pp > 1 else rows)
        self.rows = min(at_once, rows)
        self.micro_batches = -(-rows // self.rows)
        self.tokens = max(1, self.rows * train.seq_len // (layout.tp * layout.cp))
        # Bytes of a stored weight (and its gradient and states), of the residual stream, and of a product's result.
        self.weight_bytes = 2 if self.precision == "bf16" else 4
        # FSDP casts a block's inputs to bf16; autocast leaves the residual stream in fp32.
        narrow = self.precision == "bf16" or (self.precision == "mixed" and self.shards > 1)
        self.stream_bytes = 2 if narrow else 4
        self.product_bytes = 4 if self.precision == "fp32" else 2
        # Copies of the weights in bf16 that autocast makes, kept from the forward to the backward pass.
        self.casts = self.precision == "mixed" and self.shards == 1

    def estimate(self) -> MemoryEstimate:
        always = self.always()
        moments = (self.counting(), self.after_forward(), self.in_backward(), self.in_step(), self.saving())
        moment = max(moments, key=lambda parts: sum(parts.values()))
        parts: dict[str, float] = defaultdict(float)
        for source in (always, moment):
            for name, size in source.items():
                parts[name] += size
        return MemoryEstimate({name: round(size) for name, size in parts.items() if size >= 1}, self.held)

    # -- what is always there ----------------------------------------------------------------------------------------

    def always(self) -> dict[str, float]:
        parameters = self.model.num_parameters()
        parts: dict[str, float] = {
            "weights": self.weight_bytes * parameters / self.shards,
            "optimizer state": self.weight_bytes * self.state_numbers() / self.shards,
        }
        if self.on_cpu:
            # A process that holds more than the interpreter has compiled already.
            parts["Python and torch"] = max(self.held, _BASE + (_COMPILER if self.compiled else 0))
            if self.recipe.train.init != "normal":
                parts["between steps"] = _BETWEEN_STEPS
        if self.grads_stay():
            parts["gradients"] = self.grad_bytes()
        if self.shards > 1:
            block, rest = self.model.block_parameters(), self.outer_parameters()
            # The block at work and the next one are gathered; embedding, head and last norm stay so for the whole pass.
            parts["gathered weights"] = self.product_bytes * (2 * block + rest)
        # Rows of the current and two prefetched batches: ids and targets, 8 bytes each.
        parts["batches"] = 3 * 16.0 * self.tokens * self.micro_batches
        return parts

    def state_numbers(self) -> int:
        """Numbers in the optimizer's state: two for each weight under AdamW, one under Muon."""
        trained = self.trained()
        return 2 * trained - (0 if self.recipe.optimizer.kind == "adamw" else sum(count for _, count in self.stacks()))

    def stacks(self) -> Iterator[tuple[tuple[int, int], int]]:
        """((rows, columns), numbers) of each stack of equal matrices that Muon turns at once."""
        sizes: dict[tuple[int, int], int] = defaultdict(int)
        for name, shape in self.trained_shapes().items():
            if ".layers." in name and len(shape) == 2:
                sizes[shape[0], shape[1]] += shape[0] * shape[1]
        yield from sizes.items()

    def trained_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights that have gradients."""
        return self.model.parameter_shapes()

    def trained(self, part: str = "") -> int:
        """How many numbers those are, in names with this part."""
        return sum(math.prod(shape) for name, shape in self.trained_shapes().items() if part in name)

    def outer_parameters(self) -> int:
        return self.model.num_parameters() - self.model.block_parameters() * self.model.num_hidden_layers

    def grad_bytes(self) -> float:
        return self.weight_bytes * self.trained() / self.shards

    def grads_stay(self) -> bool:
        """Gradients are there through the whole step: summed over micro-batches, or living in DDP's buckets."""
        return self.micro_batches > 1 or (self.layout.dp_replicate > 1 and self.shards == 1)

    # -- the moments -------------------------------------------------------------------------------------------------

    def counting(self) -> dict[str, float]:
        """Before the first step, when first weights are counted: tables of pairs of tokens, four in fp32 at most."""
        if self.recipe.train.init == "normal" or not self.on_cpu:
            return {}
        return {"counting first weights": 4 * 4.0 * self.model.vocab_size**2}

    def after_forward(self) -> dict[str, float]:
        return {
            "activations": self.activations(),
            "logits and loss": self.head_gradients() + self.chunk_bytes(),
            "gaps in the heap": self.gaps(),
        }

    def in_backward(self) -> dict[str, float]:
        return {
            "activations": self.activations(),
            "logits and loss": 2 * self.head_gradients(),  # as computed, and scaled for the weight itself
            "backward pass": self.backward_bytes(),
            "gaps in the heap": self.gaps() + self.gaps_of_recomputing(),
        }

    def in_step(self) -> dict[str, float]:
        parts = {"gradients": 0.0 if self.grads_stay() else self.grad_bytes()}
        if self.recipe.optimizer.kind == "muon":
            largest = max(count for _, count in self.stacks())
            gram = max(min(shape) * count / max(shape) for shape, count in self.stacks())
            # Cleaned gradients, stacked update, the iteration's operand and result, its Gram matrices; a CPU iterates
            # on more of these, and its heap keeps the unstacked updates.
            whole, grams = (5, 5) if self.on_cpu else (4, 3)
            parts["optimizer step"] = 4.0 * (whole * largest + grams * gram) / self.shards
        return parts

    def saving(self) -> dict[str, float]:
        """After a step: the copy of weights and states, written while training continues (GPUs copy to the host)."""
        if not (self.on_cpu and self.recipe.checkpoint.every and self.recipe.checkpoint.asynchronous):
            return {}
        copy = self.weight_bytes * (self.trained() + self.state_numbers()) / self.shards
        return {"gradients": 0.0 if self.grads_stay() else self.grad_bytes(), "checkpoint copy": copy}

    # -- pieces ------------------------------------------------------------------------------------------------------

    def activations(self) -> float:
        """What the forward pass keeps for the backward pass, all blocks, and the hidden states at the end."""
        model, train = self.model, self.recipe.train
        mode = train.recompute
        kept = self.block_bytes_per_token(mode) * self.tokens * model.num_hidden_layers
        if self.casts:
            # Autocast's copies of the weights: of every block where its products are kept, else of one at a time.
            copied = model.block_parameters() * (model.num_hidden_layers if mode == "none" else 1)
            kept += 2.0 * (copied + model.vocab_size * model.hidden_size)
        if train.document_mask and self.on_cpu:
            kept += self.mask_bytes() * (model.num_hidden_layers if mode == "none" else 1)
        # Input and normed input of the last norm, and the gradient of what it gave.
        final = (2 * self.stream_bytes + self.product_bytes) * model.hidden_size * self.tokens
        return kept + final

    def block_bytes_per_token(self, mode: str) -> float:
        """Bytes that one block keeps for each token, by what is recomputed: none, selective or full.

        h: residual stream, qkv: query, key, value and attention's result, ffn: one feed-forward activation. Eager keeps
        every operand; a compiled block lets the compiler recompute norms and SiLU from what products gave.
        """
        model = self.model
        h, ffn = model.hidden_size, model.intermediate_size
        qkv = 2 * (model.num_attention_heads + model.num_key_value_heads) * model.head_dim
        wide, narrow = self.stream_bytes, self.product_bytes
        small = 4 * model.num_attention_heads + 8  # attention's log-sum-exp and two norms' scales, fp32
        if mode == "full":
            return wide * h
        if mode == "selective":
            streams = 2 if self.compiled else 3
            return (wide + (streams - 1) * narrow) * h + narrow * (qkv + 2 * ffn) + small
        if self.compiled:
            return (wide + 3 * narrow) * h + narrow * (qkv + 3 * ffn) + small
        norms = {"fp32": 6 * 4, "mixed": 4 * 4 + 5 * 2, "bf16": 4 * 4 + 2 * 2}[self.precision]
        return norms * h + narrow * (qkv + 4 * ffn) + small

    def gaps(self) -> float:
        """What the heap holds between activations on a CPU; nothing where they are mapped one by one, or are few."""
        stream = float(self.stream_bytes * self.model.hidden_size * self.tokens)
        if not self.on_cpu or stream > _LARGEST_IN_HEAP or self.recipe.train.recompute == "full":
            return 0.0
        return (_GAPS_COMPILED if self.compiled else _GAPS_EAGER) * stream * self.model.num_hidden_layers

    def gaps_of_recomputing(self) -> float:
        """What more it holds when blocks are recomputed, whole or eagerly."""
        mode = self.recipe.train.recompute
        if not self.on_cpu or mode == "none" or (self.compiled and mode == "selective"):
            return 0.0
        return (_GAPS_RECOMPUTED - 1) * self.backward_bytes()

    def mask_bytes(self) -> float:
        """The dense document mask as SDPA takes it on CPUs: one number for each pair of positions."""
        return 4.0 * self.rows * self.recipe.train.seq_len**2

    def chunk_bytes(self) -> float:
        """Logits of one chunk with the temporary of their log-sum-exp in fp32, and in bf16 before that."""
        chunk = min(self.recipe.train.loss_chunk or self.tokens, self.tokens)
        per_logit = 8 + (0 if self.precision == "fp32" else 2)
        return float(per_logit * chunk * self.model.vocab_size)

    def head_gradients(self) -> float:
        """The head's gradient, computed in fp32 together with the loss, if it has one."""
        head = "embed_tokens" if self.model.tie_word_embeddings else "lm_head"
        return 4.0 * self.trained(head)

    def backward_bytes(self) -> float:
        """Temporaries of one block's backward pass, with what it recomputes before that."""
        model = self.model
        recomputed = 0.0
        mode = self.recipe.train.recompute
        if mode != "none":
            recomputed = (self.block_bytes_per_token("none") - self.block_bytes_per_token(mode)) * self.tokens
        # Gradients of the feed-forward's three activations and of the stream on its two ways.
        flowing = (3 * self.product_bytes * model.intermediate_size + 2 * self.stream_bytes * model.hidden_size) * (
            self.tokens
        )
        block = self.trained(".layers.0.")
        grads = 0.0 if self.grads_stay() else self.weight_bytes * block / self.shards
        if self.shards > 1:
            # One block's whole gradient, in bf16 as computed and in fp32 as it is reduced.
            grads += (self.product_bytes + 4.0) * block
        return recomputed + flowing + grads
