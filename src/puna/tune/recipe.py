"""The recipe of a tuning stage: one TOML file per stage, with all settings.

Pure Python, no torch. The `stage` of a file decides which sections it may have. What all stages share is defined here:
where the weights come from, how long and how fast to train, what to keep. A stage's own sections are defined in its own
module, which is imported when a recipe needs it.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from puna.core.errors import PunaError, nearest
from puna.core.recipe import Config, Loaded, load, read_toml
from puna.model.config import ModelConfig
from puna.model.hub import model_name
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
    # stage: module and class of its recipe, and the module whose `run` runs it
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
    """Settings of a stage: length, batch size, precision."""

    steps: int = Field(100, ge=0, description="optimizer steps")
    batch: int = Field(16, gt=0, description="rows in one optimizer step, over all processes")
    compile: Literal["auto", "on", "off"] = Field(
        "off",
        description="torch.compile for each block; auto: if a compiler is found (not worth it in a short stage)",
    )
    final: Literal["last", "best"] = Field(
        "last", description="final weights of the stage: the last ones, or those of the best held-out evaluation"
    )


class StageOptimizerConfig(OptimizerConfig):
    """AdamW with the small rates of tuning; Muon if configured."""

    kind: Literal["muon", "adamw"] = Field(
        "adamw", description="adamw, or muon (with AdamW for embedding, head and norms)"
    )
    lr: float = Field(1e-4, gt=0, description="AdamW learning rate for all parameters without a separate rate below")
    matrix_lr: float = Field(2e-3, gt=0, description="Muon learning rate for the blocks' matrices")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon")


class StageScheduleConfig(ScheduleConfig):
    """Learning rate over the stage, as a factor of the peak rates."""

    warmup: float = Field(0.05, ge=0, le=1, description="share of the stage for the linear warm-up")
    decay: float = Field(0.5, ge=0, le=1, description="wsd: share of the stage for the linear decay at the end")


class StageLogConfig(TrackConfig):
    """What is recorded and shown during a stage."""

    eval_every: int = Field(0, ge=0, description="steps between held-out evaluations; 0: only at the start and the end")


class LoRAConfig(Config):
    """Low-rank adapters: frozen weights, each plus a trained product of two thin matrices.

    See arXiv 2106.09685.
    """

    rank: int = Field(0, ge=0, description="rank of the adapters; 0: no adapters, train all weights")
    alpha: float = Field(0.0, ge=0, description="scale of the adapter's output, alpha / rank; 0 means 2 * rank")
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
    """Held-out problems on which the stage is measured."""

    tasks: tuple[TaskLevels, ...] = Field((), description="tasks and levels; empty: no measurement on tasks")
    problems: int = Field(50, ge=0, description="problems per task and level; 0: no measurement")
    samples: int = Field(4, ge=0, description="samples per problem, in addition to the greedy answer")
    max_tokens: int = Field(128, gt=0, description="maximum tokens of an answer")
    instruct: bool = Field(False, description="give the task's instruction as the system message")

    @property
    def asked(self) -> list[tuple[str, int]]:
        """Every (task, level) that is measured."""
        return [(entry.name, level) for entry in self.tasks for level in entry.levels] if self.problems else []


class StageBase(Config):
    """Settings of every stage.

    A stage's recipe adds `stage: Literal["its name"]` and its own sections.
    """

    stage: str = Field(description="name of the stage: " + ", ".join(STAGES))
    name: str = Field("", description="name of the run and its directory, runs/<name>; empty: <model's name>-<stage>")
    model: str = Field("", description="model directory with the initial weights")

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if value and Path(value).name != value:
            raise ValueError(f"name = '{value}' must be one folder name, without slashes")
        return value

    @property
    def run_name(self) -> str:
        """What the run directory is called."""
        return self.name or f"{model_name(self.model) if self.model else 'model'}-{self.stage}"


class StageRecipe(StageBase, RunRecipe):
    """Settings of every stage that trains weights."""

    knows_its_rows: ClassVar[bool] = True
    """Whether a step's rows are as long as the recipe says; not if the model generates them."""

    train: StageTrainConfig = Field(default_factory=StageTrainConfig, description="length, batch, precision")
    lora: LoRAConfig = Field(default_factory=LoRAConfig, description="adapters instead of all weights")
    optimizer: StageOptimizerConfig = Field(default_factory=StageOptimizerConfig, description="update rule")
    schedule: StageScheduleConfig = Field(default_factory=StageScheduleConfig, description="learning rate")
    measure: MeasureConfig = Field(default_factory=MeasureConfig, description="held-out problems")
    layout: LayoutConfig = Field(default_factory=LayoutConfig, description="parallel dimensions")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="state on disk")
    guard: GuardConfig = Field(default_factory=GuardConfig, description="spikes and non-finite values")
    log: StageLogConfig = Field(default_factory=StageLogConfig, description="what is recorded and shown")

    @model_validator(mode="after")
    def _possible(self) -> "StageRecipe":
        if self.layout.cp > 1 or self.layout.pp > 1:
            raise ValueError("layout.cp and pp above 1 are for pretraining. Stages have tp, dp_shard and dp_replicate")
        if self.layout.tp > 1 and self.lora.rank:
            raise ValueError("layout.tp and lora.rank are both set, but adapters are not split. Choose one")
        if self.train.fp8 and self.lora.rank:
            raise ValueError("train.fp8 and lora.rank are both set, but adapters do not support fp8. Choose one")
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
    """The recipe class of a stage.

    name: of the file, for the error. Raises PunaError for an unknown stage.
    """
    if not isinstance(stage, str) or stage not in STAGES:
        found = f"stage = '{stage}' is not a tuning stage." if stage else "it does not set `stage`."
        raise PunaError(f"{name}: {found}", nearest(str(stage), STAGES))
    module, kind, _ = STAGES[stage]
    schema: type[StageBase] = getattr(importlib.import_module(module), kind)
    return schema


def load_stage(path: Path, overrides: Sequence[str] = (), *, stage: str = "") -> Loaded[StageBase]:
    """Read a stage's recipe. stage: the expected stage; empty: any.

    Raises PunaError for a recipe of another stage, and as `core.recipe.load`.
    """
    found = read_toml(path).get("stage")
    schema = stage_schema(found, str(path))
    if stage and found != stage:
        raise PunaError(f"{path} is a recipe for the stage '{found}', not '{stage}'.", f"Use puna tune {found} {path}.")
    return load(schema, path, overrides)
