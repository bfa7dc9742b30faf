"""The decode step at fixed shapes and addresses: padded to a few batch sizes, and on CUDA captured and replayed.

A small model's decode step is hundreds of short kernels, and asking for them one by one takes longer than running them.
A CUDA graph asks once. It repeats the same kernels on the same addresses, so all that differs between two steps lies in
one tensor: ids, positions, slots and block tables, filled up with rows that read and write the pool's spare page. Each
size is captured when it first comes up, after a warm-up; one that cannot be is computed as any other step.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from puna.engine.attention import PagedAttention, bucket
from puna.engine.faults import let_go
from puna.engine.pages import PagePool
from puna.engine.transfer import to_device
from puna.model.llama import LlamaForCausalLM

log = logging.getLogger(__name__)
_ID, _POSITION, _SLOT, _TABLE = range(4)  # rows of a step's numbers; the block table's are the last


class DecodeSteps:
    """Decode steps of a model over a pool, one for each size. capture: as CUDA graphs, otherwise only padded."""

    def __init__(self, model: LlamaForCausalLM, pool: PagePool, *, capture: bool) -> None:
        self.model, self.pool, self.capture = model, pool, capture
        self.failed: dict[int, str] = {}
        """Sizes that could not be captured, and why."""
        self._steps: dict[int, _Step] = {}

    def hidden(
        self, ids: Sequence[int] | Tensor, positions: Sequence[int], block_tables: Sequence[Sequence[int]]
    ) -> Tensor | None:
        """Compute one token of each sequence into its pages; None where that size cannot be captured.

        ids: (sequences,), perhaps on the device already. Returns hidden states after the last norm, (sequences,
        hidden_size), which the next call may write over.
        """
        size = bucket(len(positions))
        if size in self.failed:
            return None
        step = self._steps.get(size)
        if step is None:
            try:
                step = self._steps[size] = _Step(self, size)
            except Exception as error:  # whatever it is, there is another way
                let_go(error)
                self.failed[size] = (str(error).strip().splitlines() or [type(error).__name__])[0]
                log.warning("Decode steps of %d texts could not be captured: %s", size, self.failed[size])
                return None
        return step.run(ids, positions, block_tables)

    @property
    def sizes(self) -> list[int]:
        """Those that came up and are captured, or padded."""
        return sorted(self._steps)

    @property
    def memory(self) -> Any:
        """The memory that all graphs share: they never run at the same time."""
        return next((step.graph.pool() for step in self._steps.values() if step.graph is not None), None)


class _Step:
    """The step for up to `size` sequences."""

    def __init__(self, steps: DecodeSteps, size: int) -> None:
        self.model, self.pool, self.size = steps.model, steps.pool, size
        self.width = min(self.pool.pages_for(self.model.config.max_position_embeddings), self.pool.pages)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.numbers = to_device(self._idle(), self.pool.store.device)
        if steps.capture:
            with torch.cuda.device(self.numbers.device):
                self._capture(steps.memory)

    def run(
        self, ids: Sequence[int] | Tensor, positions: Sequence[int], block_tables: Sequence[Sequence[int]]
    ) -> Tensor:
        count, size, host = len(positions), self.pool.page_size, self._idle()
        if not isinstance(ids, Tensor):
            host[_ID, :count] = ids
        host[_POSITION, :count] = positions
        for row, (position, table) in enumerate(zip(positions, block_tables, strict=True)):
            host[_SLOT, row] = table[position // size] * size + position % size
            host[_TABLE : _TABLE + len(table), row] = table
        self.numbers.copy_(to_device(host, self.numbers.device))
        if isinstance(ids, Tensor):
            self.numbers[_ID, :count] = ids
        if self.graph is None:
            return self._forward()[:count]
        self.graph.replay()
        return self.hidden[:count]

    def _idle(self) -> np.ndarray:
        """The numbers of a step whose rows all read and write the spare page, int64 (3 + width, size)."""
        host = np.full((_TABLE + self.width, self.size), self.pool.spare, dtype=np.int64)
        host[:_TABLE] = [[0], [0], [self.pool.spare * self.pool.page_size]]
        return host

    def _forward(self) -> Tensor:
        ids, positions, slots = self.numbers[:_TABLE]
        cache = PagedAttention.decode(self.pool, slots, self.numbers[_TABLE:].T, positions + 1)
        return self.model(ids[None], positions=positions[None], cache=cache, head=lambda hidden, _: hidden[0])

    def _capture(self, memory: Any) -> None:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # whatever is compiled, loaded or allocated at a first time
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            self.hidden = self._forward()
        self.graph = graph
