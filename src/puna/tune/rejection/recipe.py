"""The recipe of rejection sampling: which prompts, how many answers, how to pick. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from puna.tune.recipe import StageBase, TaskLevels


class PromptTaskConfig(TaskLevels):
    """Problems of a task to sample answers to; never held-out problems."""

    count: int = Field(100, gt=0, description="number of problems, alternating between the levels")


class RejectionRecipe(StageBase):
    """Rejection sampling: sample K answers to a prompt and keep the best.

    Llama 3 used K = 10 to 30.
    """

    stage: Literal["rejection"] = Field("rejection", description="rejection sampling")
    tasks: tuple[PromptTaskConfig, ...] = Field((), description="tasks whose problems are used as prompts")
    files: tuple[str, ...] = Field((), description="dialogues; everything before the last answer is the prompt")
    instruct: bool = Field(False, description="give the task's instruction as the system message")
    samples: int = Field(16, gt=0, description="K: answers sampled per prompt")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    max_tokens: int = Field(256, gt=0, description="maximum tokens of an answer")
    pick: Literal["verifier", "reward"] = Field(
        "verifier", description="how to pick: by the task's check (only right answers), or by a reward model"
    )
    reward_model: str = Field("", description="directory of the reward model, for pick = 'reward'")
    keep: int = Field(1, gt=0, description="number of different answers to keep per prompt")
    seed: int = Field(0, ge=0, description="seed of the problems and samples")

    @model_validator(mode="after")
    def _possible(self) -> "RejectionRecipe":
        if not self.tasks and not self.files:
            raise ValueError("tasks and files are both empty. Set one of them to the prompts")
        if self.pick == "verifier" and self.files:
            raise ValueError("files have no verifier. Use pick = 'reward', or only tasks")
        if self.pick == "reward" and not self.reward_model:
            raise ValueError("pick = 'reward' needs reward_model. Create one with puna tune reward")
        return self
