"""Create, initialize and save a network: from scratch, or from a model directory.

A factory first creates the network without memory, so that it can be sharded before it is filled and no process ever
holds all of it. Then it fills the weights. Adapters (`tune.lora`) and a reward head (`tune.preference.reward`) are
factories too.
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

# At most this many tokens are counted for the initial weights: a bound on time and memory, not a tuned value.
COUNTED_TOKENS = 20_000_000


class ModelFactory:
    """Creates, initializes and saves one kind of network."""

    streams = True
    """Whether `save` takes tensors that are made as they are written; else it needs all of them."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer

    def make(self) -> LlamaForCausalLM:
        """Create the network on the current default device."""
        return LlamaForCausalLM(self.config)

    def fill(self, model: LlamaForCausalLM, seed: int) -> None:
        """Initialize the weights of a network that has memory and may be sharded."""
        raise NotImplementedError

    def save(
        self, directory: Path, state: Mapping[str, Any], *, dtype: torch.dtype, lineage: Mapping[str, Any]
    ) -> None:
        """Write tensors, by the names of the whole network, as a model directory."""
        save_model(directory, self.config, state, self.tokenizer, dtype=dtype, lineage=lineage)


class FromScratch(ModelFactory):
    """Fresh weights: "normal", or "bigram" and "induction", which are counted from the corpus."""

    def __init__(self, config: ModelConfig, corpus: Corpus, init: str = "normal") -> None:
        super().__init__(config, corpus.tokenizer)
        self.corpus, self.init = corpus, init

    def fill(self, model: LlamaForCausalLM, seed: int) -> None:
        """See `ModelFactory`.

        Raises PunaError when counted weights need an untied head and the model ties it.
        """
        model.init_weights(seed)
        if self.init != "normal":
            parameters = dict(model.named_parameters())
            for name, weight in self._counted(seed).items():
                copy_whole(weight, parameters[name])

    def _counted(self, seed: int) -> dict[str, Tensor]:
        """Initial weights computed from token counts of the corpus, by name."""
        config = self.config
        if config.tie_word_embeddings:
            raise PunaError(
                f"train.init = '{self.init}' needs separate weights for embedding and head, but "
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
    """The weights of a model directory.

    config, tokenizer: replace the directory's, for example for a longer context.
    """

    def __init__(self, directory: Path, config: ModelConfig | None = None, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config or load_config(directory), tokenizer or Tokenizer.load(directory))
        self.directory = directory

    def fill(self, model: LlamaForCausalLM, seed: int) -> None:
        """See `ModelFactory`."""
        load_weights(self.directory, model)
