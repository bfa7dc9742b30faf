"""Shapes of a Llama: dimensions, parameter counts and FLOPs per token.

Pure Python, no torch. Field names are those of transformers' LlamaConfig, so that `config.json` is read and written
without a mapping. Parameter counts are tested against the published ones (tests/model/test_config.py).
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from puna.core.errors import nearest
from puna.core.recipe import Config
from puna.model.hf_config import read_hf


class RopeScaling(Config):
    """How rotary frequencies are scaled for contexts longer than those of pretraining."""

    rope_type: Literal["llama3", "linear"] = Field("llama3", description="llama3 (Llama 3.1's rule) or linear")
    factor: float = Field(8.0, gt=0, description="factor by which the context becomes longer")
    low_freq_factor: float = Field(
        1.0, gt=0, description="llama3: wavelengths above original/low are divided by factor"
    )
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: wavelengths below original/high are unchanged")
    original_max_position_embeddings: int = Field(8192, gt=0, description="llama3: context length of pretraining")


class ModelConfig(Config):
    """A dense Llama (2, 3, 3.1, 3.2). `preset` fills every field that is not given."""

    preset: str | None = Field(None, description="start from a named shape; other fields given here override it")
    vocab_size: int = Field(4096, gt=0, description="rows of the embedding; at least the tokenizer's size")
    hidden_size: int = Field(256, gt=0, description="width of the residual stream")
    intermediate_size: int = Field(688, gt=0, description="width of the SwiGLU feed-forward")
    num_hidden_layers: int = Field(6, gt=0, description="transformer blocks")
    num_attention_heads: int = Field(8, gt=0, description="query heads")
    num_key_value_heads: int = Field(4, gt=0, description="key and value heads (fewer than query heads: GQA)")
    head_dim: int = Field(0, ge=0, description="width of each head; 0 means hidden_size / num_attention_heads")
    max_position_embeddings: int = Field(2048, gt=0, description="maximum context length, tokens")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling | None = Field(None, description="context extension; none for plain RoPE")
    rms_norm_eps: float = Field(1e-5, gt=0, description="epsilon of RMSNorm")
    tie_word_embeddings: bool = Field(False, description="share the embedding's weights with the head")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of the initial weights")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        name = data.get("preset")
        if name is not None:
            if name not in PRESETS:
                raise ValueError(f"model.preset = '{name}' is not known. {nearest(str(name), PRESETS)}")
            data = PRESETS[name] | data
        fields = cls.model_fields
        if not data.get("head_dim"):
            hidden = data.get("hidden_size", fields["hidden_size"].default)
            heads = data.get("num_attention_heads", fields["num_attention_heads"].default)
            if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 and hidden % heads == 0:
                data = {**data, "head_dim": hidden // heads}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        if not self.head_dim:
            raise ValueError(
                f"model.hidden_size = {self.hidden_size} is not divisible by num_attention_heads = "
                f"{self.num_attention_heads}. Change one of them, or set head_dim"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"model.num_attention_heads = {self.num_attention_heads} is not divisible by num_key_value_heads = "
                f"{self.num_key_value_heads}. Each key-value head must serve the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim = {self.head_dim} is odd. Rotary embedding rotates pairs; make it even")
        return self

    # -- counts ------------------------------------------------------------------------------------------------------

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter by its name in transformers' LlamaForCausalLM, with its shape."""
        hidden, ffn, head_dim = self.hidden_size, self.intermediate_size, self.head_dim
        q, kv = self.num_attention_heads * head_dim, self.num_key_value_heads * head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for i in range(self.num_hidden_layers):
            block = f"model.layers.{i}."
            shapes |= {
                block + "self_attn.q_proj.weight": (q, hidden),
                block + "self_attn.k_proj.weight": (kv, hidden),
                block + "self_attn.v_proj.weight": (kv, hidden),
                block + "self_attn.o_proj.weight": (hidden, q),
                block + "mlp.gate_proj.weight": (ffn, hidden),
                block + "mlp.up_proj.weight": (ffn, hidden),
                block + "mlp.down_proj.weight": (hidden, ffn),
                block + "input_layernorm.weight": (hidden,),
                block + "post_attention_layernorm.weight": (hidden,),
            }
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def num_parameters(self) -> int:
        """Count all trainable parameters; tied weights count once."""
        return (
            self.embedding_parameters()
            + self.head_parameters()
            + self.block_parameters() * self.num_hidden_layers
            + (self.hidden_size)
        )

    def embedding_parameters(self) -> int:
        """Parameters of the input embedding."""
        return self.vocab_size * self.hidden_size

    def head_parameters(self) -> int:
        """Parameters of the output head; 0 when it is tied to the embedding."""
        return 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size

    def block_parameters(self) -> int:
        """Parameters of a block: four attention projections, three of the feed-forward, two norms."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        return self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size + 2)

    def matmul_parameters(self) -> int:
        """Parameters that every token is multiplied with: all except the embedding lookup.

        A tied embedding counts, because it is the head. The norms' gains are included, as in the published 6N
        arithmetic (they are below 0.01 %).
        """
        return self.num_parameters() - (0 if self.tie_word_embeddings else self.embedding_parameters())

    def flops_per_token(self, seq_len: int, *, attention: Literal["full", "causal"] = "full") -> float:
        """FLOPs of forward and backward for one training token at `seq_len`.

        6 per matmul parameter, plus the scores and the weighted sum: 12·layers·heads·head_dim·seq_len when the full
        square is counted ("full": PaLM appendix B, torchtitan, llm-foundry), or half of that when only the causal
        triangle is counted ("causal": Megatron-Bridge). The two differ by 12.5 % for Llama 3 8B at 8192.
        """
        square = 12 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * seq_len
        return 6.0 * self.matmul_parameters() + (square if attention == "full" else square / 2)

    # -- config.json -------------------------------------------------------------------------------------------------

    def to_hf(self) -> dict[str, Any]:
        """The shape part of `config.json`.

        RoPE is written in the old (transformers 4) and the new (5) form.
        """
        rope = {"rope_type": "default"} if self.rope_scaling is None else self.rope_scaling.model_dump()
        values: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": None if self.rope_scaling is None else rope,
            "rope_parameters": {**rope, "rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
        }
        return values

    def to_file(self) -> dict[str, Any]:
        """`to_hf` with the old form of RoPE alone, which transformers 5 reads as well: one place to edit it."""
        return {key: value for key, value in self.to_hf().items() if key != "rope_parameters"}

    @classmethod
    def from_hf(cls, values: Any, name: str = "config.json") -> "ModelConfig":
        """Read `config.json` as transformers 4 or 5 wrote it, with transformers' defaults (see `hf_config`).

        Raises PunaError, naming the key, for a shape that is missing, values of a wrong type or that contradict each
        other, and anything that is not a dense Llama: another model type, biases, another activation or RoPE rule.
        """
        from puna.core.recipe import check

        return check(cls, read_hf(values, name), name)


def _llama(
    hidden: int, ffn: int, layers: int, heads: int, kv: int, *, vocab: int = 128256, **more: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        **more,
    }


_LONG: dict[str, Any] = {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}
_SMALL: dict[str, Any] = {
    "max_position_embeddings": 131072,
    "rope_scaling": {"rope_type": "llama3", "factor": 32.0},
    "tie_word_embeddings": True,
}
_LLAMA2: dict[str, Any] = {"vocab": 32000, "max_position_embeddings": 4096, "rope_theta": 10000.0}

# Shapes published in the models' config.json and in arXiv 2307.09288 (Llama 2) and 2407.21783 (Llama 3); the small
# ones are Puna's own.
PRESETS: dict[str, dict[str, Any]] = {
    "llama2-7b": _llama(4096, 11008, 32, 32, 32, **_LLAMA2),
    "llama2-13b": _llama(5120, 13824, 40, 40, 40, **_LLAMA2),
    "llama2-70b": _llama(8192, 28672, 80, 64, 8, **_LLAMA2),
    "llama3-8b": _llama(4096, 14336, 32, 32, 8),
    "llama3-70b": _llama(8192, 28672, 80, 64, 8),
    "llama3.1-8b": _llama(4096, 14336, 32, 32, 8, **_LONG),
    "llama3.1-70b": _llama(8192, 28672, 80, 64, 8, **_LONG),
    "llama3.1-405b": _llama(16384, 53248, 126, 128, 8, **_LONG),
    "llama3.2-1b": _llama(2048, 8192, 16, 32, 8, **_SMALL),
    "llama3.2-3b": _llama(3072, 8192, 28, 24, 8, **_SMALL),
    "nano": _llama(64, 176, 2, 4, 2, vocab=512, max_position_embeddings=256, rope_theta=10000.0),
    "mini": _llama(256, 688, 6, 8, 4, vocab=4096, max_position_embeddings=1024, rope_theta=10000.0),
    "small-120m": _llama(768, 2048, 12, 12, 4, vocab=16384, max_position_embeddings=2048, rope_theta=10000.0),
}
