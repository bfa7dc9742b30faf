"""Join the processes of a run and give each its place in a layout.

Outside this package a rank only decides which process writes. The rows of a batch that a process reads, and the
processes with which it sums losses and gradients, follow from its place among the data-parallel ranks:
`World.data_rank` of `World.data_size`.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from puna.model.layout import Layout

# Processes that a launcher has just restarted sometimes fail to find each other (gloo, seen after a SIGKILL on a busy
# machine). They should fail soon, so that the launcher restarts them again. A step or a checkpoint may take longer.
_JOIN, _SPEAK = timedelta(minutes=2), timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int
    size: int
    device: torch.device
    layout: Layout | None = None
    """Resolved; None before `arrange`, when every process is a data-parallel rank."""
    mesh: DeviceMesh | None = None
    """The mesh (dp_replicate, dp_shard), or with a model-parallel layout (pp, dp_replicate, dp_shard, tp), where the
    ranks of a context group are neighbours in dp_shard; None without a process group."""
    data_group: dist.ProcessGroup | None = None
    """The processes whose shares make a whole batch: losses and counts are summed over them. None: all processes."""
    context_group: dist.ProcessGroup | None = None
    """The processes that share the sequences of one row; None without context parallelism."""

    @property
    def first(self) -> bool:
        """Whether this process prints and writes for all of them."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """The index of this process's share of a batch."""
        if self.mesh is None or self.layout is None:
            return self.rank
        shard = self.layout.dp_shard
        return self.mesh.get_local_rank("dp_replicate") * shard + self.mesh.get_local_rank("dp_shard") // self.layout.cp

    @property
    def data_size(self) -> int:
        """The number of shares of a batch."""
        return self.size if self.layout is None else self.layout.data_parallel

    @property
    def summed_over(self) -> int:
        """How many processes have different tokens of a batch: the size of `data_group`."""
        return self.size if self.layout is None else self.layout.data_parallel * self.layout.cp

    @property
    def stage(self) -> int:
        """Which part of a pipeline this process is."""
        return self._place("pp")

    @property
    def stage_group(self) -> dist.ProcessGroup | None:
        """The processes of one pipeline, in the order of its stages; None without one."""
        return self.mesh.get_group("pp") if self.mesh is not None and self.layout and self.layout.pp > 1 else None

    @property
    def tensor_mesh(self) -> DeviceMesh | None:
        """The processes that split each matrix; None where matrices are not split."""
        return self.mesh["tp"] if self.mesh is not None and self.layout and self.layout.tp > 1 else None

    @property
    def shard_mesh(self) -> DeviceMesh:
        """The processes over which FSDP spreads weights: one dimension, or two with copies of the shards (HSDP)."""
        assert self.mesh is not None, "a layout with shards has a process group"
        assert self.layout is not None
        return self.mesh["dp_replicate", "dp_shard"] if self.layout.dp_replicate > 1 else self.mesh["dp_shard"]

    def _place(self, dimension: str) -> int:
        names = self.mesh.mesh_dim_names if self.mesh is not None else None
        return self.mesh.get_local_rank(dimension) if self.mesh is not None and dimension in (names or ()) else 0


@contextlib.contextmanager
def join_world() -> Iterator[World]:
    """Join the processes that torchrun started, or form a world of one.

    Uses NCCL on GPUs and gloo on CPUs.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if "RANK" not in os.environ:
        yield World(0, 1, device)
        return
    # gloo in addition to NCCL: asynchronous checkpoints communicate over CPUs while GPUs compute.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_JOIN)
    _set_pg_timeout(_SPEAK)
    try:
        yield World(rank, size, device)
        dist.barrier()  # keep the group until all processes have finished communicating
    finally:
        dist.destroy_process_group()


def arrange(world: World, layout: Layout) -> World:
    """The world with each process in its place of a resolved layout."""
    if not layout.model_parallel:
        return replace(world, layout=layout, mesh=data_mesh(layout, world))
    # The ranks that speak most often are neighbours: those of tp, then of cp. Pipelines, which speak least, span nodes.
    sizes = (layout.pp, layout.dp_replicate, layout.dp_shard * layout.cp, layout.tp)
    mesh = init_device_mesh(world.device.type, sizes, mesh_dim_names=("pp", "dp_replicate", "dp_shard", "tp"))
    data, context = mesh["dp_shard"], None
    if layout.dp_replicate > 1:
        data = mesh["dp_replicate", "dp_shard"]._flatten("data")
    if layout.cp > 1:
        rows = (layout.processes // (layout.cp * layout.tp), layout.cp, layout.tp)
        context = init_device_mesh(world.device.type, rows, mesh_dim_names=("rows", "cp", "tp")).get_group("cp")
    return replace(world, layout=layout, mesh=mesh, data_group=data.get_group(), context_group=context)


def data_mesh(layout: Layout, world: World) -> DeviceMesh | None:
    """The mesh (dp_replicate, dp_shard) of a resolved layout; None without a process group."""
    if not dist.is_initialized():
        return None
    return init_device_mesh(
        world.device.type, (layout.dp_replicate, layout.dp_shard), mesh_dim_names=("dp_replicate", "dp_shard")
    )
