"""What stands before the first step: a corpus that fits the recipe, the network's first weights, the layout."""

import os
from pathlib import Path

import torch

from puna.core.errors import PunaError
from puna.data.corpus import Corpus
from puna.model.layout import Layout
from puna.model.llama import LlamaForCausalLM
from puna.model.store import load_model
from puna.train.bigram import bigram_weights
from puna.train.recipe import Recipe

# Tokens that are counted for `init = "bigram"`: more of them change little for the vocabularies it is for.
BIGRAM_TOKENS = 20_000_000


def open_corpus(recipe: Recipe) -> Corpus:
    """The recipe's corpus, checked against its model and tokenizer. Raises PunaError when they do not match."""
    if not recipe.corpus:
        raise PunaError(
            "The recipe names no corpus.", 'Set corpus = "corpora/..." or give corpus=DIR on the command line.'
        )
    corpus = Corpus.open(Path(recipe.corpus))
    if corpus.vocab_size > recipe.model.vocab_size:
        raise PunaError(
            f"The corpus {recipe.corpus} uses a tokenizer of {corpus.vocab_size} tokens but model.vocab_size = "
            f"{recipe.model.vocab_size}.",
            f"Set model.vocab_size = {corpus.vocab_size} or build the corpus with a smaller tokenizer.",
        )
    if recipe.tokenizer:
        from puna.text.tokenizer import Tokenizer

        if Tokenizer.load(Path(recipe.tokenizer)).hash != corpus.tokenizer_hash:
            raise PunaError(
                f"The corpus {recipe.corpus} was made with another tokenizer than {recipe.tokenizer}.",
                "Build the corpus with that tokenizer, or leave `tokenizer` out of the recipe.",
            )
    return corpus


def build_model(recipe: Recipe, corpus: Corpus, device: torch.device) -> LlamaForCausalLM:
    """The network on `device` with its first weights: those of `start_from`, or fresh ones from the seed."""
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    if recipe.start_from:
        model = load_model(Path(recipe.start_from), device=device, dtype=dtype)
        if model.config.num_parameters() != recipe.model.num_parameters():
            raise PunaError(
                f"{recipe.start_from} has {model.config.num_parameters():,} parameters, the recipe's model "
                f"{recipe.model.num_parameters():,}.",
                "Give the recipe the shape of the model it starts from.",
            )
        return model
    with torch.device("meta"):
        model = LlamaForCausalLM(recipe.model)
    model.to_empty(device=device)
    model.init_weights(recipe.train.seed)
    if recipe.train.init == "bigram":
        _start_as_bigram(model, corpus, recipe.train.seed)
    return model.to(dtype)


@torch.no_grad()
def _start_as_bigram(model: LlamaForCausalLM, corpus: Corpus, seed: int) -> None:
    config = model.config
    if config.tie_word_embeddings:
        raise PunaError(
            "train.init = 'bigram' needs an embedding and a head of their own, but model.tie_word_embeddings = true.",
            "Set it to false, or use train.init = 'normal'.",
        )
    tokens = corpus.read(0, min(corpus.stream_tokens, BIGRAM_TOKENS))
    embedding, head = bigram_weights(tokens, config.vocab_size, config.hidden_size, seed=seed)
    model.model.embed_tokens.weight.copy_(embedding)
    model.lm_head.weight.copy_(head)


def default_layout(recipe: Recipe, device: torch.device) -> Layout:
    """On CPUs whole copies are the rule (nothing to save there by sharding); on GPUs shards."""
    if device.type == "cpu" and recipe.layout.dp_shard == 0 and recipe.layout.dp_replicate == 1:
        size = int(os.environ.get("WORLD_SIZE", 1))
        return recipe.layout.model_copy(update={"dp_replicate": size, "dp_shard": 1})
    return recipe.layout
