"""The network: a dense Llama (2, 3, 3.1, 3.2) in one file.

Token ids are embedded, pass through pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU
feed-forward, are normed once more and multiplied with the head (arXiv 2302.13971, 2307.09288, 2407.21783). Parameter
names are those of transformers' LlamaForCausalLM, so published checkpoints load without conversion. Nothing here knows
about devices, sharding, compilation or recomputation: `train.parallel` applies those from outside, block by block.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.model.config import ModelConfig
from puna.model.torch_compat import has_varlen_attention


class Cache(Protocol):
    """Keys and values of earlier tokens, as stored by the engine."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the new tokens' keys and values and attend to each query's sequence up to itself.

        query and result: (batch, seq, heads, head_dim); key and value: (batch, seq, kv_heads, head_dim).
        """
        ...


@dataclass(frozen=True)
class DocumentMask:
    """Restricts attention to a token's own document, in the form that the device needs."""

    dense: Tensor | None  # bool (rows, 1, seq, seq), block-diagonal and causal
    cu_seqlens: Tensor | None  # int32 (documents + 1,), where documents start when all rows are concatenated
    max_seqlen: int  # tokens in a row, which no document exceeds; constant, so nothing recompiles

    @classmethod
    def build(cls, document_ids: Tensor, device: torch.device | str, *, dense: bool | None = None) -> "DocumentMask":
        """Create the mask of a batch. document_ids: (rows, seq), on the CPU to avoid a device sync.

        A document is a run of equal ids within one row. dense: None selects flash attention's variable-length form on
        CUDA (it supports only bf16 and fp16: pass True for fp32 there), and otherwise the dense form.
        """
        device = torch.device(device)
        rows, seq = document_ids.shape
        starts = torch.ones(rows, seq, dtype=torch.bool)
        starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        if dense or (dense is None and not (device.type == "cuda" and has_varlen_attention())):
            run = starts.cumsum(1)
            mask = (run[:, :, None] == run[:, None, :]).tril()[:, None]
            return cls(mask.to(device, non_blocking=True), None, seq)
        begin = starts.flatten().nonzero().flatten()
        # Pad with empty documents to a rounded number, so that a compiled block sees few different shapes.
        padded = 1 << (len(begin)).bit_length()
        cu_seqlens = torch.full((padded + 1,), rows * seq, dtype=torch.int32)
        cu_seqlens[: len(begin)] = begin
        return cls(None, cu_seqlens.to(device, non_blocking=True), seq)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 and returned in x's precision (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(x.dtype)


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each pair of a head, float32 (head_dim / 2,), always on the CPU.

    `linear` divides all by the factor. `llama3` divides those whose wavelength exceeds the pretraining context over
    low_freq_factor, leaves those below it over high_freq_factor, and blends between (Llama 3.1's reference code).
    """
    dim = config.head_dim
    pairs = torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float()
    frequency = 1.0 / (config.rope_theta ** (pairs / dim))
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    if scaling.rope_type == "linear":
        return frequency / scaling.factor
    context, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    wavelength = 2 * math.pi / frequency
    keep = ((context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * frequency / scaling.factor + keep * frequency


class RotaryEmbedding(nn.Module):
    """Positions -> (cos, sin), float32, (..., seq, 1, head_dim / 2), for all heads (arXiv 2104.09864)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Neither a parameter nor a buffer: `to_empty`, `to(bfloat16)` and checkpoints must not touch it.
        self.frequencies = rotary_frequencies(config)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.frequencies.device != positions.device and positions.device.type != "meta":
            self.frequencies = self.frequencies.to(positions.device)
        angles = positions[..., None].float() * self.frequencies.to(positions.device)
        return angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + head_dim / 2) by its position's angle.

    x: (batch, seq, heads, head_dim). Pairs are halves, not neighbours: transformers' convention, to which published
    weights are permuted.
    """
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: DocumentMask | None = None, visible: Tensor | None = None
) -> Tensor:
    """Causal grouped-query attention.

    query: (batch, seq, heads, head_dim); key and value: (batch, length, kv_heads, head_dim). visible: bool (batch, 1,
    seq, length) replaces the causal rule. SDPA itself shares each key-value head among its query heads: half the memory
    of repeating them, forward and backward, on the CPU too (torch 2.13, November 2026).
    """
    if mask is not None and mask.cu_seqlens is not None:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)  # (batch * seq, heads, head_dim)
        starts, longest = mask.cu_seqlens, mask.max_seqlen
        causal_window = (-1, 0)  # any distance back, none ahead
        out = varlen_attn(q, k, v, starts, starts, longest, longest, window_size=causal_window, enable_gqa=True)
        return cast(Tensor, out).view_as(query)
    if mask is not None:
        visible = mask.dense
    causal = visible is None and query.shape[1] > 1
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        heads, kv_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads, bias=False)
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: DocumentMask | None = None, cache: Cache | None = None
    ) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # each (batch, seq, heads, head_dim)
        query, key = rotate(query, rope), rotate(key, rope)
        if cache is not None:
            return self.o_proj(cache.attend(self.layer, query, key, value).flatten(-2))
        return self.o_proj(attend(query, key, value, mask).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer. Without a cache it compiles as one graph (`torch.compile(fullgraph=True)`)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: DocumentMask | None = None, cache: Cache | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        mask: DocumentMask | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        if positions is None:
            # Rotary attention depends only on distances, so documents in a row need not start at zero.
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        rope = self.rotary(positions)
        x = self.embed_tokens(input_ids)  # (batch, seq, hidden)
        for block in self.layers:
            x = block(x, rope, mask, cache)
        return self.norm(x)


class LlamaForCausalLM(nn.Module):
    """The complete network. With tied embeddings there is no `lm_head`: the embedding is the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """The (vocab, hidden) matrix that turns hidden states into logits."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def forward(
        self,
        input_ids: Tensor,
        *,
        positions: Tensor | None = None,
        mask: DocumentMask | None = None,
        cache: Cache | None = None,
        head: Callable[[Tensor, Tensor], Any] = F.linear,
    ) -> Any:
        """Return head(hidden, weight): logits (batch, seq, vocab) unless another head is given.

        input_ids: (batch, seq); positions: (seq,) or (batch, seq), counted from 0 when None; hidden: (batch, seq,
        hidden_size) after the last norm; weight: (vocab, hidden_size). A training loss passed as `head` runs inside
        forward, while sharded weights are gathered, and never needs all logits at once.
        """
        return head(self.model(input_ids, positions, mask, cache), self.head_weight)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> None:
        """Initialize all parameters from `seed`; the values depend on neither device nor sharding."""
        for name, parameter in self.named_parameters():
            copy_whole(initial_weight(self.config, name, parameter.shape, seed), parameter)


def initial_weight(config: ModelConfig, name: str, shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    """The initial value of parameter `name`, float32 on the CPU, drawn from its own generator.

    Matrices are normal with variance 1 / fan-in. Those that write into the residual stream are zero, so every block
    starts as the identity (arXiv 1901.09321, nanochat); the head is nearly zero, so the first loss is log(vocab). The
    embedding is normal with deviation 1, or `initializer_range` if it is also the head.
    """
    if len(shape) == 1:
        return torch.ones(shape, device="cpu")
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return torch.zeros(shape, device="cpu")
    if name.endswith("embed_tokens.weight"):
        std = config.initializer_range if config.tie_word_embeddings else 1.0
    else:
        std = 0.001 if name == "lm_head.weight" else shape[1] ** -0.5
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.empty(shape, device="cpu").normal_(0.0, std, generator=generator)


def copy_whole(whole: Tensor, parameter: Tensor) -> None:
    """Copy a whole tensor into `parameter`; where that is a shard (DTensor), each rank keeps its own part."""
    from torch.distributed.tensor import DTensor

    if isinstance(parameter, DTensor):
        (part,) = parameter.__create_chunk_list__()  # an empty one where there are more ranks than rows
        own = whole[tuple(slice(o, o + s) for o, s in zip(part.offsets, part.sizes, strict=True))]
        parameter.to_local().copy_(own)
    else:
        parameter.copy_(whole)
