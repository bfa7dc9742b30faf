"""The same network, laid out for generation on a CPU: what belongs together is multiplied in one product.

`fuse` replaces a model's blocks in place. Query, key and value become one matrix, gate and up another; matrices lie in
memory as their kernel wants them (`engine.packed`), bfloat16 or quantized; angles are looked up, not computed. Numbers
differ from the model's own only by rounding. `train` never sees this: `model.llama` stays the network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.engine.packed import Pack, Plain, packed
from puna.engine.panels import Panels
from puna.model.llama import Block, Cache, DocumentMask, LlamaForCausalLM, RotaryEmbedding, attend, copy_whole

_PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def fuse(model: LlamaForCausalLM, quantize: str | None = None) -> LlamaForCausalLM:
    """Replace the model's blocks, one by one, so that at no time much of it is there twice. Returns the model.

    The head is packed too; the embedding, which is looked up, stays as it is.

    quantize: None keeps the weights' precision, "int8" and "int4" store them so (see `engine.packed`).
    """
    network = model.model
    for i, block in enumerate(network.layers):
        network.layers[i] = FusedBlock(block, quantize)  # type: ignore[arg-type]
    model.packed_head = packed(model.head_weight.detach(), quantize)  # type: ignore[assignment]
    network.rotary = Angles(network.rotary, model.config.max_position_embeddings)  # type: ignore[assignment]
    return model


def head(model: LlamaForCausalLM) -> Pack:
    """What turns hidden states into logits."""
    found = getattr(model, "packed_head", None)
    return Plain(model.head_weight) if found is None else found


def packs(model: LlamaForCausalLM) -> list[Pack]:
    """All matrices of a fused model; empty for another."""
    found = [pack for block in model.model.layers if isinstance(block, FusedBlock) for pack in block.parts.values()]
    return [*found, head(model)] if found else []


def weight_shapes(model: LlamaForCausalLM) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight as a model directory has it, whether the model was fused or not."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for i, block in enumerate(model.model.layers):
        if isinstance(block, FusedBlock):
            shapes.update({f"model.layers.{i}.{name}.weight": shape for name, shape in block.shapes.items()})
    return shapes


@torch.no_grad()
def assign(model: LlamaForCausalLM, name: str, weight: Tensor) -> None:
    """Put a weight of one of these names and of its shape into the model, in place."""
    parts = name.split(".")
    block = model.model.layers[int(parts[2])] if parts[1] == "layers" else None
    if isinstance(block, FusedBlock):
        block.assign(".".join(parts[3:-1]), weight)
        return
    parameter = model.get_parameter(name)
    copy_whole(weight, parameter)
    if parameter is model.head_weight and hasattr(model, "packed_head"):
        head(model).assign(0, weight)


class Angles(nn.Module):
    """Positions -> the rotation of each pair as a complex number, (..., 1, head_dim / 2) complex64, from a table."""

    def __init__(self, rotary: RotaryEmbedding, positions: int) -> None:
        super().__init__()
        cos, sin = rotary(torch.arange(positions))
        self.table = torch.complex(cos, sin)  # (positions, 1, head_dim / 2)

    def forward(self, positions: Tensor) -> Tensor:
        return self.table[positions]


class FusedBlock(nn.Module):
    """One layer with four products instead of seven; takes `Angles` where `model.llama.Block` takes cos and sin.

    The pairs that are rotated together lie side by side: the rows of query and key are permuted alike, which changes
    no score. So the keys in the cache are permuted too.
    """

    def __init__(self, block: Block, quantize: str | None) -> None:
        super().__init__()
        attention = block.self_attn
        self.layer, self.head_dim = attention.layer, attention.head_dim
        self.heads, self.kv_heads = (
            len(projection.weight) // self.head_dim for projection in (attention.q_proj, attention.k_proj)
        )
        matrices = {name.removesuffix(".weight"): p.detach() for name, p in block.named_parameters()}
        self.shapes = {name: tuple(matrix.shape) for name, matrix in matrices.items()}
        """Of the weights it was made of, as a model directory names them within a layer."""
        self.eps = block.input_layernorm.eps
        self.dtype = attention.q_proj.weight.dtype
        names = ("input_layernorm", "post_attention_layernorm")
        self.norms = {name: matrices[name].float().repeat(2) for name in names}  # see `_normed`
        self.parts: dict[str, Pack] = {
            part: packed(torch.cat([self._arranged(name, matrices[name]) for name in names]), quantize)
            for part, names in _PARTS.items()
        }

    def forward(
        self, x: Tensor, angles: Tensor, mask: DocumentMask | None = None, cache: Cache | None = None
    ) -> Tensor:
        """x, as the result: (batch, tokens, hidden)."""
        parts = self.parts
        qkv = parts["qkv"](self._normed(x, "input_layernorm")).unflatten(-1, (-1, self.head_dim))
        turning = self.heads + self.kv_heads
        pairs = torch.view_as_complex(qkv[:, :, :turning].float().unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * angles).flatten(-2).to(x.dtype)
        query, key, value = turned[:, :, : self.heads], turned[:, :, self.heads :], qkv[:, :, turning:]
        seen = cache.attend(self.layer, query, key, value) if cache is not None else attend(query, key, value, mask)
        x = x + parts["out"](seen.flatten(-2))
        gate, up = parts["gate_up"](self._normed(x, "post_attention_layernorm")).chunk(2, -1)
        return x + parts["down"](F.silu(gate) * up)

    @property
    def in_panels(self) -> bool:
        """Whether the kernels can read it whole."""
        return all(isinstance(part, Panels) for part in self.parts.values())

    def _normed(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm in one kernel: layer norm of x and -x, whose mean is 0 and whose variance is the mean square of x.

        Half the time of its nine steps for a single token (torch 2.13, CPU, November 2026).
        """
        both = F.layer_norm(torch.cat((x, -x), -1), (2 * x.shape[-1],), self.norms[name], eps=self.eps)
        return both[..., : x.shape[-1]].contiguous()

    def assign(self, name: str, weight: Tensor) -> None:
        """Replace one of the weights it was made of."""
        if name in self.norms:
            self.norms[name].copy_(weight.to(self.dtype).repeat(2))
            return
        part = next(part for part, names in _PARTS.items() if name in names)
        before = _PARTS[part][: _PARTS[part].index(name)]
        self.parts[part].assign(sum(self.shapes[other][0] for other in before), self._arranged(name, weight))

    def _arranged(self, name: str, weight: Tensor) -> Tensor:
        """Query's and key's rows with the two of each rotated pair side by side; other matrices as they are."""
        if name not in _PARTS["qkv"][:2]:
            return weight
        halves = weight.unflatten(0, (-1, 2, self.head_dim // 2))  # (heads, halves, pairs, hidden)
        return halves.transpose(1, 2).reshape(weight.shape)
