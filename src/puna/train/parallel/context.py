"""Context parallelism as Llama 3 did it (arXiv 2407.21783, section 3.3.2): each sequence split over ranks.

A rank has two chunks of every row, one from its beginning and one as far from its end, so that causal attention costs
all ranks the same. In each block keys and values of all ranks are gathered, which are few beside the queries, and a
query sees those of its own document up to its own position. It comes in through `llama.Cache`: for a block this is one
more kind of what its new keys join.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_tensor_autograd

from puna.model.llama import attend
from puna.train.parallel.mesh import World


def chunk_order(seq_len: int, ranks: int) -> Tensor:
    """(ranks, seq_len / ranks): which positions of a row each rank has: chunks r and 2 * ranks - 1 - r."""
    chunks = torch.arange(seq_len).view(2 * ranks, -1)
    return torch.cat((chunks[:ranks], chunks[ranks:].flip(0)), dim=1)


class ContextShare:
    """What this process has of every row of `seq_len` tokens."""

    def __init__(self, world: World, seq_len: int) -> None:
        assert world.layout is not None
        assert world.context_group is not None
        self.group, self.device = world.context_group, world.device
        self.order = chunk_order(seq_len, world.layout.cp)
        self.positions = self.order[dist.get_rank(self.group)].to(world.device)  # (seq_len / ranks,)

    def cut(self, rows: Tensor) -> Tensor:
        """This process' columns of (rows, seq_len)."""
        return rows[:, self.positions]

    def keys(self, documents: Tensor | None) -> "ContextKeys":
        """What blocks attend to; documents: (rows, seq_len) on the CPU, ids of whole rows, or None."""
        return ContextKeys(self.group, self.order, documents, self.device)


class ContextKeys:
    """What a block attends to: keys and values of all ranks of a sequence (a `llama.Cache`).

    group: the ranks of a sequence. order: `chunk_order`. documents: (rows, seq_len), ids of whole rows, or None.
    """

    def __init__(self, group: dist.ProcessGroup, order: Tensor, documents: Tensor | None, device: torch.device) -> None:
        self.group = group
        mine, every = order[dist.get_rank(group)], order.flatten()  # as they will be gathered
        earlier = every[None, :] <= mine[:, None]
        if documents is None:
            visible = earlier[None, None]
        else:
            starts = torch.ones_like(documents, dtype=torch.bool)
            starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
            run = starts.cumsum(1)  # a document is a run of equal ids, as in `DocumentMask`
            visible = (run[:, mine, None] == run[:, None, every])[:, None] & earlier
        self.visible = visible.to(device, non_blocking=True)  # bool (rows or 1, 1, seq_len / ranks, seq_len)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `llama.Cache`. Gathering's backward pass sums over ranks what each one's queries asked for."""
        both = all_gather_tensor_autograd(torch.cat((key, value), dim=-1), gather_dim=1, group=self.group)
        key, value = both.chunk(2, dim=-1)
        return attend(query, key, value, visible=self.visible)
