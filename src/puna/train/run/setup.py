"""Checks before the first step: a corpus that fits the recipe."""

from pathlib import Path

from puna.core.errors import PunaError
from puna.data.corpus import Corpus
from puna.train.recipe import Recipe


def open_corpus(recipe: Recipe) -> Corpus:
    """The recipe's corpus, checked against its model and tokenizer.

    Raises PunaError when they do not match.
    """
    if not recipe.corpus:
        raise PunaError(
            "The recipe names no corpus.", 'Set corpus = "corpora/..." or pass corpus=DIR on the command line.'
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
                f"The corpus {recipe.corpus} was built with a different tokenizer than {recipe.tokenizer}.",
                "Build the corpus with that tokenizer, or remove `tokenizer` from the recipe.",
            )
    return corpus
