"""Predict the memory of a tuning stage before it starts.

Pure arithmetic on `train.planning.memory`, no torch. A stage is a training step with three differences: if it has
adapters, only they have gradients and optimizer states; a loss on log probabilities of tokens keeps more of the logits
than cross entropy does; and a stage that learns from the model's own answers holds a generator in addition to the
trainer, and possibly a reference model or a teacher.
"""

from pathlib import Path

from puna.model.config import ModelConfig
from puna.model.store import load_config
from puna.train.planning.memory import MemoryEstimate, MemoryPrediction
from puna.tune.recipe import StageRecipe
from puna.tune.rl.recipe import DistillRecipe, OnPolicyRecipe, RLRecipe

# `packing.token_logprobs`, bytes per logit of a chunk: the product and its float32 copy, log-softmax, its exponential,
# and their product for the entropy.
_LOGPROB_BYTES = 18


def predict_stage_memory(
    stage: StageRecipe, config: ModelConfig, *, device_type: str, world_size: int = 1, held: int = 0
) -> MemoryEstimate:
    """Predict the peak memory of one of `world_size` processes, without evaluations.

    config: of the model to tune. held: on a CPU, bytes that the process already uses.
    """
    return _StagePrediction(stage, config, device_type, world_size, held).estimate()


def advice_on_memory(stage: StageRecipe) -> str:
    """Suggest changes to a recipe that needs more memory than is available."""
    train = stage.train
    wanted = [
        "lora.rank = 16 (adapters instead of all weights)" if not stage.lora.rank else "",
        "train.precision = 'bf16'" if train.precision != "bf16" else "",
        "train.recompute = 'full'" if train.recompute != "full" else "",
        "a smaller train.micro_batch" if train.micro_batch != 1 else "",
        "a smaller rollout.max_batch" if isinstance(stage, OnPolicyRecipe) else "",
    ]
    return f"Less is needed with {', '.join(filter(None, wanted)) or 'shorter rows (train.seq_len)'}."


class _StagePrediction(MemoryPrediction):
    def __init__(self, stage: StageRecipe, config: ModelConfig, device_type: str, world_size: int, held: int) -> None:
        super().__init__(stage.as_training(config), device_type, world_size, held)
        self.stage = stage

    def always(self) -> dict[str, float]:
        parts = super().always()
        if self.stage.lora.rank:
            parts["adapters"] = self.weight_bytes * self.trained() / self.shards
        if isinstance(self.stage, OnPolicyRecipe) and self.stage.rollout.generator == "engine":
            parts["generator"] = self.product_bytes * self.model.num_parameters()
            parts["its cache"] = self.cache_bytes()
        if isinstance(self.stage, RLRecipe) and self.stage.policy.kl:
            parts["reference"] = 4.0 * self.model.num_parameters()
        if isinstance(self.stage, DistillRecipe) and self.stage.teacher:
            parts["teacher"] = self.product_bytes * load_config(Path(self.stage.teacher)).num_parameters()
        return parts

    def cache_bytes(self) -> float:
        """Keys and values of the answers generated at once.

        CPUs allocate pages when they are written.
        """
        assert isinstance(self.stage, OnPolicyRecipe)
        model, rollout, train = self.model, self.stage.rollout, self.stage.train
        texts = rollout.max_batch
        if self.on_cpu:
            texts = min(texts, train.batch * rollout.updates * rollout.samples)
        tokens = texts * min(train.seq_len, model.max_position_embeddings)
        return 2.0 * self.product_bytes * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * tokens

    def trained_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes, lora = super().trained_shapes(), self.stage.lora
        if not lora.rank:
            return shapes
        adapted = {name: shape for name, shape in shapes.items() if name.split(".")[-2] in lora.targets}
        thin: dict[str, tuple[int, ...]] = {}
        for name, (rows, columns) in adapted.items():
            layer = name.removesuffix(".weight")
            thin |= {f"{layer}.lora_a": (lora.rank, columns), f"{layer}.lora_b": (rows, lora.rank)}
        return thin

    def chunk_bytes(self) -> float:
        if self.stage.stage in ("sft", "extend", "reward"):
            return super().chunk_bytes()
        chunk = min(self.recipe.train.loss_chunk or self.tokens, self.tokens)
        return float(_LOGPROB_BYTES * chunk * self.model.vocab_size)
