"""How a network begins and how it is saved: from scratch, or from a model directory.

A factory makes the network without memory, so that it can be sharded first and no process ever holds all of it; then it
fills it. Adapters (`tune.lora`) and a reward head (`tune.preference.reward`) are factories too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from puna.core.errors import PunaError
from puna.data.corpus import Corpus
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM, copy_whole
from puna.model.store import load_config, load_weights, save_model
from puna.text.tokenizer import Tokenizer
from puna.train.init.bigram import bigram_weights
from puna.train.init.induction import induction_weights

# Tokens that are counted for first weights, at most: a bound on time and memory, not a tuned number.
COUNTED_TOKENS = 20_000_000


class ModelFactory:
    """Makes, fills and saves one kind of network."""

    streams = True
    """Whether `save` takes tensors that are made as they are written; else it needs all of them."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer

    def make(self) -> LlamaForCausalLM:
        """The network, under whatever default device."""
        return LlamaForCausalLM(self.config)

    def fill(self, model: LlamaForCausalLM, seed: int) -> None:
        """Give it, with memory and perhaps sharded, its first weights."""
        raise NotImplementedError

    def save(
        self, directory: Path, state: Mapping[str, Any], *, dtype: torch.dtype, lineage: Mapping[str, Any]
    ) -> None:
        """Write tensors, by the names of the whole network, as a model directory."""
        save_model(directory, self.config, state, self.tokenizer, dtype=dtype, lineage=lineage)


class FromScratch(ModelFactory):
    """Fresh weights: "normal", or "bigram" and "induction", which follow from counting the corpus."""

    def __init__(self, config: ModelConfig, corpus: Corpus, init: str = "normal") -> None:
        super().__init__(config, corpus.tokenizer)
        self.corpus, self.init = corpus, init

    def fill(self, model: LlamaForCausalLM, seed: int) -> None:
        """See `ModelFactory`. Raises PunaError where a counted head needs weights of its own and has none."""
        model.init_weights(seed)
        if self.init != "normal":
            parameters = dict(model.named_parameters())
            for name, weight in self._counted(seed).items():
                copy_whole(weight, parameters[name])

    def _counted(self, seed: int) -> dict[str, Tensor]:
        """First weights that follow from counting the corpus, by name."""
        config = self.config
        if config.tie_word_embeddings:
            raise PunaError(
                f"train.init = '{self.init}' needs an embedding and a head of their own, but "
                "model.tie_word_embeddings = true.",
                "Set it to false, or use train.init = 'normal'.",
            )
        tokens = self.corpus.read(0, min(self.corpus.stream_tokens, COUNTED_TOKENS))
        embedding, head = bigram_weights(tokens, config.vocab_size, config.hidden_size, seed=seed)
        weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
        if self.init == "induction":
            unigram = torch.from_numpy(np.bincount(tokens, minlength=config.vocab_size) / len(tokens)).float()
            weights |= induction_weights(config, embedding, head, unigram, seed=seed)
        return weights


class FromCheckpoint(ModelFactory):
    """The weights of a model directory. config, tokenizer: others than the directory's, such as a longer context."""

    def __init__(self, directory: Path, config: ModelConfig | None = None, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config or load_config(directory), tokenizer or Tokenizer.load(directory))
        self.directory = directory

    def fill(self, model: LlamaForCausalLM, seed: int) -> None:
        """See `ModelFactory`."""
        load_weights(self.directory, model)
