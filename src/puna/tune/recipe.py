"""The recipe of a stage of tuning: one TOML file a stage, every knob with its meaning. Pure Python, no torch.

A file says which `stage` it is, and that decides which sections it may have. What all stages share is here: where the
weights come from, how long and how fast, what is kept. A stage's own sections stand in its own module and are fetched
when a recipe asks for them.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from puna.core.errors import PunaError, nearest
from puna.core.recipe import Config, Loaded, load, read_toml
from puna.model.config import ModelConfig
from puna.model.layout import LayoutConfig
from puna.train.recipe import (
    CheckpointConfig,
    ComputeConfig,
    GuardConfig,
    OptimizerConfig,
    Recipe,
    RunRecipe,
    ScheduleConfig,
    TrackConfig,
    TrainConfig,
)

STAGES = {
    # stage: module and class of its recipe, and the module whose `run` does it
    "all": ("puna.tune.way.recipe", "AllRecipe", "puna.tune.way.run"),
    "sft": ("puna.tune.sft.recipe", "SFTRecipe", "puna.tune.sft.objective"),
    "reward": ("puna.tune.preference.recipe", "RewardRecipe", "puna.tune.preference.reward"),
    "rejection": ("puna.tune.rejection.recipe", "RejectionRecipe", "puna.tune.rejection.stage"),
    "dpo": ("puna.tune.preference.recipe", "DPORecipe", "puna.tune.preference.dpo"),
    "rl": ("puna.tune.rl.recipe", "RLRecipe", "puna.tune.rl.objective"),
    "average": ("puna.tune.average.recipe", "AverageRecipe", "puna.tune.average.stage"),
    "extend": ("puna.tune.extend.recipe", "ExtendRecipe", "puna.tune.extend.stage"),
    "distill": ("puna.tune.rl.recipe", "DistillRecipe", "puna.tune.rl.distill"),
}


class StageTrainConfig(ComputeConfig):
    """How long, how large a batch, in which precision."""

    steps: int = Field(100, ge=0, description="optimizer steps")
    batch: int = Field(16, gt=0, description="rows in one optimizer step, over all processes")
    compile: Literal["auto", "on", "off"] = Field(
        "off",
        description="torch.compile of each block; auto: where a compiler is found (a short stage does not repay it)",
    )
    final: Literal["last", "best"] = Field(
        "last", description="which weights the stage ends with: the last ones, or those of the best held-out evaluation"
    )


class StageOptimizerConfig(OptimizerConfig):
    """AdamW with the small rates of tuning; Muon where asked for."""

    kind: Literal["muon", "adamw"] = Field(
        "adamw", description="adamw, or muon (with AdamW for embedding, head and norms)"
    )
    lr: float = Field(1e-4, gt=0, description="AdamW learning rate of everything that has no rate of its own below")
    matrix_lr: float = Field(2e-3, gt=0, description="Muon learning rate of the blocks' matrices")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon")


class StageScheduleConfig(ScheduleConfig):
    """Learning rate over the stage, as a factor of the peak rates."""

    warmup: float = Field(0.05, ge=0, le=1, description="share of the stage for linear warm-up")
    decay: float = Field(0.5, ge=0, le=1, description="wsd: share of the stage for linear decay at the end")


class StageLogConfig(TrackConfig):
    """What is written and shown during a stage."""

    eval_every: int = Field(0, ge=0, description="steps between held-out evaluations; 0: at the start and the end only")


class LoRAConfig(Config):
    """Low-rank adapters (arXiv 2106.09685): the weights stay, a product of two thin matrices is learned beside each."""

    rank: int = Field(0, ge=0, description="rank of the adapters; 0: no adapters, all weights are trained")
    alpha: float = Field(0.0, ge=0, description="the adapter's output is scaled by alpha / rank; 0 means 2 * rank")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="names of the blocks' matrices that get an adapter",
    )

    @property
    def scale(self) -> float:
        """Factor of the adapter's output."""
        return (self.alpha or 2.0 * self.rank) / max(1, self.rank)


class TaskLevels(Config):
    """A task and some of its levels."""

    name: str = Field(description="name of a task, see puna tasks list")
    levels: tuple[int, ...] = Field((1,), min_length=1, description="its levels")


