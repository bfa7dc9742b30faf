"""Generators of a model's answers during training, as token ids with log probabilities.

The default is an engine in this process with its own copy of the weights, laid out for generation, which is updated
from the trainer before each set of answers. So there is no server to start and no network in between, and the engine's
log probabilities can be compared with the trainer's at every step. vLLM can be used instead (`vllm_generator`), with
the same methods.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from puna.core.errors import PunaError
from puna.engine.cpu.fused_model import fuse
from puna.engine.generate import Completion, Engine, SamplingParams
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.text.control import declared_ends
from puna.text.tokenizer import Tokenizer
from puna.tune.lora import merged_state
from puna.tune.recipe import LoRAConfig


class Generator(Protocol):
    """What generates: an `Engine`, or anything with the same methods."""

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """See `Engine.generate`."""
        ...

    def generate_each(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Iterator[list[Completion]]:
        """See `Engine.generate_each`."""
        ...

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> int:
        """See `Engine.update_weights`."""
        ...


def make_generator(
    config: ModelConfig,
    tokenizer: Tokenizer,
    parent: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_batch: int,
    seq_len: int,
) -> Engine:
    """An engine with room for `max_batch` sequences of `seq_len` tokens.

    Its weights are to be sent.
    """
    model = LlamaForCausalLM(config).to(device=device, dtype=dtype).requires_grad_(False)
    if device.type == "cpu":
        fuse(model)
    return Engine(
        model,
        tokenizer,
        end_ids=declared_ends(parent),
        max_batch=max_batch,
        kv_tokens=max_batch * min(seq_len, config.max_position_embeddings),
        step_tokens=max(512, 4 * max_batch),
    )


def send_weights(model: nn.Module, generator: Generator, *, lora: LoRAConfig | None = None) -> int:
    """Copy the trainer's weights, gathered if sharded and merged with their adapters (`lora`).

    Every process must call it. Returns the generator's version of the weights.
    """

    def whole() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in model.named_parameters():
            value = parameter.detach()
            yield name, value.full_tensor() if isinstance(value, DTensor) else value

    if lora is not None and lora.rank:
        return generator.update_weights(merged_state(dict(whole()), lora.scale).items())
    return generator.update_weights(whole())


def vllm_generator(config: ModelConfig, tokenizer: Tokenizer, parent: Path, *, max_batch: int, seq_len: int) -> Any:
    """vLLM in this process, as a `Generator`. Raises PunaError when it is not installed."""
    try:
        import vllm
    except ImportError:
        raise PunaError(
            "rollout.generator = 'vllm', but vLLM is not installed.", "Run: pip install vllm, or use 'engine'."
        ) from None
    length = min(seq_len, config.max_position_embeddings)
    model = vllm.LLM(
        model=str(parent),
        max_model_len=length,
        max_num_seqs=max_batch,
        gpu_memory_utilization=0.3,  # the trainer needs the rest
        logprobs_mode="raw_logprobs",
    )
    return VLLMGenerator(vllm, model, tokenizer, config, declared_ends(parent))


class VLLMGenerator:
    """Adapts a `vllm.LLM` to the methods of an `Engine`."""

    def __init__(self, vllm: Any, llm: Any, tokenizer: Tokenizer, config: ModelConfig, ends: Sequence[int]) -> None:
        self.vllm, self.llm, self.tokenizer = vllm, llm, tokenizer
        self.model = SimpleNamespace(config=config)  # as in an engine, for the maximum sequence length
        self.ends = sorted({*tokenizer.eos_ids, *ends})
        self.version = 0

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """See `Engine.generate`."""
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else params
        asked = [
            self.vllm.SamplingParams(
                n=one.n,
                seed=one.seed,
                temperature=one.temperature,
                max_tokens=one.max_tokens,
                stop_token_ids=self.ends,
                logprobs=0,
                detokenize=False,
            )
            for one in each
        ]
        rows = self.llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], asked, use_tqdm=False)
        return [self._completion(output) for row in rows for output in row.outputs]

    def generate_each(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Iterator[list[Completion]]:
        """See `Engine.generate_each`; vLLM returns all prompts at once."""
        done = iter(self.generate(prompts, params))
        for number in range(len(prompts)):
            one = params[number] if isinstance(params, Sequence) else params or SamplingParams()
            yield list(islice(done, one.n))

    def _completion(self, output: Any) -> Completion:
        ids = list(output.token_ids)
        said = [token for token in ids if token not in self.ends]
        return Completion(
            ids=ids,
            text=self.tokenizer.decode(said),
            logprobs=[row[token].logprob for row, token in zip(output.logprobs, ids, strict=True)],
            finish_reason="stop" if output.finish_reason == "stop" else "length",
            weight_versions=[self.version] * len(ids),
        )

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> int:
        """See `Engine.update_weights`."""
        self.llm.collective_rpc("load_weights", args=(list(weights),))
        self.llm.reset_prefix_cache()
        self.version += 1
        return self.version
