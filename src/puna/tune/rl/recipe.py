"""Recipes of the stages that learn from the model's own answers: reinforcement and on-policy distillation. No torch."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from puna.core.recipe import Config
from puna.tune.recipe import (
    StageLogConfig,
    StageOptimizerConfig,
    StageRecipe,
    StageScheduleConfig,
    StageTrainConfig,
    TaskLevels,
)


class TaskShare(TaskLevels):
    """A task among those that problems are drawn from; with several levels, the curriculum goes from low to high."""

    share: float = Field(1.0, gt=0, description="of the problems, relative to the other tasks")


class RolloutConfig(Config):
    """How the model's own answers are made. They are drawn from its own distribution: temperature 1, no filter."""

    samples: int = Field(8, gt=0, description="answers to each problem")
    max_tokens: int = Field(64, gt=0, description="tokens of an answer, or of a turn of a tool episode, at most")
    turns: int = Field(4, gt=0, description="turns of the model in a tool episode, at most")
    instruct: bool = Field(False, description="whether problems begin with the task's instruction as a system message")
    updates: int = Field(1, gt=0, description="optimizer steps that share one set of answers, each its own problems")
    epochs: int = Field(1, gt=0, description="passes over one set of answers")
    max_batch: int = Field(256, gt=0, description="answers written at once, at most")
    generator: Literal["engine", "vllm"] = Field("engine", description="who writes the answers; vllm must be installed")
    logprob_gap: float = Field(
        0.05,
        gt=0,
        description="a warning is given when the trainer's and the generator's log probability of the same token, with "
        "the same weights, differ by more than this on average, in nats",
    )


class RewardConfig(Config):
    """What an answer earns: the verdict's score and, where asked for, more."""

    parts: dict[str, float] = Field(
        default_factory=dict, description="weights of parts of a verdict's breakdown that are added to its score"
    )
    overlong: Literal["keep", "mask", "penalty"] = Field(
        "keep",
        description="answers cut off at max_tokens: keep their reward, leave them out of the loss, or take something "
        "off the reward of answers that come near the limit",
    )
    overlong_cache: int = Field(16, ge=0, description="penalty: tokens before the limit over which it grows to 1")
    sandbox: Literal["limits", "confined", "isolated"] = Field(
        "confined", description="least isolation that the model's programs are run behind; below it the stage refuses"
    )


class CurriculumConfig(Config):
    """Which problems: those that are sometimes solved teach, the others do not."""

    low: float = Field(0.3, gt=0, lt=1, description="a pass rate below it moves a task's position down the levels")
    high: float = Field(0.8, gt=0, lt=1, description="a pass rate above it moves the position up")
    window: int = Field(64, gt=0, description="answers at the position before it moves")
    refill: int = Field(
        2, ge=0, description="further rounds of problems in place of those whose answers all score alike"
    )
    min_pass: float = Field(
        0.02, ge=0, lt=1, description="the stage refuses to start when fewer problems than this are solved in 8 samples"
    )
    stop_reward: float = Field(
        0.95, gt=0, description="the stage ends when the moving reward is above it: from there updates only add noise"
    )


class AlarmConfig(Config):
    """Signs that the policy collapses; each takes the stage back to its best weights, with lower learning rates."""

    entropy_low: float = Field(0.05, ge=0, description="moving entropy of a token, as a share of the first iteration's")
    entropy_high: float = Field(4.0, gt=0, description="the same, above which the policy dissolves")
    kl: float = Field(0.5, gt=0, description="mean divergence of a token from the policy that wrote it, in nats")
    ended: float = Field(0.5, ge=0, description="share of answers that end by themselves, as a share of the first's")
    length: float = Field(4.0, gt=0, description="mean length of answers, as a multiple of the first iteration's")
    reward: float = Field(0.5, ge=0, description="moving reward, as a share of the best it was")
    lr_scale: float = Field(0.5, gt=0, le=1, description="factor on the learning rates after going back")


class OnPolicyTrainConfig(StageTrainConfig):
    """How long, how large a batch, in which precision."""

    batch: int = Field(16, gt=0, description="problems in one optimizer step, with all their answers")
    seq_len: int = Field(512, gt=0, description="tokens in a row: a problem and as many of its answers as fit")
    final: Literal["last", "best"] = Field(
        "best", description="which weights the stage ends with: the last ones, or those of the best held-out evaluation"
    )


