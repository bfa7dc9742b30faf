"""Whether llama.cpp reads Puna's quantized blocks correctly.

Its probabilities are compared with those of the file's weights. A random model whose rows are multiples of 256, so that
K-quants apply to all of them, is exported in each scheme. llama-server returns the probabilities of the next tokens,
and so does Puna's network with the weights that the file's bytes represent (read by the `gguf` package). The remaining
difference is llama.cpp's own arithmetic: its cache in float16, its activations in eight bits. A wrong block layout
would give a different model.

    PUNA_LLAMA_CPP=…/bin python bench/gguf_quants.py
"""

import os
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

import common
from gguf_parity import server
from puna.convert.gguf import export_gguf, llama_cpp_name
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import save_model
from puna.text.tokenizer import train_tokenizer

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def main() -> None:
    binaries = Path(os.environ["PUNA_LLAMA_CPP"])
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(library.glob("*.py"))[:60]]
    tokenizer = train_tokenizer(texts, 2048)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE)
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            mean, deviation = (1.0, 0.1) if parameter.dim() == 1 else (0.0, parameter.shape[1] ** -0.5)
            parameter.normal_(mean, deviation, generator=generator)
    whole = [tokenizer.encode(text[:80], bos=True)[:24] for text in texts[:6]]
    prompts = [ids[:length] for ids in whole for length in range(3, len(ids), 2)]
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        save_model(place / "m", config, model.state_dict(), tokenizer, dtype=torch.float32, lineage={"stage": "base"})
        for scheme in ("f32", "bf16", "q8_0", "q4_0", "q4_k_m"):
            path = place / f"{scheme}.gguf"
            export_gguf(place / "m", path, scheme)
            twin, kinds = read(path, config)
            with server(binaries, path) as ask:
                results[scheme] = {"tensors": kinds, **compare(ask, twin, model, prompts)}
            print(scheme, results[scheme])
    settings = {**SHAPE, "vocab_size": config.vocab_size, "prompts": len(prompts), "likeliest": 5}
    common.save("gguf-quants", settings, results, packages=("torch", "gguf", "numpy"))


def read(path: Path, config: ModelConfig) -> tuple[LlamaForCausalLM, dict[str, int]]:
    """Load a file's weights into Puna's network, and count the tensors of each type."""
    stored: dict[str, torch.Tensor] = {}
    kinds: dict[str, int] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        kind = tensor.tensor_type
        kinds[kind.name] = kinds.get(kind.name, 0) + 1
        stored[tensor.name] = torch.from_numpy(gguf.dequantize(tensor.data, kind).astype(np.float32))
    twin = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            weight = stored[llama_cpp_name(name)].view(parameter.shape)
            if name.endswith(
                ("q_proj.weight", "k_proj.weight")
            ):  # in a file the elements of each rotated pair are neighbours
                weight = weight.unflatten(0, (-1, config.head_dim // 2, 2)).transpose(1, 2).reshape(weight.shape)
            parameter.copy_(weight)
    return twin, kinds


@torch.inference_mode()
def compare(ask: Any, twin: LlamaForCausalLM, model: LlamaForCausalLM, prompts: list[list[int]]) -> dict[str, Any]:
    """The next token after each prompt, and log probabilities of the most likely ones."""
    same, off, moved = 0, [0.0], [0.0]
    for prompt in prompts:
        answer = ask("/completion", prompt=prompt, n_predict=1, temperature=0, n_probs=5, cache_prompt=False)
        ours, before = (net(torch.tensor([prompt]))[0, -1].log_softmax(-1) for net in (twin, model))
        likeliest = answer["completion_probabilities"][0]["top_logprobs"]
        same += int(ours.argmax()) == likeliest[0]["id"]
        off += [abs(float(ours[token["id"]]) - token["logprob"]) for token in likeliest]
        moved += [abs(float(ours[token["id"]] - before[token["id"]])) for token in likeliest]
    return {
        "same_greedy_token": same,
        "largest_logprob_difference": round(max(off), 4),
        "largest_from_the_unquantized_model": round(max(moved), 4),
    }


if __name__ == "__main__":
    main()
