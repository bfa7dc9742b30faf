"""Data parallelism: replicas (DDP), shards (FSDP2, HSDP), shares of a batch, and sums."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from puna.model.layout import Layout
from puna.model.llama import LlamaForCausalLM
from puna.train.parallel.mesh import World

T = TypeVar("T")


class Share(NamedTuple):
    """The rows of a batch that this process computes.

    These are `micro_batches` times `rows`, starting at row `first`.
    """

    first: int
    rows: int
    micro_batches: int


def share_of_batch(batch: int, world: World) -> Share:
    """Return this process's rows of a batch, by the layout in which the world is arranged."""
    assert world.layout is not None, "arrange the world first"
    rows, count = world.layout.micro_batch, world.layout.micro_batches(batch)
    return Share(world.data_rank * rows * count, rows, count)


def replicate(model: LlamaForCausalLM, mesh: DeviceMesh | None) -> nn.Module:
    """Replicate the network on every rank (DDP), with rank 0's weights.

    Returns the module that the training step calls. Parameters keep their names in `model` itself. With a single
    process the model is returned unchanged.
    """
    if mesh is None or mesh.size() == 1:
        return model
    group = mesh.get_group("dp_replicate")
    return DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True)


def shard(model: LlamaForCausalLM, layout: Layout, mesh: DeviceMesh | None, precision: str) -> None:
    """Shard parameters, gradients and optimizer states in place (FSDP2, HSDP).

    It is HSDP when dp_replicate > 1 too.
    """
    assert mesh is not None, "a layout with shards has a process group"
    # Inputs keep their dtype: the tables of rotary positions must not become bf16.
    mixed = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "mixed":
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    where = mesh if layout.dp_replicate > 1 else mesh["dp_shard"]
    layers = list(model.model.layers)
    for block in layers:
        # The backward pass needs the last block's weights again immediately, so keep them.
        fully_shard(block, mesh=where, mp_policy=mixed, reshard_after_forward=block is not layers[-1])
    fully_shard(model, mesh=where, mp_policy=mixed)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is already divided by the global number of valid tokens: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            # gloo has no pre-multiplied sum.
            module.set_force_sum_reduction_for_comms(True)


@contextlib.contextmanager
def accumulating(network: nn.Module, last: bool) -> Iterator[None]:
    """Context of one micro-batch: gradients are exchanged only in the last one of a step."""
    if isinstance(network, DistributedDataParallel):
        with contextlib.nullcontext() if last else network.no_sync():
            yield
    else:
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(last)
        yield


def gradient_factor(network: nn.Module, world: World) -> int:
    """The factor for a loss before backward.

    DDP divides by the number of ranks what is already a share.
    """
    return world.data_size if isinstance(network, DistributedDataParallel) else 1


def sum_over_ranks(value: Tensor, world: World) -> Tensor:
    """Sum a device tensor over the data-parallel ranks, in place, without a host sync."""
    if world.data_size > 1:
        dist.all_reduce(value, group=world.data_group)
    return value


def max_over_ranks(value: Tensor, world: World) -> Tensor:
    """The maximum of a tensor over the data-parallel ranks, in place."""
    if world.data_size > 1:
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=world.data_group)
    return value


def gather_over_ranks(value: T, world: World) -> list[T]:
    """Gather an object from every data-parallel rank, in order of rank, on all of them."""
    if world.data_size == 1:
        return [value]
    values: list[Any] = [None] * world.data_size
    dist.all_gather_object(values, value, group=world.data_group)
    return values


def from_first(make: Callable[[], T], world: World) -> T:
    """Call `make` on the first process and return its result on every process."""
    if world.size == 1:
        return make()
    box: list[Any] = [make() if world.first else None]
    dist.broadcast_object_list(box, src=0, device=world.device)
    value: T = box[0]
    return value


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Gather every parameter completely on the CPU of every rank."""
    from torch.distributed.tensor import DTensor

    whole = {}
    for name, tensor in model.state_dict().items():
        value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        whole[name] = value.detach().cpu()
    return whole
