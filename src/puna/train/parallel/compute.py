"""How a process computes: precision, recomputation and compilation of the blocks.

The order matters: recomputation wraps a block's forward, compilation wraps that, and sharding hooks stay outside both,
so that FSDP's hooks run eagerly around a compiled block.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from puna.model.layout import Layout
from puna.model.llama import LlamaForCausalLM
from puna.model.torch_compat import multiplies_bfloat16
from puna.train.recipe import ComputeConfig


def resolve_precision(config: ComputeConfig, device: torch.device) -> str:
    """Resolve `precision = "auto"`: "mixed" if bf16 products are fast here, otherwise "fp32"."""
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        return "mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "mixed" if multiplies_bfloat16() else "fp32"


def resolve_compile(config: ComputeConfig, device: torch.device, layout: Layout | None = None) -> bool:
    """Whether blocks are compiled: "auto" needs a C++ compiler on CPU; on CUDA torch brings Triton along.

    Blocks whose matrices are split are not: torch 2.13 fails on them.
    """
    if config.compile == "auto" and layout is not None and layout.tp > 1:
        return False
    if config.compile != "auto":
        return config.compile == "on"
    return device.type == "cuda" or any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def apply_to_blocks(model: LlamaForCausalLM, *, recompute: str, compiled: bool) -> None:
    """Compile each block and recompute its activations in the backward pass, in place.

    recompute: "none"; "selective" keeps the results of matrix products and attention and recomputes the cheap rest;
    "full" keeps only a block's input. Parameter names do not change, because only `forward` is wrapped.
    """
    for block in model.model.layers:
        forward: Callable[..., Any] = block.forward
        if recompute == "full":
            forward = partial(checkpoint, forward, use_reentrant=False)
        elif recompute == "selective":
            contexts = partial(create_selective_checkpoint_contexts, _keep_products)
            forward = partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)
        if compiled:
            # One graph serves all blocks: their parameters are inputs of it, not constants.
            forward = torch.compile(forward, fullgraph=recompute == "none")
        block.forward = forward


def autocast(precision: str, device: torch.device, *, sharded: bool) -> contextlib.AbstractContextManager[Any]:
    """bf16 products with fp32 weights; under FSDP the mixed-precision policy does this instead."""
    if precision == "mixed" and not sharded:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def uncompiled(compiled: bool) -> contextlib.AbstractContextManager[Any]:
    """Disable compilation during generation.

    Every token has new shapes, which would compile the blocks again.
    """
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


def _keep_products(_ctx: Any, op: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = any(
        part in str(op)
        for part in ("aten.mm", "aten.addmm", "aten.bmm", "scaled_dot_product", "scaled_mm", "flash_attn")
    )
    if kept and len(args) > 1 and isinstance(args[1], DTensor):
        # A product that ranks have parts of is a whole sequence long; what is kept is its sum, split along the sequence
        # (0.33 instead of 0.80 GiB a layer and micro-batch of Llama 3.1 405B at tp 8, counted 2026-11-30).
        kept = not any(placement.is_shard(0) for placement in args[1].placements)
    kept = kept or "reduce_scatter" in str(op)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
