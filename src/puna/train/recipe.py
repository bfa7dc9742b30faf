"""The recipe of a training run: every setting and its meaning. Pure Python, no torch.

`puna recipe show` prints these fields; the fully resolved recipe is stored in the run directory as `recipe.toml`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from puna.core.recipe import Config
from puna.core.units import parse_count
from puna.model.config import ModelConfig
from puna.model.layout import Layout, LayoutConfig


class ComputeConfig(Config):
    """Settings of every run that trains weights: length, batch size, precision."""

    renamed: ClassVar = {"checkpointing": "recompute"}

    steps: int = Field(0, ge=0, description="optimizer steps")
    seq_len: int = Field(256, gt=0, description="tokens in a row")
    batch: int = Field(16, gt=0, description="rows in one optimizer step, over all processes")
    micro_batch: int = Field(0, ge=0, description="rows that a process computes at once; 0: all its rows of a step")
    seed: int = Field(0, ge=0, description="seed for the order of the data and the initial weights")
    precision: Literal["auto", "fp32", "mixed", "bf16"] = Field(
        "auto",
        description="mixed: fp32 weights, bf16 products; bf16: weights and optimizer states too; "
        "auto: mixed if the device has fast bf16, otherwise fp32",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile for each block; auto: if a compiler is found"
    )
    recompute: Literal["none", "selective", "full"] = Field(
        "none",
        description="activations to recompute in the backward pass (activation checkpointing): none, all except "
        "matmuls and attention, or entire blocks",
    )
    loss_chunk: int = Field(1024, ge=0, description="tokens whose logits exist at once; 0 means all")
    grad_clip: float = Field(1.0, ge=0, description="maximum global gradient norm; 0 disables clipping")
    fp8: bool = Field(False, description="tensorwise fp8 products in the blocks' linears (CUDA with fp8 only)")


class TrainConfig(ComputeConfig):
    """Settings of pretraining: a length in tokens, rows cut from a stream, initial weights."""

    steps: int = Field(0, ge=0, description="optimizer steps; 0 means as many as `tokens` requires")
    tokens: int = Field(0, ge=0, description="training tokens, e.g. '2M' or '15.6T'; 0 means steps * batch * seq_len")
    document_mask: bool = Field(False, description="restrict attention to tokens of the same document")
    z_loss: float = Field(0.0, ge=0, description="weight of log(Z)^2, which keeps logits from drifting")
    init: Literal["normal", "bigram", "induction"] = Field(
        "normal",
        description="normal: Gaussian, zero output projections; bigram: embedding and head start as a bigram model of "
        "the corpus; induction: bigram, with first blocks that can copy",
    )

    @field_validator("tokens", mode="before")
    @classmethod
    def _count(cls, value: object) -> object:
        return parse_count(value) if isinstance(value, str) else value


class OptimizerConfig(Config):
    """Muon for the matrices of the blocks, AdamW for the rest; or AdamW for everything."""

    kind: Literal["muon", "adamw"] = Field(
        "muon", description="muon (with AdamW for embedding, head and norms) or adamw"
    )
    lr: float = Field(3e-3, gt=0, description="AdamW learning rate for all parameters without a separate rate below")
    matrix_lr: float = Field(0.02, gt=0, description="Muon learning rate for the blocks' matrices")
    embedding_lr: float = Field(0.0, ge=0, description="AdamW learning rate for the embedding; 0 means lr")
    head_lr: float = Field(0.0, ge=0, description="AdamW learning rate for the head; 0 means lr")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW decay rates of the moments")
    eps: float = Field(1e-10, gt=0, description="AdamW epsilon")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay for the matrices")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon momentum (Nesterov)")
    newton_schulz_steps: int = Field(5, gt=0, description="Muon iterations of the orthogonalisation")


class ScheduleConfig(Config):
    """Learning rate over the run, in tokens, as a factor of the peak rates."""

    kind: Literal["wsd", "cosine"] = Field("wsd", description="wsd: warm-up, stable, decay; cosine: warm-up, cosine")
    warmup: float = Field(0.0, ge=0, le=1, description="share of the run's tokens for the linear warm-up")
    decay: float = Field(0.65, ge=0, le=1, description="wsd: share of the run's tokens for the linear decay at the end")
    final: float = Field(0.0, ge=0, le=1, description="final factor of the learning rate")
    seconds: float = Field(
        0.0,
        ge=0,
        description="promised training time; the number of steps changes if it would be missed by more than 5 %; "
        "0: no promise",
    )


class CheckpointConfig(Config):
    """When to save the state of a run, and which checkpoints to keep."""

    every: int = Field(0, ge=0, description="steps between checkpoints; 0 means only at the end and when stopped")
    keep: int = Field(2, gt=0, description="number of newest checkpoints to keep")
    keep_every: int = Field(0, ge=0, description="also keep checkpoints at multiples of this many steps; 0: none")
    asynchronous: bool = Field(True, description="write in the background while training continues")


class GuardConfig(Config):
    """What to do when the loss or gradient norm is not finite or spikes."""

    enabled: bool = Field(True, description="skip steps whose loss or gradient norm is not finite or spikes")
    window: int = Field(128, gt=1, description="steps over which mean and deviation are computed")
    sigmas: float = Field(6.0, gt=0, description="a value above mean + sigmas * deviation is a spike")
    max_skips: int = Field(
        8, gt=0, description="skips within a window that trigger a roll-back to the last good checkpoint"
    )
    max_rollbacks: int = Field(2, ge=0, description="roll-backs before the run stops")


class TrackConfig(Config):
    """What a run records, and where."""

    every: int = Field(10, gt=0, description="steps between lines in metrics.jsonl")
    tensorboard: bool = Field(False, description="write TensorBoard events into the run directory")
    wandb: str = Field("", description="Weights & Biases project; empty: off (extra 'wandb')")
    trackio: str = Field("", description="trackio project; empty: off (extra 'trackio')")
    eval_every: int = Field(0, ge=0, description="steps between held-out evaluations; 0: none during the run")
    profile: bool = Field(False, description="write a torch profiler trace of steps 10 to 12 into the run directory")


class LogConfig(TrackConfig):
    """What is recorded and shown while training."""

    eval_every: int = Field(
        0, ge=0, description="steps between evaluations on held-out documents; 0 means only at the end"
    )
    eval_bytes: int = Field(200_000, gt=0, description="bytes of held-out text for each evaluation during the run")
    sample_every: int = Field(0, ge=0, description="steps between samples; 0: none")
    sample_prompt: str = Field("def ", description="prompt that the samples continue")


class RunRecipe(Config):
    """The settings that the training loop reads from any recipe that trains weights."""

    if TYPE_CHECKING:  # each recipe declares these in its display order

        @property
        def train(self) -> ComputeConfig: ...
        @property
        def optimizer(self) -> OptimizerConfig: ...
        @property
        def schedule(self) -> ScheduleConfig: ...
        @property
        def layout(self) -> LayoutConfig: ...
        @property
        def checkpoint(self) -> CheckpointConfig: ...
        @property
        def guard(self) -> GuardConfig: ...
        @property
        def log(self) -> TrackConfig: ...

    def as_training(self, model: ModelConfig) -> "Recipe":
        """The pretraining run with equal computation per step, for predicting memory and time."""
        raise NotImplementedError


class Recipe(RunRecipe):
    """A training run."""

    name: str = Field("run", min_length=1, description="name of the run and of its directory, runs/<name>")
    corpus: str = Field("", description="corpus directory made by `puna data build`")
    tokenizer: str = Field("", description="tokenizer that the corpus must have been built with; empty: no check")
    start_from: str = Field("", description="model directory with the initial weights; empty: fresh weights")
    model: ModelConfig = Field(default_factory=ModelConfig, description="shape of the network")
    train: TrainConfig = Field(default_factory=TrainConfig, description="length, batch, precision")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="update rule")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="learning rate over the run")
    layout: LayoutConfig = Field(default_factory=LayoutConfig, description="parallel dimensions")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="state on disk")
    guard: GuardConfig = Field(default_factory=GuardConfig, description="spikes and non-finite values")
    log: LogConfig = Field(default_factory=LogConfig, description="what is recorded and shown")

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if Path(value).name != value:
            raise ValueError(f"name = '{value}' must be one folder name, without slashes")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        train, model = self.train, self.model
        if train.seq_len > model.max_position_embeddings:
            raise ValueError(
                f"train.seq_len = {train.seq_len} is longer than the model's max_position_embeddings = "
                f"{model.max_position_embeddings}. Lower it, or set model.max_position_embeddings"
            )
        if not train.steps and not train.tokens:
            raise ValueError("train.steps and train.tokens are both 0. Set one of them")
        if problem := self.layout.problem_with(model, train.seq_len):
            raise ValueError(problem)
        return self

    def resolve_layout(self, processes: int, *, on_cpu: bool = False) -> Layout:
        """The layout on this many processes.

        on_cpu: replicate by default. Raises PunaError when the layout does not fill the processes or the batch is not
        divisible.
        """
        return resolve_layout(self.layout, self.train, processes, on_cpu=on_cpu)

    def as_training(self, model: ModelConfig) -> "Recipe":
        """See `RunRecipe`."""
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all processes."""
        return self.train.batch * self.train.seq_len

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.train.steps or -(-self.train.tokens // self.tokens_per_step)


def resolve_layout(layout: LayoutConfig, train: ComputeConfig, processes: int, *, on_cpu: bool = False) -> Layout:
    """Resolve the layout of any recipe that trains: its sizes, its batch and what it recomputes."""
    return layout.resolve(
        processes, batch=train.batch, micro_batch=train.micro_batch, recompute=train.recompute, on_cpu=on_cpu
    )
