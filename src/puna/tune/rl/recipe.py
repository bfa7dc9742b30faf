"""Recipes of stages that learn from the model's own answers: reinforcement and distillation.

No torch.
"""

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
    """A task to draw problems from; with several levels, the curriculum goes from low to high."""

    share: float = Field(1.0, gt=0, description="share of the problems, relative to the other tasks")


class RolloutConfig(Config):
    """How answers are generated: from the model's distribution, temperature 1, no filter."""

    samples: int = Field(8, gt=0, description="answers per problem")
    max_tokens: int = Field(64, gt=0, description="maximum tokens of an answer, or of a turn of a tool episode")
    turns: int = Field(4, gt=0, description="maximum turns of the model in a tool episode")
    instruct: bool = Field(False, description="give the task's instruction as the system message")
    updates: int = Field(1, gt=0, description="optimizer steps per set of answers, each on different problems")
    epochs: int = Field(1, gt=0, description="passes over each set of answers")
    max_batch: int = Field(256, gt=0, description="maximum number of answers generated at once")
    generator: Literal["engine", "vllm"] = Field(
        "engine", description="generator of the answers; vllm must be installed"
    )
    logprob_gap: float = Field(
        0.05,
        gt=0,
        description="warn when the trainer's and the generator's log probabilities of the same token, with the same "
        "weights, differ by more than this on average, in nats",
    )


class RewardConfig(Config):
    """Rewards: the verdict's score and, if configured, more."""

    parts: dict[str, float] = Field(
        default_factory=dict, description="weights of parts of a verdict's breakdown that are added to its score"
    )
    overlong: Literal["keep", "mask", "penalty"] = Field(
        "keep",
        description="answers truncated at max_tokens: keep their reward, mask them in the loss, or penalize answers "
        "that come near the limit",
    )
    overlong_cache: int = Field(16, ge=0, description="tokens before the limit over which the penalty grows to 1")
    sandbox: Literal["limits", "confined", "isolated"] = Field(
        "confined", description="minimum sandbox level for the model's programs; with less, the stage does not start"
    )


class CurriculumConfig(Config):
    """Which problems to draw: those that are sometimes solved have a learning signal."""

    low: float = Field(0.3, gt=0, lt=1, description="a pass rate below this moves a task's position down the levels")
    high: float = Field(0.8, gt=0, lt=1, description="a pass rate above this moves the position up")
    window: int = Field(64, gt=0, description="answers at a position before it may move")
    refill: int = Field(
        2, ge=0, description="further rounds of problems to replace those whose answers all score the same"
    )
    min_pass: float = Field(
        0.02, ge=0, lt=1, description="minimum share of problems solved in 8 samples for the stage to start"
    )
    stop_reward: float = Field(
        0.95, gt=0, description="the stage ends at a higher moving reward, as further updates only add noise"
    )


class AlarmConfig(Config):
    """Signs of a collapsing policy.

    Each rolls the stage back to its best weights, with lower learning rates.
    """

    entropy_low: float = Field(0.05, ge=0, description="minimum moving entropy per token, relative to the first set")
    entropy_high: float = Field(4.0, gt=0, description="maximum moving entropy per token, relative to the first set")
    kl: float = Field(0.5, gt=0, description="maximum mean divergence per token from the policy that wrote it, in nats")
    ended: float = Field(0.5, ge=0, description="minimum share of answers with an end token, relative to the first set")
    length: float = Field(4.0, gt=0, description="maximum mean length of answers, relative to the first set")
    reward: float = Field(0.5, ge=0, description="minimum moving reward, relative to its maximum")
    lr_scale: float = Field(0.5, gt=0, le=1, description="factor on the learning rates after a roll-back")


class OnPolicyTrainConfig(StageTrainConfig):
    """Settings of an on-policy stage: length, batch size, precision."""

    batch: int = Field(16, gt=0, description="problems in one optimizer step, with all their answers")
    seq_len: int = Field(512, gt=0, description="tokens in a row: a problem and as many of its answers as fit")
    final: Literal["last", "best"] = Field(
        "best", description="final weights of the stage: the last ones, or those of the best held-out evaluation"
    )


