"""Low-rank adapters (LoRA): a frozen matrix plus a trained product of two thin ones.

See arXiv 2106.09685.

    y = W x + (alpha / rank) B A x,    A: (rank, in), B: (out, rank), B = 0 at first

The adapted layers keep the names of their weights, so a model directory fills them without changes, and code that reads
weights by name (the engine's `update_weights`, `save_model`) gets merged ones from `merged_state`. A stage with
adapters writes two directories: `model` with everything merged, which any software runs, and `adapter` in PEFT's
format.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from puna.core.errors import PunaError, nearest
from puna.core.files import give_usual_mode, new_directory, read_json, write_json
from puna.model.llama import LlamaForCausalLM, copy_whole
from puna.model.store import load_config, load_lineage, load_model, read_tensor, save_model, tensor_headers
from puna.model.tensor_file import Pending, complete
from puna.text.tokenizer import Tokenizer
from puna.train.factory import ModelFactory
from puna.tune.recipe import LoRAConfig

_A, _B = ".lora_a", ".lora_b"


class LoRALinear(nn.Linear):
    """A linear layer without bias whose weight is frozen, and its adapter."""

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.weight.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.empty(rank, in_features))
        self.lora_b = nn.Parameter(torch.empty(out_features, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) -> (..., out_features)."""
        return F.linear(x, self.weight) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


class LoRA(ModelFactory):
    """Adds adapters to the network of another factory."""

    streams = False

    def __init__(self, factory: ModelFactory, lora: LoRAConfig) -> None:
        super().__init__(factory.config, factory.tokenizer)
        self.factory, self.lora = factory, lora

    def make(self) -> LlamaForCausalLM:
        """See `ModelFactory`."""
        model = self.factory.make()
        adapt(model, self.lora)
        return model

    def fill(self, model: LlamaForCausalLM, seed: int) -> None:
        """See `ModelFactory`.

        A is uniform as in PEFT and B is zero, so the adapter has no effect at first.
        """
        self.factory.fill(model, seed)
        for name, parameter in model.named_parameters():
            if name.endswith(_B):
                parameter.zero_()
            elif name.endswith(_A):
                generator = torch.Generator().manual_seed(seed + sum(name.encode()))
                bound = parameter.shape[1] ** -0.5
                copy_whole(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator), parameter)

    def save(
        self, directory: Path, state: Mapping[str, Tensor | Pending], *, dtype: torch.dtype, lineage: Mapping[str, Any]
    ) -> None:
        """Write the merged model, and the adapter in PEFT's format next to it."""
        tensors = complete(state)
        self.factory.save(directory, merged_state(tensors, self.lora.scale), dtype=dtype, lineage=lineage)
        base = str(lineage.get("parent", {}).get("path", ""))
        write_adapter(directory.with_name("adapter"), tensors, self.lora, base)


def adapt(model: LlamaForCausalLM, config: LoRAConfig) -> None:
    """Add adapters to the matrices that the config names, in place, and freeze the rest.

    Raises PunaError for a matrix that the blocks do not have.
    """
    known = {
        name.rpartition(".")[2] for name, module in model.model.layers.named_modules() if isinstance(module, nn.Linear)
    }
    for name in config.targets:
        if name not in known:
            raise PunaError(f"lora.targets names '{name}', which no block has.", nearest(name, known))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in list(model.model.layers.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and name in config.targets:
                layer = LoRALinear(child.in_features, child.out_features, config.rank, config.scale)
                setattr(module, name, layer.to(child.weight.dtype))


def merged_state(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Merge the adapters into the weights, under the names of a model without adapters.

    Computed in float32.

    state: complete tensors by name, adapters under ".lora_a" (rank, in) and ".lora_b" (out, rank).
    """
    merged = {}
    for name, tensor in state.items():
        if name.endswith((_A, _B)):
            continue
        layer = name.removesuffix(".weight")
        if layer + _A in state:
            tensor = (tensor.float() + scale * (state[layer + _B].float() @ state[layer + _A].float())).to(tensor.dtype)
        merged[name] = tensor
    return merged


def write_adapter(directory: Path, state: Mapping[str, Tensor], config: LoRAConfig, base: str) -> None:
    """Write the adapters of `state` in PEFT's format (its 0.18 and later read it)."""
    tensors = {}
    for name, tensor in state.items():
        for ending, theirs in ((_A, ".lora_A.weight"), (_B, ".lora_B.weight")):
            if name.endswith(ending):
                tensors[f"base_model.model.{name.removesuffix(ending)}{theirs}"] = tensor.float().cpu().contiguous()
    with new_directory(directory, replace=True) as place:
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        give_usual_mode(place / "adapter_model.safetensors")
        write_json(
            place / "adapter_config.json",
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base,
                "r": config.rank,
                "lora_alpha": config.scale * config.rank,
                "lora_dropout": 0.0,
                "bias": "none",
                "target_modules": list(config.targets),
                "inference_mode": True,
            },
        )


def merge_adapter(model: Path, adapter: Path, output: Path) -> None:
    """Write `model` with an adapter in PEFT's format merged into it.

    Raises PunaError when the adapter is not a LoRA adapter of this model, or has parts that cannot be merged.
    """
    config = read_json(adapter / "adapter_config.json")
    odd = [
        key for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)
    ]
    if config.get("peft_type") != "LORA" or odd or config.get("bias", "none") != "none":
        what = ", ".join(odd) or str(config.get("peft_type"))
        raise PunaError(f"{adapter} is not a plain LoRA adapter ({what}).", "Merge it with PEFT.")
    path = adapter / "adapter_model.safetensors"
    network = load_model(model)
    state = dict(network.state_dict())
    for theirs in tensor_headers(path):
        layer, _, kind = theirs.removesuffix(".weight").removeprefix("base_model.model.").rpartition(".")
        if kind not in ("lora_A", "lora_B") or f"{layer}.weight" not in state:
            raise PunaError(
                f"{path} has {theirs}, which {model} does not have.", "The adapter belongs to another model."
            )
        state[layer + (_A if kind == "lora_A" else _B)] = read_tensor(path, theirs)
    parent = {"path": str(model), "stage": load_lineage(model).get("stage"), "adapter": str(adapter)}
    save_model(
        output,
        load_config(model),
        merged_state(state, config["lora_alpha"] / config["r"]),
        Tokenizer.load(model),
        dtype=next(network.parameters()).dtype,
        lineage={"stage": "merge", "parent": parent},
    )
