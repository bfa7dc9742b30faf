"""Text embeddings: the mean of a prompt's hidden states as one vector."""

from collections.abc import Sequence

import torch
from torch import Tensor

from puna.engine.core.errors import as_engine_error, release_frames
from puna.engine.request import EngineError
from puna.model.llama import LlamaForCausalLM


@torch.inference_mode()
def embed(model: LlamaForCausalLM, prompt: Sequence[int]) -> Tensor:
    """(hidden_size,), float32, on the CPU: the mean over the prompt of the hidden states after the last norm.

    Raises EngineError when the forward fails or the result is not finite.
    """
    try:
        ids = torch.tensor([prompt], device=model.head_weight.device)
        mean = model(ids, head=lambda hidden, _: hidden[0].float().mean(0)).cpu()
    except Exception as error:
        release_frames(error)
        raise as_engine_error(f"A prompt of {len(prompt):,} tokens could not be embedded", error) from error
    if not mean.isfinite().all():
        raise EngineError("The model's hidden states are not finite.", "The weights may be damaged.")
    return mean
