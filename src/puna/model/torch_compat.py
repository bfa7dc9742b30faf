"""Features of the installed torch beyond the oldest supported version.

They are detected here, and nowhere else. `torch.nn.attention.varlen.varlen_attn` (torch 2.10) is flash attention over
rows of unequal length without padding. Its causal and grouped-query switches were added later, and reading keys from
pages (torch 2.12) later still, so the signature is checked instead of the version.
"""

import inspect
import os
from functools import lru_cache

import torch


def has_varlen_attention() -> bool:
    """Whether causal variable-length attention with grouped heads can run here.

    It needs the function, and CUDA.
    """
    return {"window_size", "enable_gqa"} <= _varlen_parameters()


def has_paged_attention() -> bool:
    """Whether variable-length attention can read keys and values through a block table here."""
    return has_varlen_attention() and {"block_table", "seqused_k", "num_splits"} <= _varlen_parameters()


@lru_cache(maxsize=1)
def has_compiled_flex() -> bool:
    """Whether FlexAttention can be compiled for a GPU here: needs a GPU, and Triton."""
    if not torch.cuda.is_available():
        return False
    from torch.utils._triton import has_triton

    return has_triton()


@lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products, which then beat float32.

    ONEDNN_MAX_CPU_ISA, which restricts oneDNN to fewer instructions, is respected: without bf16 in it there are none.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if limit and limit != "DEFAULT" and not any(word in limit for word in ("BF16", "FP16", "AMX")):
        return False
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(supported() for supported in asked if supported is not None)


@lru_cache(maxsize=1)
def _varlen_parameters() -> frozenset[str]:
    # Flash attention needs Ampere or later.
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return frozenset()
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)