class OnPolicyOptimizerConfig(StageOptimizerConfig):
    """AdamW whose epsilon keeps it from making noise large where rewards hardly differ."""

    eps: float = Field(1e-5, gt=0, description="AdamW epsilon")


class OnPolicyScheduleConfig(StageScheduleConfig):
    """Learning rate over the stage: warm-up, then constant."""

    decay: float = Field(0.0, ge=0, le=1, description="wsd: share of the stage for linear decay at the end")


class OnPolicyLogConfig(StageLogConfig):
    """What is written and shown during a stage."""

    every: int = Field(1, gt=0, description="steps between lines in metrics.jsonl")
    eval_every: int = Field(10, ge=0, description="steps between held-out evaluations; 0: at the start and end only")


class OnPolicyRecipe(StageRecipe):
    """What reinforcement and distillation share: tasks, and answers that the model writes itself."""

    knows_its_rows: ClassVar[bool] = False

    tasks: tuple[TaskShare, ...] = Field(min_length=1, description="where problems come from")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="how answers are made")
    reward: RewardConfig = Field(default_factory=RewardConfig, description="what an answer earns")
    curriculum: CurriculumConfig = Field(default_factory=CurriculumConfig, description="which problems are asked")
    train: OnPolicyTrainConfig = Field(default_factory=OnPolicyTrainConfig, description="length, batch, precision")
    optimizer: OnPolicyOptimizerConfig = Field(default_factory=OnPolicyOptimizerConfig, description="update rule")
    schedule: OnPolicyScheduleConfig = Field(default_factory=OnPolicyScheduleConfig, description="learning rate")
    log: OnPolicyLogConfig = Field(default_factory=OnPolicyLogConfig, description="what is written and shown")

    @field_validator("tasks")
    @classmethod
    def _there(cls, tasks: tuple[TaskShare, ...]) -> tuple[TaskShare, ...]:
        from puna.core.errors import PunaError
        from puna.tasks.catalogue import find

        for task in tasks:
            try:
                top = len(find(task.name).levels)
            except PunaError as error:
                raise ValueError(str(error)) from None
            wrong = [level for level in task.levels if not 1 <= level <= top]
            if wrong:
                raise ValueError(f"{task.name} has no level {wrong[0]}. It has levels 1 to {top}")
        if len({task.name for task in tasks}) < len(tasks):
            raise ValueError("a task stands there twice. Give it more levels or a larger share")
        return tasks

    @model_validator(mode="after")
    def _fits(self) -> "OnPolicyRecipe":
        if self.rollout.max_tokens >= self.train.seq_len:
            raise ValueError(
                f"rollout.max_tokens = {self.rollout.max_tokens} leaves no room for a problem in rows of "
                f"train.seq_len = {self.train.seq_len} tokens. Lower it, or make rows longer"
            )
        if not self.curriculum.low < self.curriculum.high:
            raise ValueError("curriculum.low must be below curriculum.high")
        return self


class PolicyConfig(Config):
    """The loss."""

    method: Literal["grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce"] = Field(
        "dr_grpo", description="advantages and loss, see docs: all six follow their papers"
    )
    clip_low: float = Field(0.0, ge=0, lt=1, description="ratios below 1 - clip_low are clipped; 0: as in the paper")
    clip_high: float = Field(0.0, ge=0, description="ratios above 1 + clip_high are clipped; 0: as in the paper")
    kl: float = Field(0.0, ge=0, description="weight of the divergence from the weights that the stage started from")


class RLRecipe(OnPolicyRecipe):
    """Reinforcement learning with verifiable rewards."""

    stage: Literal["rl"] = Field("rl", description="which stage this is")
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="the loss")
    alarm: AlarmConfig = Field(default_factory=AlarmConfig, description="signs of collapse")

    @model_validator(mode="after")
    def _comparable(self) -> "RLRecipe":
        if self.rollout.samples < 2:
            raise ValueError("rollout.samples = 1: an answer is judged by the others to its problem. Set 2 or more")
        return self


class DistillRecipe(OnPolicyRecipe):
    """On-policy distillation: the model writes, a larger one says how it would have gone on."""

    stage: Literal["distill"] = Field("distill", description="which stage this is")
    teacher: str = Field("", description="model directory of the teacher; it must have the same tokenizer")
