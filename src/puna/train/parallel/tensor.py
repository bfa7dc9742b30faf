"""Tensor and sequence parallelism: each matrix split over the ranks of one node, activations between blocks too.

As in Megatron (arXiv 1909.08053, 2205.05198): the projections that enter attention and feed-forward are split by
columns of their result, those that leave them by columns of their input, and what is between blocks is split along the
sequence. A block gathers its input twice and reduces its output twice. Embedding and head are split by the vocabulary.
torch's own styles do it, applied from outside; `llama.py` computes with whatever part of a matrix it finds.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from puna.model.llama import DocumentMask, LlamaForCausalLM

Head = Callable[[Tensor, Tensor], Any]


def split_matrices(model: LlamaForCausalLM, mesh: DeviceMesh) -> None:
    """Split the weights of a network, or of what a pipeline's stages left of it, in place."""
    sequence = Shard(1)
    plan: dict[str, ParallelStyle] = {
        "model.norm": SequenceParallel(),
        "model.layers.*.input_layernorm": SequenceParallel(),
        "model.layers.*.post_attention_layernorm": SequenceParallel(),
        "model.layers.*.self_attn": PrepareModuleInput(
            input_layouts=(sequence, None, None, None), desired_input_layouts=(Replicate(), None, None, None)
        ),
        "model.layers.*.self_attn.o_proj": RowwiseParallel(output_layouts=sequence),
        "model.layers.*.mlp": PrepareModuleInput(input_layouts=(sequence,), desired_input_layouts=(Replicate(),)),
        "model.layers.*.mlp.down_proj": RowwiseParallel(output_layouts=sequence),
    }
    plan |= {f"model.layers.*.self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
    plan |= {f"model.layers.*.mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")}
    held = {name.split(".layers.")[0] for name, _ in model.named_modules()}
    if "model.embed_tokens" in held:
        plan["model.embed_tokens"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=sequence)
    if "model.norm" not in held:
        del plan["model.norm"]
    parallelize_module(model, mesh, plan)
    if "lm_head" in held:
        weight = model.lm_head.weight
        # A reward head has a single row.
        placed: Placement = Shard(0) if weight.shape[0] >= mesh.size() else Replicate()
        split = distribute_tensor(weight.detach(), mesh, [placed], src_data_rank=None)
        model.lm_head.weight = nn.Parameter(split, requires_grad=weight.requires_grad)


class WholeHead:
    """A head on a network whose matrices are split: it gets all positions, and the weight whole or its own rows.

    Each rank computes a generic head with everything, so its gradients are whole too and every rank keeps its part.
    A head that says `splits_vocabulary` gets the rows of this rank, and its gradients are summed over ranks.
    """

    def __init__(self, head: Head, length: int) -> None:
        self.head, self.length = head, length

    def __call__(self, hidden: Tensor, weight: Tensor) -> Any:
        assert isinstance(hidden, DTensor)
        assert isinstance(weight, DTensor)
        splits = getattr(self.head, "splits_vocabulary", False)
        side: Placement = Partial() if splits else Replicate()
        whole = hidden.redistribute(placements=[Replicate()]).to_local(grad_placements=[side])
        if not splits:
            weight = weight.redistribute(placements=[Replicate()]).to_local(grad_placements=[Replicate()])
        return self.head(whole[:, : self.length], weight)


def fill_rows(
    ids: Tensor, positions: Tensor | None, mask: DocumentMask | None, multiple: int
) -> tuple[Tensor, Tensor | None, DocumentMask | None]:
    """Rows made longer, with places that nobody sees, until their length can be split: a multiple of so many."""
    seq = ids.shape[1]
    missing = -seq % multiple
    if not missing:
        return ids, positions, mask
    if mask is not None and mask.cu_seqlens is not None:
        # The new places join the last document of their row: they come after all of it.
        starts = mask.cu_seqlens + mask.cu_seqlens // seq * missing
        mask = DocumentMask(None, starts, seq + missing)
    elif mask is not None and mask.dense is not None:
        dense = F.pad(mask.dense, (0, missing, 0, missing))
        dense.diagonal(dim1=-2, dim2=-1)[..., -missing:] = True  # a place sees itself, or its softmax is not a number
        mask = DocumentMask(dense, None, seq + missing)
    positions = None if positions is None else F.pad(positions, (0, missing))
    return F.pad(ids, (0, missing)), positions, mask


def call_with_whole_head(model: LlamaForCausalLM, ways: int) -> None:
    """Let `model(ids, head=...)` be called as if its matrices were whole, in place."""

    def prepare(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        length = args[0].shape[1]
        ids, positions, mask = fill_rows(args[0], kwargs.get("positions"), kwargs.get("mask"), ways)
        head = WholeHead(kwargs.get("head", F.linear), length)
        return (ids, *args[1:]), {**kwargs, "positions": positions, "mask": mask, "head": head}

    model.register_forward_pre_hook(prepare, with_kwargs=True)
