"""The fused model: the same network with its matrices merged and laid out for generation on a CPU.

`fuse` replaces a model's blocks in place. Query, key and value become one matrix, gate and up another; matrices are
stored as their kernels read them (`engine.cpu.weight_layouts`), in bfloat16 or quantized; rotations are looked up, not
computed. Results differ from the original model's only by rounding. `train` never sees this: `model.llama` remains the
network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.engine.cpu.panels import PanelMatrix
from puna.engine.cpu.weight_layouts import PackedMatrix, PlainMatrix, pack
from puna.model.llama import Block, Cache, DocumentMask, LlamaForCausalLM, RotaryEmbedding, attend, copy_whole

_MERGED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def fuse(model: LlamaForCausalLM, quantize: str | None = None) -> LlamaForCausalLM:
    """Replace the model's blocks one by one, so that little of it is ever in memory twice. Returns the model.

    The head is packed too; the embedding, which is looked up, stays as it is.

    quantize: None keeps the weights' precision; "int8" and "int4" store them so (see `engine.cpu.weight_layouts`).
    """
    network = model.model
    for i, block in enumerate(network.layers):
        network.layers[i] = FusedLayer(block, quantize)  # type: ignore[arg-type]
    model.packed_head = pack(model.head_weight.detach(), quantize)  # type: ignore[assignment]
    network.rotary = RotaryTable(network.rotary, model.config.max_position_embeddings)  # type: ignore[assignment]
    return model


def output_head(model: LlamaForCausalLM) -> PackedMatrix:
    """The matrix that turns hidden states into logits."""
    packed = getattr(model, "packed_head", None)
    return PlainMatrix(model.head_weight) if packed is None else packed


def packed_matrices(model: LlamaForCausalLM) -> list[PackedMatrix]:
    """All matrices of a fused model; empty for any other."""
    fused = [layer for layer in model.model.layers if isinstance(layer, FusedLayer)]
    found = [matrix for layer in fused for matrix in layer.matrices.values()]
    return [*found, output_head(model)] if found else []


def weight_shapes(model: LlamaForCausalLM) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight as in a model directory, whether or not the model was fused."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for i, layer in enumerate(model.model.layers):
        if isinstance(layer, FusedLayer):
            shapes.update({f"model.layers.{i}.{name}.weight": shape for name, shape in layer.shapes.items()})
    return shapes


@torch.no_grad()
def assign_weight(model: LlamaForCausalLM, name: str, weight: Tensor) -> None:
    """Copy a weight, by its name in a model directory and in its shape, into the model."""
    parts = name.split(".")
    layer = model.model.layers[int(parts[2])] if parts[1] == "layers" else None
    if isinstance(layer, FusedLayer):
        layer.assign(".".join(parts[3:-1]), weight)
        return
    parameter = model.get_parameter(name)
    copy_whole(weight, parameter)
    if parameter is model.head_weight and hasattr(model, "packed_head"):
        output_head(model).assign(0, weight)


class RotaryTable(nn.Module):
    """Positions -> the rotation of each pair as a complex number, (..., 1, head_dim / 2) complex64, from a table."""

    def __init__(self, rotary: RotaryEmbedding, positions: int) -> None:
        super().__init__()
        cos, sin = rotary(torch.arange(positions))
        self.table = torch.complex(cos, sin)  # (positions, 1, head_dim / 2)

    def forward(self, positions: Tensor) -> Tensor:
        return self.table[positions]


class FusedLayer(nn.Module):
    """One layer with four products instead of seven; takes `RotaryTable` where `model.llama.Block` takes cos and sin.

    The two elements of each rotated pair are adjacent: the rows of query and key are permuted alike, which changes no
    score. The keys in the cache are therefore permuted too.
    """

    def __init__(self, block: Block, quantize: str | None) -> None:
        super().__init__()
        attention = block.self_attn
        self.layer, self.head_dim = attention.layer, attention.head_dim
        self.heads, self.kv_heads = (
            len(projection.weight) // self.head_dim for projection in (attention.q_proj, attention.k_proj)
        )
        weights = {name.removesuffix(".weight"): p.detach() for name, p in block.named_parameters()}
        self.shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        """Shapes of the weights it was made of, by their names within a layer of a model directory."""
        self.eps = block.input_layernorm.eps
        self.dtype = attention.q_proj.weight.dtype
        norms = ("input_layernorm", "post_attention_layernorm")
        self.norms = {name: weights[name].float().repeat(2) for name in norms}  # see `_normed`
        self.matrices: dict[str, PackedMatrix] = {
            merged: pack(torch.cat([self._permuted(name, weights[name]) for name in names]), quantize)
            for merged, names in _MERGED.items()
        }

    def forward(
        self, x: Tensor, rotations: Tensor, mask: DocumentMask | None = None, cache: Cache | None = None
    ) -> Tensor:
        """x and the result: (batch, tokens, hidden)."""
        matrices = self.matrices
        qkv = matrices["qkv"](self._normed(x, "input_layernorm")).unflatten(-1, (-1, self.head_dim))
        rotating = self.heads + self.kv_heads
        pairs = torch.view_as_complex(qkv[:, :, :rotating].float().unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs * rotations).flatten(-2).to(x.dtype)
        query, key, value = rotated[:, :, : self.heads], rotated[:, :, self.heads :], qkv[:, :, rotating:]
        attended = cache.attend(self.layer, query, key, value) if cache is not None else attend(query, key, value, mask)
        x = x + matrices["out"](attended.flatten(-2))
        gate, up = matrices["gate_up"](self._normed(x, "post_attention_layernorm")).chunk(2, -1)
        return x + matrices["down"](F.silu(gate) * up)

    @property
    def in_panels(self) -> bool:
        """Whether the native step can read all its matrices."""
        return all(isinstance(matrix, PanelMatrix) for matrix in self.matrices.values())

    def _normed(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm in one kernel: layer norm of x and -x, whose mean is 0 and whose variance is the mean square of x.

        Takes half the time of the nine operations for a single token (torch 2.13, CPU, November 2026).
        """
        both = F.layer_norm(torch.cat((x, -x), -1), (2 * x.shape[-1],), self.norms[name], eps=self.eps)
        return both[..., : x.shape[-1]].contiguous()

    def assign(self, name: str, weight: Tensor) -> None:
        """Replace one of the weights it was made of."""
        if name in self.norms:
            self.norms[name].copy_(weight.to(self.dtype).repeat(2))
            return
        merged = next(merged for merged, names in _MERGED.items() if name in names)
        before = _MERGED[merged][: _MERGED[merged].index(name)]
        self.matrices[merged].assign(sum(self.shapes[other][0] for other in before), self._permuted(name, weight))

    def _permuted(self, name: str, weight: Tensor) -> Tensor:
        """Query's and key's rows with each rotated pair adjacent; other matrices unchanged."""
        if name not in _MERGED["qkv"][:2]:
            return weight
        halves = weight.unflatten(0, (-1, 2, self.head_dim // 2))  # (heads, halves, pairs, hidden)
        return halves.transpose(1, 2).reshape(weight.shape)
