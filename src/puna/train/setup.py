"""What stands before the first step: a corpus that fits the recipe, the network's first weights, the layout."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from puna.core.errors import PunaError
from puna.data.corpus import Corpus
from puna.model.llama import LlamaForCausalLM, copy_whole
from puna.model.store import load_weights
from puna.train.bigram import bigram_weights
from puna.train.induction import induction_weights
from puna.train.recipe import Recipe

# Tokens that are counted for first weights, at most: a bound on time and memory, not a tuned number.
COUNTED_TOKENS = 20_000_000


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
    if recipe.train.init != "normal":
        parameters = dict(model.named_parameters())
        for name, weight in _counted_weights(recipe, corpus).items():
            copy_whole(weight, parameters[name])


def _counted_weights(recipe: Recipe, corpus: Corpus) -> dict[str, Tensor]:
    """First weights that follow from counting the corpus, by name."""
    model, seed = recipe.model, recipe.train.seed
    if model.tie_word_embeddings:
        raise PunaError(
            f"train.init = '{recipe.train.init}' needs an embedding and a head of their own, but "
            "model.tie_word_embeddings = true.",
            "Set it to false, or use train.init = 'normal'.",
        )
    tokens = corpus.read(0, min(corpus.stream_tokens, COUNTED_TOKENS))
    embedding, head = bigram_weights(tokens, model.vocab_size, model.hidden_size, seed=seed)
    weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    if recipe.train.init == "induction":
        unigram = torch.from_numpy(np.bincount(tokens, minlength=model.vocab_size) / len(tokens)).float()
        weights |= induction_weights(model, embedding, head, unigram, seed=seed)
    return weights
