"""A network put onto the processes of a layout: stages, then split matrices, then shards.

The order matters. Stages are cut while parameters have no memory; matrices are split next, so that FSDP shards what is
left of each; recomputation and compilation have wrapped the blocks before (`compute`).
"""

import torch
from torch import nn

from puna.core.errors import PunaError
from puna.model.llama import LlamaForCausalLM
from puna.train.parallel.data import shard_part
from puna.train.parallel.mesh import World
from puna.train.parallel.pipeline import Pipeline
from puna.train.parallel.tensor import call_with_whole_head, split_matrices
from puna.train.recipe import ComputeConfig

# Pipelining with shapes given beforehand, and shards of split matrices, as they are used here.
_TORCH = (2, 13)


def spread(model: LlamaForCausalLM, world: World, precision: str) -> nn.Module:
    """Spread a network with parameters on meta, in place. Returns what the training step calls."""
    layout = world.layout
    assert layout is not None
    pipeline = Pipeline(model, world, mixed=precision == "mixed") if layout.pp > 1 else None
    if world.tensor_mesh is not None:
        split_matrices(model, world.tensor_mesh)
    if pipeline is None:
        shard_part(model, list(model.model.layers), world.shard_mesh, precision)
        if layout.tp > 1:
            call_with_whole_head(model, layout.tp)
        return model
    for stage in pipeline.make_stages():
        shard_part(stage, list(stage.blocks), world.shard_mesh, precision, once=True)
    return pipeline


def check_possible(world: World, train: ComputeConfig) -> None:
    """Raise PunaError for what cannot be combined with the layout's tp, cp or pp, by name."""
    layout = world.layout
    if layout is None or not layout.model_parallel:
        return
    installed = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if installed < _TORCH:
        raise PunaError(
            f"layout.tp, cp and pp above 1 need torch 2.13; this is {torch.__version__}.",
            "Install it, or use dp_shard and dp_replicate.",
        )
    if layout.tp > 1 and train.fp8:
        raise PunaError("train.fp8 = true does not go with layout.tp above 1.", "Set one of them back.")
    if layout.tp > 1 and train.compile == "on":
        raise PunaError(
            "train.compile = 'on' does not go with layout.tp above 1: torch 2.13 fails to compile split blocks.",
            "Use 'auto' or 'off'.",
        )
