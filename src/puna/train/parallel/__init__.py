"""Parallelism, applied to the network from outside.

`llama.py` knows nothing of any of this. `mesh` places processes, `data` shares batches and states among them, `tensor`
splits matrices, `context` sequences and `pipeline` the row of blocks; `compute` says how each one computes.
"""

from puna.train.parallel.compute import apply_to_blocks, autocast, resolve_compile, resolve_precision, uncompiled
from puna.train.parallel.context import ContextShare
from puna.train.parallel.data import (
    Share,
    accumulating,
    from_first,
    full_state,
    gather_over_ranks,
    gradient_factor,
    max_over_ranks,
    replicate,
    shard,
    share_of_batch,
    sum_over_data_and_stages,
    sum_over_ranks,
)
from puna.train.parallel.export import first_state, pending_weights
from puna.train.parallel.mesh import World, arrange, data_mesh, join_world
from puna.train.parallel.pipeline import TIED, Call, Pipeline
from puna.train.parallel.spread import check_possible, spread

__all__ = [
    "TIED",
    "Call",
    "ContextShare",
    "Pipeline",
    "Share",
    "World",
    "accumulating",
    "apply_to_blocks",
    "arrange",
    "autocast",
    "check_possible",
    "data_mesh",
    "first_state",
    "from_first",
    "full_state",
    "gather_over_ranks",
    "gradient_factor",
    "join_world",
    "max_over_ranks",
    "pending_weights",
    "replicate",
    "resolve_compile",
    "resolve_precision",
    "shard",
    "share_of_batch",
    "spread",
    "sum_over_data_and_stages",
    "sum_over_ranks",
    "uncompiled",
]
