"""Parameters and matrix products of a model, dense or mixture of experts. Arithmetic only, no torch.

`Shape` covers more than `model.config.ModelConfig`: published runs train shapes that Puna's network does not have
(experts, latent attention, plain feed-forwards), and a planner that is validated on them must know them. Every field
is a number or an array with one number per job, so the same code costs one model under a million layouts or four
hundred published rows.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from puna.core.errors import PunaError
from puna.model.config import ModelConfig

Number = Any  # a number, or an array with one number per job: every formula is element-wise

# Required fields of a published shape, by their names in runs files.
_WIDTHS = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn_hidden", "vocab")
_MOE = ("experts", "top_k", "moe_ffn")
_MLA = ("kv_lora", "qk_nope", "qk_rope", "v")
_OPTIONAL = ("shared", "dense_layers", "q_lora")


@dataclass(frozen=True)
class Shape:
    """One model, or one per job. Widths are those of the whole model, before anything is split."""

    layers: Number
    hidden: Number
    heads: Number
    kv_heads: Number
    head_dim: Number
    ffn: Number
    vocab: Number
    gated: Number = True  # SwiGLU: three matrices instead of two
    tied: Number = False
    # Mixture of experts: 0 experts is a dense model. `dense_layers` of the layers keep the plain feed-forward.
    experts: Number = 0
    top_k: Number = 0
    shared_experts: Number = 0
    expert_ffn: Number = 0
    dense_layers: Number = 0
    # Multi-head latent attention (arXiv 2405.04434): 0 for ordinary heads.
    q_lora: Number = 0
    kv_lora: Number = 0
    nope_dim: Number = 0
    rope_dim: Number = 0
    value_dim: Number = 0
    window: Number = 0  # sliding window of every second layer, tokens; 0 for none
    mtp_layers: Number = 0  # multi-token prediction layers, each with its own pass through the head

    @property
    def moe_layers(self) -> Number:
        """Layers whose feed-forward is a mixture of experts."""
        return np.where(np.asarray(self.experts) > 0, self.layers - self.dense_layers, 0)

    @property
    def matrices(self) -> Number:
        """Matrices of one feed-forward: 3 when gated, else 2."""
        return 2 + np.asarray(self.gated, dtype=float)

    @property
    def key_dim(self) -> Number:
        """Width of one head's query and key."""
        return np.where(np.asarray(self.kv_lora) > 0, self.nope_dim + np.asarray(self.rope_dim), self.head_dim)

    @property
    def output_dim(self) -> Number:
        """Width of one head's value."""
        return np.where(np.asarray(self.kv_lora) > 0, self.value_dim, self.head_dim)

    # -- parameters --------------------------------------------------------------------------------------------------

    def attention_products(self) -> list[tuple[Number, Number, bool]]:
        """Projections of one attention layer as (inputs, outputs, split by tensor parallelism)."""
        latent = np.asarray(self.kv_lora) > 0
        low = np.asarray(self.q_lora)
        heads = self.heads
        return [
            (self.hidden, np.where(latent, 0, (heads + 2 * np.asarray(self.kv_heads)) * self.head_dim), True),
            (self.hidden, np.where(latent, low, 0), False),
            (np.where(latent, np.where(low > 0, low, self.hidden), 0), heads * self.key_dim, True),
            (self.hidden, np.where(latent, self.kv_lora + np.asarray(self.rope_dim), 0), False),
            (self.kv_lora, heads * (np.asarray(self.nope_dim) + self.value_dim), True),
            (heads * self.output_dim, self.hidden, True),
        ]

    def attention_parameters(self) -> Number:
        """Projections of one layer's attention."""
        return sum(np.asarray(inputs, dtype=float) * outputs for inputs, outputs, _ in self.attention_products())

    def dense_ffn_parameters(self) -> Number:
        """One plain feed-forward."""
        return self.matrices * self.hidden * self.ffn

    def expert_parameters(self) -> Number:
        """All routed experts of one layer."""
        return np.asarray(self.experts) * self.matrices * self.hidden * self.expert_ffn

    def shared_parameters(self) -> Number:
        """Shared experts and the router of one mixture layer."""
        return self.matrices * self.hidden * self.shared_experts * self.expert_ffn + self.hidden * np.asarray(
            self.experts, dtype=float
        )

    def block_parameters(self) -> Number:
        """All blocks but their routed experts: attention, plain feed-forwards, shared experts, norms."""
        dense = self.layers - self.moe_layers
        return (
            self.layers * (self.attention_parameters() + 2 * np.asarray(self.hidden))
            + dense * self.dense_ffn_parameters()
            + self.moe_layers * self.shared_parameters()
        )

    def routed_parameters(self) -> Number:
        """The routed experts of all layers."""
        return self.moe_layers * self.expert_parameters()

    def embedding_parameters(self) -> Number:
        """One of the two vocabulary matrices."""
        return np.asarray(self.vocab, dtype=float) * self.hidden

    def num_parameters(self) -> Number:
        """All parameters; tied weights count once."""
        vocabulary = self.embedding_parameters() * np.where(self.tied, 1, 2)
        return self.block_parameters() + self.routed_parameters() + vocabulary + self.hidden

    def active_parameters(self) -> Number:
        """Parameters that a token is multiplied with: of the experts only those it is routed to, and the head once."""
        routed = self.moe_layers * np.asarray(self.top_k) * self.matrices * self.hidden * self.expert_ffn
        return self.block_parameters() + routed + self.embedding_parameters()

    def flops_per_token(self, seq_len: Number, *, causal: bool) -> Number:
        """FLOPs of forward and backward for one token: 6 per active parameter, plus attention.

        causal: count only the triangle that causal attention needs (Megatron-Bridge), else the whole square (PaLM,
        arXiv 2204.02311 appendix B; torchtitan; llm-foundry). Tested against model.config.ModelConfig.flops_per_token.
        A multi-token prediction layer is a block, a product of (2·hidden, hidden) and the head once more
        (DeepSeek-V3, arXiv 2412.19437 section 2.2). In a window of w tokens causality skips nothing but the start.
        """
        span, layers = np.asarray(seq_len, dtype=float), np.asarray(self.layers)
        windowed = np.where(np.asarray(self.window) > 0, (span + np.minimum(2.0 * self.window, span)) / 2, span)
        further = np.asarray(self.mtp_layers, dtype=float)
        square = 6 * (layers + further) * self.heads * (self.key_dim + self.output_dim) * windowed
        active, head = self.active_parameters(), self.embedding_parameters()
        again = further * ((active - head) / layers + head + 2.0 * np.asarray(self.hidden, dtype=float) ** 2)
        return 6 * (active + again) + (square / 2 if causal else square)


