"""What stands before the first step: a corpus that fits the recipe, the network's first weights, the layout."""

import os
from pathlib import Path

import torch

from puna.core.errors import PunaError
from puna.data.corpus import Corpus
from puna.model.layout import Layout
from puna.model.llama import LlamaForCausalLM, copy_whole
from puna.model.store import load_weights
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


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """The network without memory: sharded first and filled then, no process ever holds all of it."""
    with torch.device("meta"):
        model = LlamaForCausalLM(recipe.model)
    return model.to(torch.bfloat16) if recipe.train.precision == "bf16" else model


@torch.no_grad()
def fill_weights(model: LlamaForCausalLM, recipe: Recipe, corpus: Corpus, device: torch.device) -> None:
    """Give the network, sharded or not, memory on `device` and its first weights: of `start_from`, or fresh ones."""
    model.to_empty(device=device)
    if recipe.start_from:
        load_weights(Path(recipe.start_from), model)
        return
    model.init_weights(recipe.train.seed)
    if recipe.train.init == "bigram":
        if recipe.model.tie_word_embeddings:
            raise PunaError(
                "train.init = 'bigram' needs an embedding and a head of their own, but tie_word_embeddings = true.",
                "Set model.tie_word_embeddings = false, or use train.init = 'normal'.",
            )
        tokens = corpus.read(0, min(corpus.stream_tokens, BIGRAM_TOKENS))
        size, width = recipe.model.vocab_size, recipe.model.hidden_size
        embedding, head = bigram_weights(tokens, size, width, seed=recipe.train.seed)
        copy_whole(embedding, model.model.embed_tokens.weight)
        copy_whole(head, model.lm_head.weight)


def default_layout(recipe: Recipe, device: torch.device) -> Layout:
    """On CPUs whole copies are the rule (nothing to save there by sharding); on GPUs shards."""
    if device.type == "cpu" and recipe.layout.dp_shard == 0 and recipe.layout.dp_replicate == 1:
        size = int(os.environ.get("WORLD_SIZE", 1))
        return recipe.layout.model_copy(update={"dp_replicate": size, "dp_shard": 1})
    return recipe.layout