class OnPolicyOptimizerConfig(StageOptimizerConfig):
    """AdamW with an epsilon that avoids amplifying noise when rewards hardly differ."""

    eps: float = Field(1e-5, gt=0, description="AdamW epsilon")


class OnPolicyScheduleConfig(StageScheduleConfig):
    """Learning rate over the stage: warm-up, then constant."""

    decay: float = Field(0.0, ge=0, le=1, description="wsd: share of the stage for the linear decay at the end")


class OnPolicyLogConfig(StageLogConfig):
    """What is recorded and shown during a stage."""

    every: int = Field(1, gt=0, description="steps between lines in metrics.jsonl")
    eval_every: int = Field(10, ge=0, description="steps between held-out evaluations; 0: at the start and end only")


class OnPolicyRecipe(StageRecipe):
    """Shared by reinforcement and distillation: tasks, and answers of the model itself."""

    knows_its_rows: ClassVar[bool] = False

    tasks: tuple[TaskShare, ...] = Field(min_length=1, description="where problems come from")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="how answers are generated")
    reward: RewardConfig = Field(default_factory=RewardConfig, description="rewards of answers")
    curriculum: CurriculumConfig = Field(default_factory=CurriculumConfig, description="which problems to draw")
    train: OnPolicyTrainConfig = Field(default_factory=OnPolicyTrainConfig, description="length, batch, precision")
    optimizer: OnPolicyOptimizerConfig = Field(default_factory=OnPolicyOptimizerConfig, description="update rule")
    schedule: OnPolicyScheduleConfig = Field(default_factory=OnPolicyScheduleConfig, description="learning rate")
    log: OnPolicyLogConfig = Field(default_factory=OnPolicyLogConfig, description="what is recorded and shown")

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
            raise ValueError("a task is listed twice. Give it more levels or a larger share")
        return tasks

    @model_validator(mode="after")
    def _fits(self) -> "OnPolicyRecipe":
        if self.rollout.max_tokens >= self.train.seq_len:
            raise ValueError(
                f"rollout.max_tokens = {self.rollout.max_tokens} leaves no room for a problem in rows of "
                f"train.seq_len = {self.train.seq_len} tokens. Lower it, or raise train.seq_len"
            )
        if not self.curriculum.low < self.curriculum.high:
            raise ValueError("curriculum.low must be below curriculum.high")
        return self


class PolicyConfig(Config):
    """The loss."""

    method: Literal["grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce"] = Field(
        "dr_grpo", description="advantages and loss, see docs/tuning.md; all six follow their papers"
    )
    clip_low: float = Field(0.0, ge=0, lt=1, description="ratios below 1 - clip_low are clipped; 0: as in the paper")
    clip_high: float = Field(0.0, ge=0, description="ratios above 1 + clip_high are clipped; 0: as in the paper")
    kl: float = Field(0.0, ge=0, description="weight of the divergence from the initial weights")


class RLRecipe(OnPolicyRecipe):
    """Reinforcement learning with verifiable rewards."""

    stage: Literal["rl"] = Field("rl", description="name of the stage")
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="the loss")
    alarm: AlarmConfig = Field(default_factory=AlarmConfig, description="signs of collapse")

    @model_validator(mode="after")
    def _comparable(self) -> "RLRecipe":
        if self.rollout.samples < 2:
            raise ValueError(
                "rollout.samples = 1, but answers to a problem are compared with each other. Set 2 or more"
            )
        return self


class DistillRecipe(OnPolicyRecipe):
    """On-policy distillation: a larger model gives its distribution at every answer token."""

    stage: Literal["distill"] = Field("distill", description="name of the stage")
    teacher: str = Field("", description="model directory of the teacher; it must have the same tokenizer")
