"""Parallelism, put on the network from outside: processes, precision, recomputation, compilation, sharding.

`llama.py` knows nothing of any of this. Order matters: recomputation wraps a block's forward, compilation wraps that,
and sharding hooks stay outside of both, so that FSDP's hooks run eagerly around a compiled block.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from puna.core.errors import PunaError
from puna.model.layout import Layout
from puna.model.llama import LlamaForCausalLM
from puna.model.torch_compat import multiplies_bfloat16
from puna.train.recipe import ComputeConfig

# Processes that a launcher has just started again sometimes miss each other (gloo, seen after a SIGKILL on a busy
# machine): they shall fail soon, so that it starts them once more. A step or a checkpoint may take longer.
_JOIN, _SPEAK = timedelta(minutes=2), timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0


@contextlib.contextmanager
def join_world() -> Iterator[World]:
    """Join the processes that torchrun started (NCCL on GPUs, gloo on CPUs), or be a world of one."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if "RANK" not in os.environ:
        yield World(0, 1, device)
        return
    # gloo beside NCCL: asynchronous checkpoints speak over CPUs while GPUs compute.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_JOIN)
    _set_pg_timeout(_SPEAK)
    try:
        yield World(rank, size, device)
        dist.barrier()  # nobody takes the group down while others still speak
    finally:
        dist.destroy_process_group()


def data_mesh(layout: Layout, world: World) -> DeviceMesh | None:
    """The mesh (dp_replicate, dp_shard) of a resolved layout; None without a process group."""
    if not dist.is_initialized():
        return None
    return init_device_mesh(
        world.device.type, (layout.dp_replicate, layout.dp_shard), mesh_dim_names=("dp_replicate", "dp_shard")
    )


def resolve_precision(config: ComputeConfig, device: torch.device) -> str:
    """What `precision = "auto"` means on this device: "mixed" where bf16 products are fast, else "fp32"."""
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        return "mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "mixed" if multiplies_bfloat16() else "fp32"


def resolve_compile(config: ComputeConfig, device: torch.device) -> bool:
    """Whether blocks are compiled: "auto" needs a C++ compiler on CPU; on CUDA torch brings Triton along."""
    if config.compile != "auto":
        return config.compile == "on"
    return device.type == "cuda" or any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def apply_to_blocks(model: LlamaForCausalLM, *, recompute: str, compiled: bool) -> None:
    """Recompute activations of each block in the backward pass, and compile each block, in place.

    recompute: "none"; "selective" keeps the results of matrix products and attention and recomputes the cheap rest;
    "full" keeps a block's input alone. Parameter names do not change, as only `forward` is wrapped.
    """
    for block in model.model.layers:
        forward: Callable[..., Any] = block.forward
        if recompute == "full":
            forward = partial(checkpoint, forward, use_reentrant=False)
        elif recompute == "selective":
            contexts = partial(create_selective_checkpoint_contexts, _keep_products)
            forward = partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)
        if compiled:
            # One graph serves all blocks: their parameters are inputs of it, not constants in it.
            forward = torch.compile(forward, fullgraph=recompute == "none")
        block.forward = forward


def replicate(model: LlamaForCausalLM, mesh: DeviceMesh | None) -> nn.Module:
    """Whole copies on every rank (DDP), which take rank 0's weights. Returns what the training step calls.

    Parameters keep their names in `model` itself. A world of one is left as it is.
    """
    if mesh is None or mesh.size() == 1:
        return model
    group = mesh.get_group("dp_replicate")
    return DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True)


def shard(model: LlamaForCausalLM, layout: Layout, mesh: DeviceMesh | None, precision: str) -> None:
    """Shard parameters, gradients and optimizer states in place (FSDP2; HSDP when dp_replicate > 1 too)."""
    assert mesh is not None, "a layout with shards has a process group"
    # Inputs stay as they are: the tables of rotary positions must not become bf16.
    mixed = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "mixed":
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    where = mesh if layout.dp_replicate > 1 else mesh["dp_shard"]
    layers = list(model.model.layers)
    for block in layers:
        # The last block's weights are needed again at once by the backward pass: keep them.
        fully_shard(block, mesh=where, mp_policy=mixed, reshard_after_forward=block is not layers[-1])
    fully_shard(model, mesh=where, mp_policy=mixed)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the global number of valid tokens already: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            # gloo knows no pre-multiplied sum.
            module.set_force_sum_reduction_for_comms(True)


@contextlib.contextmanager
def accumulating(network: nn.Module, last: bool) -> Iterator[None]:
    """Around one micro-batch: gradients are exchanged in the last micro-batch of a step only."""
    if isinstance(network, DistributedDataParallel):
        with contextlib.nullcontext() if last else network.no_sync():
            yield
    else:
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(last)
        yield


def autocast(precision: str, device: torch.device, *, sharded: bool) -> contextlib.AbstractContextManager[Any]:
    """bf16 products over fp32 weights; under FSDP the mixed-precision policy does it instead."""
    if precision == "mixed" and not sharded:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a device tensor over all processes (itself in a world of one), without asking the host."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter, gathered whole on the CPU of every rank."""
    from torch.distributed.tensor import DTensor

    whole = {}
    for name, tensor in model.state_dict().items():
        value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        whole[name] = value.detach().cpu()
    return whole


def check_batch(batch: int, micro_batch: int, ranks: int) -> tuple[int, int]:
    """(rows a rank computes at once, micro-batches in a step). Raises PunaError when rows do not divide."""
    if batch % ranks:
        raise PunaError(
            f"train.batch = {batch} rows cannot be shared evenly by {ranks} processes.",
            f"Make it a multiple of {ranks}, or change the number of processes.",
        )
    rows = batch // ranks
    micro = min(micro_batch or rows, rows)
    if rows % micro:
        raise PunaError(
            f"train.micro_batch = {micro} does not divide the {rows} rows of a process.", f"Choose a divisor of {rows}."
        )
    return micro, rows // micro


def _keep_products(_ctx: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = any(
        part in str(op)
        for part in ("aten.mm", "aten.addmm", "aten.bmm", "scaled_dot_product", "scaled_mm", "flash_attn")
    )
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
