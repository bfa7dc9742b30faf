"""What is wrong with a request, found before anything is computed."""

from collections.abc import Sequence

from puna.core.errors import PunaError
from puna.engine.pages import PagePool
from puna.engine.sampling import SamplingParams
from puna.model.config import ModelConfig
from puna.text.tokenizer import Tokenizer


def check_prompt(prompt: Sequence[int], config: ModelConfig, *, known: int, room: int = 0) -> None:
    """Raise PunaError unless there are tokens, all of them below `known`, and the context has room for more."""
    if not prompt:
        raise PunaError("The prompt is empty.", "Give at least the begin-of-text token.")
    context = config.max_position_embeddings
    if len(prompt) > context - room:
        raise PunaError(
            f"The prompt has {len(prompt):,} tokens, but the model's context holds {context:,}.", "Shorten it."
        )
    wrong = next((token for token in prompt if not 0 <= token < known), None)
    if wrong is not None:
        raise PunaError(
            f"The prompt has token id {wrong}, but the model knows 0 to {known - 1}.",
            "Was it encoded with another tokenizer?",
        )


def check_params(params: SamplingParams, vocabulary: int, tokenizer: Tokenizer | None) -> None:
    """Raise PunaError when parameters name tokens that are never said, or want text of a model that has none."""
    wrong = next((token for token in params.logit_bias if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise PunaError(f"logit_bias names token id {wrong}, but there are 0 to {vocabulary - 1}.", "Leave it out.")
    if params.stop and tokenizer is None:
        raise PunaError("Stop strings need a tokenizer, and this model has none.", "Use stop_ids.")
    if params.grammar is not None and tokenizer is None:
        raise PunaError("A grammar needs a tokenizer, and this model has none.", "Put the model's own beside it.")


def check_room(prompt: int, limit: int, pool: PagePool) -> None:
    """Raise PunaError unless a prompt of that many tokens and `limit` more fit into the pool when they are alone."""
    if pool.pages_for(prompt + limit) > pool.pages:
        raise PunaError(
            f"The prompt's {prompt:,} tokens and max_tokens = {limit:,} are {prompt + limit:,}, but the "
            f"key-value cache holds {pool.pages * pool.page_size:,}.",
            "Shorten one of them, or give the engine more kv_tokens.",
        )
