"""A fused model as the kernels know it: one call computes a step, from token ids to logits.

Where it can be used (a CPU, compiled kernels, pages of 16 tokens, widths that 16 divides, float32 or bfloat16) it takes
the place of the network's forward, and pages hold keys and values as panels, which nothing else reads.
"""

from array import array
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import cast

import torch
from torch import Tensor

from puna.engine.attention import Span
from puna.engine.fused import Angles, FusedBlock, head
from puna.engine.kernels import Kernels, Layer, Model, Step, kernels
from puna.engine.pages import PagePool
from puna.engine.panels import PANEL, Panels
from puna.model.llama import LlamaForCausalLM, LlamaModel


class WholeStep:
    """Computes steps of a fused model into a pool. Weights are read where they lie, so new ones are seen at once."""

    def __init__(self, model: LlamaForCausalLM, pool: PagePool, vocabulary: int, made: Kernels) -> None:
        self.pool, self.vocabulary, self.kernels = pool, vocabulary, made
        pool.clears = False
        network, config, last = model.model, model.config, head(model)
        blocks = [block for block in network.layers if isinstance(block, FusedBlock)]
        rotary = cast(Angles, network.rotary)
        assert isinstance(last, Panels)
        self._norm, self._norm_weight = network.norm.weight.detach(), network.norm.weight.detach().float().clone()
        layers = (Layer * len(blocks))(*(_layer(block) for block in blocks))
        embedding = network.embed_tokens.weight.detach()
        self._alive = (blocks, last, embedding, rotary.table)
        self.model = Model(
            len(blocks),
            config.hidden_size,
            config.intermediate_size,
            blocks[0].heads,
            blocks[0].kv_heads,
            blocks[0].head_dim,
            blocks[0].eps,
            layers,
            self._norm_weight.data_ptr(),
            last.matrix(vocabulary),
            int(embedding.dtype == torch.bfloat16),
            embedding.data_ptr(),
            rotary.table.data_ptr(),
        )
        self._room = torch.empty(0, dtype=torch.uint8)

    def __call__(self, ids: Tensor, spans: Sequence[Span], rows: Sequence[int]) -> Tensor:
        """Compute the spans, laid end to end, into their pages; logits (rows, vocabulary) float32 after some tokens.

        ids: (tokens,) int64; rows: which of the tokens, ascending.
        """
        ids = ids.to(torch.int64).contiguous()
        size = self.kernels.step_room(self.model, len(ids))
        if len(self._room) < size:
            self._room = torch.empty(size, dtype=torch.uint8)
        self._norm_weight.copy_(self._norm)
        logits = torch.empty(len(rows), -(-self.vocabulary // PANEL) * PANEL)
        numbers = [
            array("q", values)
            for values in (
                [span.start for span in spans],
                [span.count for span in spans],
                chain.from_iterable(span.block_table for span in spans),
                accumulate((len(span.block_table) for span in spans), initial=0),
                rows,
            )
        ]
        start, count, table, begin, wanted = (values.buffer_info()[0] for values in numbers)
        step = Step(
            len(ids),
            ids.data_ptr(),
            len(spans),
            start,
            count,
            table,
            begin,
            len(rows),
            wanted,
            self.pool.pages + 1,  # with the spare one
            self.pool.store.data_ptr(),
            logits.data_ptr(),
            logits.shape[1],
            self._room.data_ptr(),
            torch.get_num_threads(),
        )
        self.kernels.step(self.model, step)
        return logits[:, : self.vocabulary]


def whole_step(model: LlamaForCausalLM, pool: PagePool, vocabulary: int) -> WholeStep | None:
    """For this model and pool; None where it cannot be used."""
    made, network = kernels(), getattr(model, "model", None)
    if made is None or not isinstance(network, LlamaModel) or pool.page_size != PANEL:
        return None
    if not all(isinstance(block, FusedBlock) and block.in_panels for block in network.layers):
        return None
    config = model.config
    if any(width % PANEL for width in (config.hidden_size, config.intermediate_size, config.head_dim)):
        return None
    return WholeStep(model, pool, vocabulary, made)


def _layer(block: FusedBlock) -> Layer:
    norms = (block.norms[name].data_ptr() for name in ("input_layernorm", "post_attention_layernorm"))
    matrices = (cast(Panels, block.parts[name]).matrix() for name in ("qkv", "out", "gate_up", "down"))
    return Layer(*norms, *matrices)
