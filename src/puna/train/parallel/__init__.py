"""Parallelism, applied to the network from outside.

This includes processes, precision, recomputation, compilation and sharding. `llama.py` knows nothing about it. `mesh`
places processes, `data` shares batches and states among them, and `compute` decides how each process computes.
"""

from puna.train.parallel.compute import apply_to_blocks, autocast, resolve_compile, resolve_precision, uncompiled
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
    sum_over_ranks,
)
from puna.train.parallel.mesh import World, arrange, data_mesh, join_world

__all__ = [
    "Share",
    "World",
    "accumulating",
    "apply_to_blocks",
    "arrange",
    "autocast",
    "data_mesh",
    "from_first",
    "full_state",
    "gather_over_ranks",
    "gradient_factor",
    "join_world",
    "max_over_ranks",
    "replicate",
    "resolve_compile",
    "resolve_precision",
    "shard",
    "share_of_batch",
    "sum_over_ranks",
    "uncompiled",
]
