"""Validation of requests, before anything is computed."""

from collections.abc import Sequence

from puna.core.errors import PunaError
from puna.engine.core.kv_cache import BlockPool
from puna.engine.sampling import SamplingParams
from puna.model.config import ModelConfig
from puna.text.tokenizer import Tokenizer


def check_prompt(prompt: Sequence[int], config: ModelConfig, *, vocabulary: int, room: int = 0) -> None:
    """Raise PunaError unless there are tokens, all below `vocabulary`, and the context has room for `room` more."""
    if not prompt:
        raise PunaError("The prompt is empty.", "Give at least the begin-of-text token.")
    context = config.max_position_embeddings
    if len(prompt) > context - room:
        raise PunaError(
            f"The prompt has {len(prompt):,} tokens, but the model's context holds {context:,}.", "Shorten it."
        )
    wrong = next((token for token in prompt if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise PunaError(
            f"The prompt contains token id {wrong}, but the model's ids are 0 to {vocabulary - 1}.",
            "Was it encoded with another tokenizer?",
        )


def check_params(params: SamplingParams, vocabulary: int, tokenizer: Tokenizer | None) -> None:
    """Raise PunaError for token ids that cannot be generated, and for text options without a tokenizer."""
    wrong = next((token for token in params.logit_bias if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise PunaError(f"logit_bias names token id {wrong}, but ids are 0 to {vocabulary - 1}.", "Leave it out.")
    if params.stop and tokenizer is None:
        raise PunaError("Stop strings need a tokenizer, and this model has none.", "Use stop_ids.")
    if params.grammar is not None and tokenizer is None:
        raise PunaError(
            "A grammar needs a tokenizer, and this model has none.", "Put the model's tokenizer into its directory."
        )


def check_capacity(prompt: int, limit: int, pool: BlockPool) -> None:
    """Raise PunaError unless a prompt of that many tokens and `limit` more fit into an otherwise empty pool."""
    if pool.blocks_for(prompt + limit) > pool.num_blocks:
        raise PunaError(
            f"The prompt's {prompt:,} tokens and max_tokens = {limit:,} are {prompt + limit:,}, but the "
            f"KV cache holds {pool.num_blocks * pool.block_size:,}.",
            "Shorten one of them, or give the engine more kv_tokens.",
        )
