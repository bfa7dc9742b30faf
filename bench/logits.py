"""Compare logits with transformers' LlamaForCausalLM.

Both have the same random weights, in fp32, for every preset scaled down. Each scaled-down preset keeps what could go
wrong: its ratio of query to key-value heads, its head width, RoPE base and scaling, tied or untied head and norm
epsilon. Width, depth and vocabulary shrink so that a 405B fits here.

    python bench/logits.py
"""

import argparse
from typing import Any

import common

GOAL = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seq-len", type=int, default=1024, help="positions compared")
    args = parser.parse_args()

    from puna.model.config import PRESETS

    results = {name: compare(name, args.seq_len) for name in PRESETS}
    results["llama2-7b, linear RoPE scaling"] = compare(
        "llama2-7b", args.seq_len, rope_scaling={"rope_type": "linear", "factor": 4.0}
    )
    settings = {"dtype": "float32", "seq_len": args.seq_len, "rows": 2, "goal": GOAL}
    common.save("logits", settings, results, packages=("torch", "transformers"))
    width = max(map(len, results))
    for name, row in results.items():
        print(
            f"{name:<{width}}  max |difference| {row['max_abs_difference']:.2e}, max |logit| {row['max_abs_logit']}"
            f"  ({row['shape']})"
        )
    worst = max(row["max_abs_difference"] for row in results.values())
    print(f"worst {worst:.2e}, goal {GOAL:.0e}")


def compare(preset: str, seq_len: int, **changes: Any) -> dict[str, Any]:
    """Largest absolute difference of the logits of a scaled-down preset."""
    import torch
    import transformers

    from puna.model.config import ModelConfig
    from puna.model.llama import LlamaForCausalLM

    config = scaled_down(ModelConfig.model_validate({"preset": preset, **changes}))
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_hf())).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.1)  # gains differ, so that a misplaced one shows
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    ours = LlamaForCausalLM(config).eval()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name in ours.state_dict()}
    ours.load_state_dict(state)
    ids = torch.randint(config.vocab_size, (2, min(seq_len, config.max_position_embeddings)))
    with torch.no_grad():
        expected = theirs(ids).logits
        difference = (ours(ids) - expected).abs().max().item()
    return {
        "max_abs_difference": difference,
        "max_abs_logit": round(expected.abs().max().item(), 2),
        "shape": f"{config.hidden_size} wide, {config.num_hidden_layers} layers, {config.num_attention_heads} heads on "
        f"{config.num_key_value_heads} of {config.head_dim}",
        "tied": config.tie_word_embeddings,
        "rope_scaling": config.rope_scaling.rope_type if config.rope_scaling else "none",
    }


def scaled_down(config: Any) -> Any:
    """The same kind of model, small: at most 16 query heads and 2 layers."""
    ratio = config.num_attention_heads // config.num_key_value_heads
    kv_heads = max(1, min(config.num_key_value_heads, 16 // ratio))
    fields = {
        "hidden_size": 32 * ratio * kv_heads,  # transformers needs a multiple of the heads, regardless of head_dim
        "intermediate_size": 688,
        "num_hidden_layers": 2,
        "num_attention_heads": ratio * kv_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": 1024,
    }
    return type(config).model_validate({**config.model_dump(exclude={"preset"}), **fields})


if __name__ == "__main__":
    main()
