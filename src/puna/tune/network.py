"""The network of a stage: made without memory, sharded or copied, and filled from a model directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import load_weights, save_model
from puna.text.tokenizer import Tokenizer


class Kind(Protocol):
    """What kind of network a stage trains; `CausalLM` is the usual one."""

    def make(self, config: ModelConfig) -> LlamaForCausalLM:
        """The network, under whatever default device."""
        ...

    def fill(self, model: LlamaForCausalLM, directory: Path, seed: int) -> None:
        """Give it (with memory, perhaps sharded) the weights of a model directory."""
        ...

    def save(
        self,
        directory: Path,
        config: ModelConfig,
        state: Mapping[str, Tensor],
        tokenizer: Tokenizer,
        *,
        dtype: torch.dtype,
        lineage: Mapping[str, Any],
    ) -> None:
        """Write whole tensors as a model directory."""
        ...


class CausalLM:
    """A language model that stays one."""

    def make(self, config: ModelConfig) -> LlamaForCausalLM:
        """See `Kind`."""
        return LlamaForCausalLM(config)

    def fill(self, model: LlamaForCausalLM, directory: Path, seed: int) -> None:
        """See `Kind`."""
        load_weights(directory, model)

    def save(
        self,
        directory: Path,
        config: ModelConfig,
        state: Mapping[str, Tensor],
        tokenizer: Tokenizer,
        *,
        dtype: torch.dtype,
        lineage: Mapping[str, Any],
    ) -> None:
        """See `Kind`."""
        save_model(directory, config, state, tokenizer, dtype=dtype, lineage=lineage)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the stage moves, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
