"""Write lora.json: the logits of a tiny Llama with and without a LoRA adapter, as PEFT computes them.

    pip install peft ; python tests/tune/golden/make_lora.py

Weights follow a rule (a sine of their index), so that no tensor has to be stored.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def fill(tensors: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    for index, tensor in enumerate(tensors.values()):
        numbers = torch.arange(tensor.numel(), dtype=torch.float64)
        tensor.copy_((torch.sin(numbers * 0.37 + index) * 0.3).float().reshape(tensor.shape))
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


@torch.no_grad()
def main() -> None:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    weights = fill(dict(model.named_parameters()))
    ids = torch.tensor([IDS])
    plain = model(ids).logits[0]
    lora = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "o_proj", "up_proj"], task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, lora).eval()
    inside = {name: p for name, p in wrapped.named_parameters() if "lora_" in name}
    adapter = fill(inside)
    golden = {
        "config": json.loads(config.to_json_string()) | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        "weights": weights,
        "adapter_config": {"peft_type": "LORA", "r": 3, "lora_alpha": 5},
        "adapter": {name.replace(".default", ""): shape for name, shape in adapter.items()},
        "ids": IDS,
        "plain": plain.tolist(),
        "adapted": wrapped(ids).logits[0].tolist(),
    }
    Path(__file__).with_name("lora.json").write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
