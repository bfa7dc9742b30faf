"""The weights of a spread network for one process to write, a tensor at a time.

No process ever holds the whole model: the first one asks for a tensor by name when it is about to write it, all gather
that one, and it is forgotten. So writing takes the memory of what is written at once, whatever the layout.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from puna.model.tensor_file import Pending
from puna.train.parallel.mesh import World


@dataclass(frozen=True)
class _Where:
    """Where a tensor is: its stage, shape and precision."""

    stage: int
    shape: torch.Size
    dtype: torch.dtype


class _Exchange:
    """What all processes do together for each tensor that the first one asks for."""

    def __init__(self, model: nn.Module, world: World) -> None:
        self.state, self.world = model.state_dict(), world
        own = {name: _Where(world.stage, value.shape, value.dtype) for name, value in self.state.items()}
        found: list[Any] = [own]
        if world.stage_group is not None:
            found = [None] * dist.get_world_size(world.stage_group)
            dist.all_gather_object(found, own, group=world.stage_group)
        self.where: dict[str, _Where] = {name: place for stage in reversed(found) for name, place in stage.items()}

    def ask(self, name: str) -> Tensor:
        """On the first process: a tensor, whole, on the CPU."""
        self._tell(name)
        value = self.gather(name)
        assert value is not None
        return value

    def answer(self) -> None:
        """On the others: help with each tensor until the first process is done."""
        while name := self._tell(None):
            self.gather(name)

    def _tell(self, name: str | None) -> str | None:
        box = [name]
        if self.world.size > 1:
            dist.broadcast_object_list(box, src=0, device=self.world.device)
        return box[0]

    def gather(self, name: str) -> Tensor | None:
        """One tensor, whole on the first process."""
        world, place = self.world, self.where[name]
        value: Tensor | None = None
        if world.stage == place.stage:
            held = self.state[name].detach()
            value = held.full_tensor() if isinstance(held, DTensor) else held
        if place.stage and world.stage_group is not None:
            # The processes beside the first one in its pipeline pass it on; in others nobody asked.
            beside = dist.get_process_group_ranks(world.stage_group)[0] == 0
            if beside and value is not None:
                dist.send(value.contiguous(), group=world.stage_group, group_dst=0)
            if world.first:
                value = torch.empty(place.shape, dtype=place.dtype, device=world.device)
                dist.recv(value, group=world.stage_group, group_src=place.stage)
        return value.cpu() if world.first and value is not None else None


@contextlib.contextmanager
def pending_weights(model: nn.Module, world: World) -> Iterator[Mapping[str, Pending]]:
    """Every tensor of a network by name: on the first process to be asked for within the block, elsewhere none.

    Every process must enter it, and leaves it when the first one does.
    """
    exchange = _Exchange(model, world)
    if not world.first:
        exchange.answer()
        yield {}
        return
    try:
        yield {
            name: Pending(place.shape, lambda name=name: exchange.ask(name))  # type: ignore[misc]
            for name, place in exchange.where.items()
        }
    finally:
        exchange._tell(None)


def first_state(model: nn.Module, world: World) -> dict[str, Tensor]:
    """Every tensor, whole on the CPU of the first process; nothing on the others, which take part."""
    with pending_weights(model, world) as weights:
        return {name: pending.whole() for name, pending in weights.items()}
