"""A summary of an engine's settings in sentences: precision, attention, KV cache, batch, threads."""

import torch

from puna.core.units import format_bytes
from puna.engine.core.engine_core import EngineCore
from puna.engine.cpu.fused_model import packed_matrices
from puna.engine.cuda.graphs import DecodeGraphs
from puna.engine.cuda.paged_attention import AttentionBackend, attention_backend
from puna.model.llama import LlamaForCausalLM

_ATTENTION: dict[AttentionBackend, str] = {
    "flash": "paged flash attention",
    "flex": "paged FlexAttention",
    "gather": "over gathered blocks",
}


def describe(model: LlamaForCausalLM, core: EngineCore, *, why: str) -> list[str]:
    """One sentence per setting. why: the reason for the precision."""
    scheduler, runner = core.scheduler, core.runner
    pool, device = scheduler.pool, scheduler.pool.store.device
    matrices = packed_matrices(model)
    size = sum(parameter.nbytes for parameter in model.parameters()) + sum(matrix.nbytes for matrix in matrices)
    lines = [f"Weights: {_name(model.head_weight.dtype)} on {device}, {format_bytes(size)}, {why}."]
    if matrices:
        lines.append(f"Matrices: {', '.join(sorted({matrix.kind for matrix in matrices}))}, laid out for this CPU.")
    if runner.native_step is not None:
        lines.append("Steps: one call each into kernels compiled for this CPU, with paged attention.")
    else:
        backend = attention_backend(device, pool.store.dtype, pool.store.shape[-1], pool.block_size)
        lines.append(f"Attention: {_ATTENTION[backend]}.")
    lines.append(
        f"KV cache: {pool.num_blocks * pool.block_size:,} tokens in blocks of {pool.block_size}, "
        f"{_name(pool.store.dtype)}, {format_bytes(pool.store.numel() * pool.store.itemsize)}."
    )
    lines.append(
        f"Batch: at most {scheduler.max_batch} sequences and {scheduler.step_tokens:,} tokens a step; prefix cache "
        f"{'on' if scheduler.prefix_cache else 'off'}."
    )
    if runner.decode_graphs is not None:
        lines += _decode_steps(runner.decode_graphs)
    if core.overlap:
        lines.append(
            "Overlap: a step's tokens are read after the next step has started, except with penalties, grammars and "
            "top_logprobs."
        )
    if device.type == "cpu":
        lines.append(f"Threads: {torch.get_num_threads()}.")
    if runner.deterministic:
        price = ", at the cost of more arithmetic per token" if runner.native_step is None else ""
        lines.append(f"Deterministic: logits equal to the bit whatever else is in the batch{price}.")
    return lines


def _decode_steps(graphs: DecodeGraphs) -> list[str]:
    how = "captured as CUDA graphs" if graphs.capture else "padded"
    found = f"; so far {', '.join(map(str, graphs.sizes))}" if graphs.sizes else ""
    failed = [f"Decode steps of {size} sequences could not be captured: {why}." for size, why in graphs.failed.items()]
    return [f"Decode steps: {how} by batch size, each on first use{found}.", *failed]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
