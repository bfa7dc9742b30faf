"""Data parallelism: replicas (DDP), shards (FSDP2, HSDP), shares of a batch, and sums."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
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
    where = mesh["dp_replicate", "dp_shard"] if layout.dp_replicate > 1 else mesh["dp_shard"]
    shard_part(model, list(model.model.layers), where, precision)


def shard_part(
    root: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, precision: str, *, once: bool = False
) -> None:
    """Shard a network, or a stage of it with these blocks, in place.

    once: weights stay gathered through a whole step, as a pipeline's micro-batches want. A mesh of one process shards
    too: where matrices are split, it is FSDP that adds up the gradients of norms, which each rank has a part of.
    """
    # Inputs stay as they are: the tables of rotary positions must not become bf16.
    mixed = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "mixed":
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        # The last block's weights are needed again at once by the backward pass: keep them.
        fully_shard(block, mesh=mesh, mp_policy=mixed, reshard_after_forward=not once and block is not blocks[-1])
    fully_shard(root, mesh=mesh, mp_policy=mixed, reshard_after_forward=False if once else None)
    for module in root.modules():
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
    """The sum of a device tensor over the data-parallel ranks, in place, without asking the host."""
    if world.summed_over > 1:
        dist.all_reduce(value, group=world.data_group)
    return value


def sum_over_data_and_stages(value: Tensor, world: World) -> Tensor:
    """`sum_over_ranks` of what the last stage of a pipeline has and the others have as zero, on all of them."""
    sum_over_ranks(value, world)
    if world.stage_group is not None:
        dist.all_reduce(value, group=world.stage_group)
    return value


def max_over_ranks(value: Tensor, world: World) -> Tensor:
    """The largest of the data-parallel ranks' values, in place."""
    if world.summed_over > 1:
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=world.data_group)
    return value


def gather_over_ranks(value: T, world: World) -> list[T]:
    """Every data-parallel rank's object, in order of rank, on each of them.

    Of the ranks that split matrices, which each made the same object, the first one's counts.
    """
    values: list[Any] = [value]
    if world.summed_over > 1:
        values = [None] * world.summed_over
        dist.all_gather_object(values, value, group=world.data_group)
    if world.tensor_mesh is not None:
        dist.broadcast_object_list(values, group=world.tensor_mesh.get_group(), group_src=0, device=world.device)
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