def from_config(model: ModelConfig) -> Shape:
    """The shape of a Llama that Puna can train."""
    return Shape(
        layers=model.num_hidden_layers,
        hidden=model.hidden_size,
        heads=model.num_attention_heads,
        kv_heads=model.num_key_value_heads,
        head_dim=model.head_dim,
        ffn=model.intermediate_size,
        vocab=model.vocab_size,
        tied=model.tie_word_embeddings,
    )


def from_published(values: Mapping[str, Any], name: str) -> Shape:
    """A shape as runs files write it. Raises PunaError naming a field that is missing or not a number."""
    if not isinstance(values, Mapping):
        raise PunaError(f"models.{name} is not a mapping.", f"Give {', '.join(_WIDTHS)} and gated_mlp.")
    moe, mla = values.get("moe") or {}, values.get("mla") or {}
    for place, part, needed in (("", values, (*_WIDTHS, "gated_mlp")), ("moe", moe, _MOE), ("mla", mla, _MLA)):
        if not isinstance(part, Mapping):
            raise PunaError(f"models.{name}: {place} is not a mapping.", f"Give {', '.join(needed)}.")
        if (part or part is values) and (missing := [key for key in needed if part.get(key) is None]):
            raise PunaError(f"models.{name}: {', '.join(missing)} is missing.", "Give every width of the model.")
        least = 1 if part is values else 0
        for key in (*needed, *_OPTIONAL):
            if key != "gated_mlp" and part.get(key) is not None and not is_whole(part[key], least):
                raise PunaError(f"models.{name}: {key} = {part[key]!r} is not a whole number of at least {least}.")
    window = re.search(r"([0-9]+)-token sliding window", str(values.get("note", "")))
    return Shape(
        layers=values["layers"],
        hidden=values["hidden"],
        heads=values["heads"],
        kv_heads=values["kv_heads"],
        head_dim=values["head_dim"],
        ffn=values["ffn_hidden"],
        vocab=values["vocab"],
        gated=bool(values["gated_mlp"]),
        tied=bool(values.get("tied_embeddings", False)),
        experts=moe.get("experts", 0),
        top_k=moe.get("top_k", 0),
        shared_experts=moe.get("shared") or 0,
        expert_ffn=moe.get("moe_ffn", 0),
        dense_layers=moe.get("dense_layers") or 0,
        q_lora=mla.get("q_lora") or 0,
        kv_lora=mla.get("kv_lora", 0),
        nope_dim=mla.get("qk_nope", 0),
        rope_dim=mla.get("qk_rope", 0),
        value_dim=mla.get("v", 0),
        window=int(window[1]) if window else 0,
    )


def is_whole(value: object, least: int) -> bool:
    """Whether `value` is a whole number of at least `least` that a float can represent exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= 2**53


@lru_cache(maxsize=1)
def published_shapes() -> dict[str, tuple[Shape, int]]:
    """Published shapes that Puna does not train, by name, each with its pretraining length (models.toml)."""
    tree = tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))
    return {name: (from_published(values, name), int(values["context"])) for name, values in tree.items()}
