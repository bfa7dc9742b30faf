"""Defaults for what a question leaves out, taken from published runs, each with its source.

A plan needs a sequence length, a batch and a number of tokens. A model's name alone gets those that models of its size
were trained with, and the plan lists them as assumptions.
"""

import math

from puna.model.config import ModelConfig
from puna.plan.equations.constants import STACKS

# Compute-optimal tokens per parameter: Hoffmann 2022, arXiv 2203.15556.
TOKENS_PER_PARAMETER = 20.0

# Tokens per step for models of at least this many parameters.
_TOKENS_PER_STEP = (
    (200e9, 2**24, "Llama 3 405B: 16M from 2.87T tokens on, arXiv 2407.21783 section 3.4.1"),
    (5e9, 2**22, "Llama 2: 4M at every size, arXiv 2307.09288 section 2.2; Llama 3 405B began with it"),
    (1e9, 2**20, "GPT-3 1.3B and 2.7B: 1M, arXiv 2005.14165 table 2.1"),
    (0.0, 2**19, "GPT-3 125M to 760M: 0.5M, arXiv 2005.14165 table 2.1"),
)


def tokens_per_step(parameters: float) -> tuple[int, str]:
    """Tokens per optimizer step for a model of this size, and the source of that figure."""
    return next((tokens, source) for least, tokens, source in _TOKENS_PER_STEP if parameters >= least)


def pretraining_length(model: ModelConfig) -> int:
    """Sequence length in pretraining: the longest context before any extension."""
    scaling = model.rope_scaling
    return scaling.original_max_position_embeddings if scaling else model.max_position_embeddings


def divisible_batch(sequences: float, accelerators: int, stack: str) -> int:
    """The batch nearest to `sequences` that most layouts of `accelerators` divide; at least 1.

    Data parallelism alone needs a multiple of all accelerators. With model parallelism there are fewer
    ranks, so it is a multiple of the accelerators halved until they are below the batch.
    """
    ranks = accelerators
    if STACKS[stack].model_parallel:
        while ranks > sequences and ranks % 2 == 0:
            ranks //= 2
        if ranks > 2 * sequences:  # no multiple is near: a layout needs fewer ranks, or there is none
            return max(1, round(sequences))
    return ranks * max(1, math.floor(sequences / ranks + 0.5))


def batches_near(sequences: int, accelerators: int, *, most: int = 24) -> list[int]:
    """Other batches to try where `sequences` has no layout: multiples of data-parallel sizes, nearest first."""
    ranks = [size for size in range(1, min(accelerators, 4 * sequences) + 1) if accelerators % size == 0]
    near = {size * max(1, sequences // size + more) for size in ranks for more in (0, 1)} - {sequences}
    return sorted(near, key=lambda batch: (abs(math.log(batch / sequences)), batch))[:most]