class MeasureConfig(Config):
    """Held-out problems that the stage is measured on."""

    tasks: tuple[TaskLevels, ...] = Field((), description="tasks and levels; none: the stage is not measured on tasks")
    problems: int = Field(50, ge=0, description="problems of each task and level; 0: nothing is measured")
    samples: int = Field(4, ge=0, description="samples for each problem, besides the greedy answer")
    max_tokens: int = Field(128, gt=0, description="tokens of an answer, at most")
    instruct: bool = Field(False, description="give the task's instruction as the system message")

    @property
    def asked(self) -> list[tuple[str, int]]:
        """(task, level) of everything that is measured."""
        return [(entry.name, level) for entry in self.tasks for level in entry.levels] if self.problems else []


class StageBase(Config):
    """What every stage is told. A stage's recipe adds `stage: Literal["its name"]` and sections of its own."""

    stage: str = Field(description="which stage this is: " + ", ".join(STAGES))
    name: str = Field("", description="names the run directory runs/<name>; empty: <model's name>-<stage>")
    model: str = Field("", description="model directory whose weights the stage starts from")

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if value and Path(value).name != value:
            raise ValueError(f"name = '{value}' must be one folder name, without slashes")
        return value

    @property
    def run_name(self) -> str:
        """What the run directory is called."""
        return self.name or f"{Path(self.model).name or 'model'}-{self.stage}"


class StageRecipe(StageBase, RunRecipe):
    """What every stage that moves weights is told."""

    knows_its_rows: ClassVar[bool] = True
    """Whether a step's rows are as long as the recipe says; no, where the model writes them."""

    train: StageTrainConfig = Field(default_factory=StageTrainConfig, description="length, batch, precision")
    lora: LoRAConfig = Field(default_factory=LoRAConfig, description="adapters instead of all weights")
    optimizer: StageOptimizerConfig = Field(default_factory=StageOptimizerConfig, description="update rule")
    schedule: StageScheduleConfig = Field(default_factory=StageScheduleConfig, description="learning rate")
    measure: MeasureConfig = Field(default_factory=MeasureConfig, description="held-out problems")
    layout: LayoutConfig = Field(default_factory=LayoutConfig, description="parallel dimensions")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="state on disk")
    guard: GuardConfig = Field(default_factory=GuardConfig, description="spikes and non-finite values")
    log: StageLogConfig = Field(default_factory=StageLogConfig, description="what is written and shown")

    @model_validator(mode="after")
    def _possible(self) -> "StageRecipe":
        if self.layout.cp > 1 or self.layout.pp > 1:
            raise ValueError("layout.cp and pp above 1 are for pretraining. Stages have tp, dp_shard and dp_replicate")
        if self.layout.tp > 1 and self.lora.rank:
            raise ValueError("layout.tp and lora.rank are both set, but adapters are not split. Choose one")
        if self.train.fp8 and self.lora.rank:
            raise ValueError("train.fp8 and lora.rank are both set, but adapters are not multiplied in fp8. Choose one")
        return self

    def as_training(self, model: ModelConfig) -> Recipe:
        """See `RunRecipe`."""
        train = self.train
        return Recipe(
            model=model,
            train=TrainConfig(
                steps=max(1, train.steps),
                seq_len=train.seq_len,
                batch=train.batch,
                micro_batch=train.micro_batch,
                document_mask=True,
                precision=train.precision,
                compile=train.compile,
                recompute=train.recompute,
                loss_chunk=train.loss_chunk,
                fp8=train.fp8,
            ),
            optimizer=self.optimizer,
            layout=self.layout,
        )


def stage_schema(stage: object, name: str) -> type[StageBase]:
    """The recipe class of a stage. name: of the file, for the error. Raises PunaError for a stage there is not."""
    if not isinstance(stage, str) or stage not in STAGES:
        found = f"stage = '{stage}' is no stage of tuning." if stage else "it does not say which `stage` it is."
        raise PunaError(f"{name}: {found}", nearest(str(stage), STAGES))
    module, kind, _ = STAGES[stage]
    schema: type[StageBase] = getattr(importlib.import_module(module), kind)
    return schema


def load_stage(path: Path, overrides: Sequence[str] = (), *, stage: str = "") -> Loaded[StageBase]:
    """Read a stage's recipe. stage: the stage it must be; empty: whichever it is.

    Raises PunaError for a recipe of another stage, and as `core.recipe.load`.
    """
    found = read_toml(path).get("stage")
    schema = stage_schema(found, str(path))
    if stage and found != stage:
        raise PunaError(f"{path} is a recipe for the stage '{found}', not '{stage}'.", f"Use puna tune {found} {path}.")
    return load(schema, path, overrides)
