"""The recipe of rejection sampling: which prompts, how many answers, who picks. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from puna.tune.recipe import StageBase, TaskLevels


class PromptTaskConfig(TaskLevels):
    """Problems of a task that answers are sampled to; never those that are held out."""

    count: int = Field(100, gt=0, description="problems, the levels in turn")


class RejectionRecipe(StageBase):
    """Rejection sampling: K answers to a prompt, the best of them is kept (Llama 3: K = 10 to 30)."""

    stage: Literal["rejection"] = Field("rejection", description="rejection sampling")
    tasks: tuple[PromptTaskConfig, ...] = Field((), description="tasks whose problems are prompts")
    files: tuple[str, ...] = Field((), description="dialogues; what stands before the last answer is the prompt")
    instruct: bool = Field(False, description="problems begin with the task's instruction as the system message")
    samples: int = Field(16, gt=0, description="K: answers sampled to each prompt")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    max_tokens: int = Field(256, gt=0, description="tokens of an answer, at most")
    pick: Literal["verifier", "reward"] = Field(
        "verifier", description="who picks: the task's own check (a right answer or none), or a reward model"
    )
    reward_model: str = Field("", description="directory of the reward model, for pick = 'reward'")
    keep: int = Field(1, gt=0, description="different answers kept of each prompt")
    seed: int = Field(0, ge=0, description="of problems and samples")

    @model_validator(mode="after")
    def _possible(self) -> "RejectionRecipe":
        if not self.tasks and not self.files:
            raise ValueError("tasks and files are both empty. Say what answers are sampled to")
        if self.pick == "verifier" and self.files:
            raise ValueError("files have no verifier. Use pick = 'reward', or tasks alone")
        if self.pick == "reward" and not self.reward_model:
            raise ValueError("pick = 'reward' needs reward_model. Make one with puna tune reward")
        return self
