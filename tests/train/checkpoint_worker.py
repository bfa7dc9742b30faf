"""Run as two processes in test_checkpoint.py: loads one process's checkpoint into FSDP2 shards and saves it changed."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.fsdp import fully_shard

from puna.core.errors import PunaError
from puna.train.recipe import CheckpointConfig
from puna.train.run.checkpoint import Checkpointer

FINGERPRINT = {"corpus": "abc"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))  # 5 and 3 rows: shards of different sizes


def state_of(module: nn.Module) -> dict[str, Any]:
    model = dict(module.state_dict())
    momenta = {name: {"momentum": torch.zeros_like(tensor)} for name, tensor in model.items()}
    return {"model": model, "optimizer": momenta, "guard": {"ring": torch.zeros(4), "accepted": torch.tensor(0)}}


def main(run_dir: Path) -> None:
    dist.init_process_group("gloo")
    module = network()
    for layer in module:
        fully_shard(layer)
    state = state_of(module)
    model, momenta, guard = state["model"], state["optimizer"], state["guard"]
    tensors = [*model.values(), *(entry["momentum"] for entry in momenta.values())]
    with torch.no_grad():
        for tensor in tensors:
            tensor.zero_()
        keeper = Checkpointer(run_dir, CheckpointConfig(keep=5), FINGERPRINT)
        assert keeper.load(state) == {"step": 1, "tokens": 10}
        for tensor in tensors:
            tensor.mul_(2)
        guard["accepted"].add_(1)
        keeper.save(2, state, {"tokens": 20}, wait=False)
        for tensor in tensors:  # training continues while it is written
            tensor.zero_()
        keeper.wait()

    if dist.get_rank() == 1:  # one process has a full disk, and both must report it
        dcp.filesystem._write_item = full
    said = ""
    keeper.save(3, state, {}, wait=False)
    try:
        keeper.wait()
    except PunaError as error:
        said = str(error)
    assert "No space left" in said, said
    assert keeper.steps() == [1, 2]
    keeper.close()
    dist.barrier()  # keep the group until all processes have finished communicating
    dist.destroy_process_group()


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
