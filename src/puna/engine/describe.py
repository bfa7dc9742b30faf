"""What an engine chose when it was made, in sentences: precision, attention, cache, batch, threads."""

import torch

from puna.core.units import format_bytes
from puna.engine.decode import DecodeSteps
from puna.engine.fused import packs
from puna.engine.paged import Way, way
from puna.engine.step import Stepper
from puna.model.llama import LlamaForCausalLM

_ATTENTION: dict[Way, str] = {
    "flash": "flash attention that reads pages where they lie",
    "flex": "FlexAttention that reads pages where they lie",
    "gather": "over gathered pages",
}


def describe(model: LlamaForCausalLM, stepper: Stepper, *, why: str) -> list[str]:
    """One sentence per choice. why: where the precision comes from."""
    scheduler, runner = stepper.scheduler, stepper.runner
    pool, device = scheduler.pool, scheduler.pool.store.device
    matrices = packs(model)
    size = sum(parameter.nbytes for parameter in model.parameters()) + sum(matrix.nbytes for matrix in matrices)
    said = [f"Weights: {_name(model.head_weight.dtype)} on {device}, {format_bytes(size)}, {why}."]
    if matrices:
        said.append(f"Matrices: {', '.join(sorted({matrix.kind for matrix in matrices}))}, laid out for this CPU.")
    if runner.whole is not None:
        said.append("Steps: one call each into kernels compiled for this CPU, which read pages where they lie.")
    else:
        how = way(device, pool.store.dtype, pool.store.shape[-1], pool.page_size)
        said.append(f"Attention: {_ATTENTION[how]}.")
    said.append(
        f"Cache: {pool.pages * pool.page_size:,} tokens in pages of {pool.page_size}, {_name(pool.store.dtype)}, "
        f"{format_bytes(pool.store.numel() * pool.store.itemsize)}."
    )
    said.append(
        f"At most {scheduler.max_batch} texts at once and {scheduler.step_tokens:,} tokens a step; known beginnings "
        f"{'are kept' if scheduler.prefix_cache else 'are computed again'}."
    )
    if runner.decode_steps is not None:
        said += _decode_steps(runner.decode_steps)
    if stepper.overlap:
        said.append(
            "Overlap: a step's tokens are read when the next one is on its way, but for penalties, grammars and "
            "top_logprobs."
        )
    if device.type == "cpu":
        said.append(f"Threads: {torch.get_num_threads()}.")
    if runner.deterministic:
        price = ", for more arithmetic a token" if runner.whole is None else ""
        said.append(f"Deterministic: the same logits to the bit in any company{price}.")
    return said


def _decode_steps(steps: DecodeSteps) -> list[str]:
    how = "captured as CUDA graphs" if steps.capture else "padded"
    found = f"; so far {', '.join(map(str, steps.sizes))}" if steps.sizes else ""
    failed = [f"Decode steps of {size} texts could not be captured: {why}." for size, why in steps.failed.items()]
    return [f"Decode steps: {how}, by numbers of texts, when each first comes up{found}.", *failed]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
