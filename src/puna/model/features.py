"""What the installed torch can do beyond the oldest version we run on: asked once, here, and nowhere else.

`torch.nn.attention.varlen.varlen_attn` (torch 2.10) is flash attention over rows of unequal length without padding. Its
causal switch and its grouped-query switch came later, so the signature is asked instead of the version.
"""

import inspect
from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def has_varlen_attention() -> bool:
    """Whether causal variable-length attention with grouped heads can run here: the function is there, and CUDA is."""
    if not torch.cuda.is_available():
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()
