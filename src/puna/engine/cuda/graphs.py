"""CUDA graphs of the decode step: padded to a few batch sizes, captured once and replayed.

A small model's decode step is hundreds of short kernels, and launching them one by one takes longer than running them.
A CUDA graph launches them at once. It repeats the same kernels on the same addresses, so everything that differs
between two steps is in one tensor: ids, positions, slots and block tables, padded with rows that read and write the
pool's null block. Each size is captured when it is first needed, after a warm-up; a size that cannot be captured is
computed like any other step. Without CUDA, steps are only padded.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from puna.engine.attention import PagedAttention, bucket
from puna.engine.core.errors import release_frames
from puna.engine.core.kv_cache import BlockPool
from puna.engine.device_copy import to_device
from puna.model.llama import LlamaForCausalLM

log = logging.getLogger(__name__)
_ID, _POSITION, _SLOT, _TABLE = range(4)  # rows of the input tensor; those of the block tables come last


class DecodeGraphs:
    """The decode steps of a model over a pool, one for each size. capture: as CUDA graphs, otherwise only padded."""

    def __init__(self, model: LlamaForCausalLM, pool: BlockPool, *, capture: bool) -> None:
        self.model, self.pool, self.capture = model, pool, capture
        self.failed: dict[int, str] = {}
        """Sizes that could not be captured, and why."""
        self._graphs: dict[int, _Graph] = {}

    def hidden(
        self, ids: Sequence[int] | Tensor, positions: Sequence[int], block_tables: Sequence[Sequence[int]]
    ) -> Tensor | None:
        """Compute one token of each sequence into its blocks; None if that size cannot be captured.

        ids: (sequences,), perhaps on the device already. Returns hidden states after the last norm, (sequences,
        hidden_size), which the next call may overwrite.
        """
        size = bucket(len(positions))
        if size in self.failed:
            return None
        graph = self._graphs.get(size)
        if graph is None:
            try:
                graph = self._graphs[size] = _Graph(self, size)
            except Exception as error:  # whatever it is, the step can be computed without a graph
                release_frames(error)
                self.failed[size] = (str(error).strip().splitlines() or [type(error).__name__])[0]
                log.warning("Decode steps of %d sequences could not be captured: %s", size, self.failed[size])
                return None
        return graph.run(ids, positions, block_tables)

    @property
    def sizes(self) -> list[int]:
        """The sizes captured, or padded, so far."""
        return sorted(self._graphs)

    @property
    def memory(self) -> Any:
        """The memory pool that all graphs share: they never run at the same time."""
        return next((one.graph.pool() for one in self._graphs.values() if one.graph is not None), None)


class _Graph:
    """The step for up to `size` sequences."""

    def __init__(self, graphs: DecodeGraphs, size: int) -> None:
        self.model, self.pool, self.size = graphs.model, graphs.pool, size
        self.width = min(self.pool.blocks_for(self.model.config.max_position_embeddings), self.pool.num_blocks)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs = to_device(self._padding(), self.pool.store.device)
        if graphs.capture:
            with torch.cuda.device(self.inputs.device):
                self._capture(graphs.memory)

    def run(
        self, ids: Sequence[int] | Tensor, positions: Sequence[int], block_tables: Sequence[Sequence[int]]
    ) -> Tensor:
        count, size, host = len(positions), self.pool.block_size, self._padding()
        if not isinstance(ids, Tensor):
            host[_ID, :count] = ids
        host[_POSITION, :count] = positions
        for row, (position, table) in enumerate(zip(positions, block_tables, strict=True)):
            host[_SLOT, row] = table[position // size] * size + position % size
            host[_TABLE : _TABLE + len(table), row] = table
        self.inputs.copy_(to_device(host, self.inputs.device))
        if isinstance(ids, Tensor):
            self.inputs[_ID, :count] = ids
        if self.graph is None:
            return self._forward()[:count]
        self.graph.replay()
        return self.hidden[:count]

    def _padding(self) -> np.ndarray:
        """The inputs of a step whose rows all read and write the null block, int64 (3 + width, size)."""
        host = np.full((_TABLE + self.width, self.size), self.pool.null_block, dtype=np.int64)
        host[:_TABLE] = [[0], [0], [self.pool.null_block * self.pool.block_size]]
        return host

    def _forward(self) -> Tensor:
        ids, positions, slots = self.inputs[:_TABLE]
        cache = PagedAttention.decode(self.pool, slots, self.inputs[_TABLE:].T, positions + 1)
        return self.model(ids[None], positions=positions[None], cache=cache, head=lambda hidden, _: hidden[0])

    def _capture(self, memory: Any) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # whatever is compiled, loaded or allocated on first use
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            self.hidden = self._forward()
        self.graph = graph
