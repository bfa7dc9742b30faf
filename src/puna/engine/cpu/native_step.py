"""The native step: a fused model computes a whole step in one kernel call, from token ids to logits.

It replaces the network's forward where it can: on a CPU with compiled kernels, blocks of 16 tokens, widths divisible by
16, and float32 or bfloat16. The KV blocks then store keys and values as panels, which only these kernels read.
"""

from array import array
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import cast

import torch
from torch import Tensor

from puna.engine.attention import QuerySpan
from puna.engine.core.kv_cache import BlockPool
from puna.engine.cpu.fused_model import FusedLayer, RotaryTable, output_head
from puna.engine.cpu.kernels import Kernels, LayerStruct, ModelStruct, StepStruct, kernels
from puna.engine.cpu.panels import PANEL, PanelMatrix
from puna.model.llama import LlamaForCausalLM, LlamaModel


class NativeStep:
    """Computes steps of a fused model into a pool. Weights are read in place, so updates take effect at once."""

    def __init__(self, model: LlamaForCausalLM, pool: BlockPool, vocabulary: int, library: Kernels) -> None:
        self.pool, self.vocabulary, self.kernels = pool, vocabulary, library
        pool.zero_on_allocate = False
        network, config, head = model.model, model.config, output_head(model)
        layers = [layer for layer in network.layers if isinstance(layer, FusedLayer)]
        rotary = cast(RotaryTable, network.rotary)
        assert isinstance(head, PanelMatrix)
        self._norm, self._norm_weight = network.norm.weight.detach(), network.norm.weight.detach().float().clone()
        structs = (LayerStruct * len(layers))(*(_layer(layer) for layer in layers))
        embedding = network.embed_tokens.weight.detach()
        self._alive = (layers, head, embedding, rotary.table)  # the kernels hold only pointers
        self.model = ModelStruct(
            len(layers),
            config.hidden_size,
            config.intermediate_size,
            layers[0].heads,
            layers[0].kv_heads,
            layers[0].head_dim,
            layers[0].eps,
            structs,
            self._norm_weight.data_ptr(),
            head.matrix(vocabulary),
            int(embedding.dtype == torch.bfloat16),
            embedding.data_ptr(),
            rotary.table.data_ptr(),
        )
        self._workspace = torch.empty(0, dtype=torch.uint8)

    def __call__(self, ids: Tensor, spans: Sequence[QuerySpan], rows: Sequence[int]) -> Tensor:
        """Compute the spans into their blocks; returns the logits (rows, vocabulary), float32, after some tokens.

        ids: (tokens,) int64, those of all spans end to end; rows: the tokens whose logits are needed, ascending.
        """
        ids = ids.to(torch.int64).contiguous()
        size = self.kernels.step_workspace(self.model, len(ids))
        if len(self._workspace) < size:
            self._workspace = torch.empty(size, dtype=torch.uint8)
        self._norm_weight.copy_(self._norm)
        logits = torch.empty(len(rows), -(-self.vocabulary // PANEL) * PANEL)
        arrays = [
            array("q", values)
            for values in (
                [span.start for span in spans],
                [span.count for span in spans],
                chain.from_iterable(span.block_table for span in spans),
                accumulate((len(span.block_table) for span in spans), initial=0),
                rows,
            )
        ]
        starts, counts, tables, table_starts, output_rows = (values.buffer_info()[0] for values in arrays)
        step = StepStruct(
            len(ids),
            ids.data_ptr(),
            len(spans),
            starts,
            counts,
            tables,
            table_starts,
            len(rows),
            output_rows,
            self.pool.num_blocks + 1,  # including the null block
            self.pool.store.data_ptr(),
            logits.data_ptr(),
            logits.shape[1],
            self._workspace.data_ptr(),
            torch.get_num_threads(),
        )
        self.kernels.step(self.model, step)
        return logits[:, : self.vocabulary]


def native_step(model: LlamaForCausalLM, pool: BlockPool, vocabulary: int) -> NativeStep | None:
    """The native step of this model and pool; None if they do not allow one."""
    library, network = kernels(), getattr(model, "model", None)
    if library is None or not isinstance(network, LlamaModel) or pool.block_size != PANEL:
        return None
    if not all(isinstance(layer, FusedLayer) and layer.in_panels for layer in network.layers):
        return None
    config = model.config
    if any(width % PANEL for width in (config.hidden_size, config.intermediate_size, config.head_dim)):
        return None
    return NativeStep(model, pool, vocabulary, library)


def _layer(layer: FusedLayer) -> LayerStruct:
    norms = (layer.norms[name].data_ptr() for name in ("input_layernorm", "post_attention_layernorm"))
    matrices = (cast(PanelMatrix, layer.matrices[name]).matrix() for name in ("qkv", "out", "gate_up", "down"))
    return LayerStruct(*norms, *matrices)
