"""The recipe of supervised fine-tuning: dialogues and demonstrations, and their shares.

No torch.
"""

from typing import Literal

from pydantic import Field, model_validator

from puna.core.recipe import Config
from puna.tune.recipe import StageRecipe, TaskLevels


class FileConfig(Config):
    """A file of dialogues."""

    path: str = Field(description="JSON lines, a JSON array or parquet (.gz, .xz, .bz2, .zst too)")
    share: float = Field(1.0, gt=0, description="share of the examples, relative to the other sources")


class DemonstrationConfig(TaskLevels):
    """Reference answers to a task's problems, excluding held-out problems."""

    share: float = Field(1.0, gt=0, description="share of the examples, relative to the other sources")
    count: int = Field(0, ge=0, description="number of problems, repeated; 0: always new ones")


class SFTDataConfig(Config):
    """The training data."""

    files: tuple[FileConfig, ...] = Field((), description="files of dialogues")
    tasks: tuple[DemonstrationConfig, ...] = Field((), description="demonstrations of tasks")
    instruct: bool = Field(False, description="give the task's instruction as the system message")
    overlong: Literal["truncate", "drop"] = Field(
        "truncate", description="dialogues longer than a row: truncate or drop them"
    )
    heldout: float = Field(0.0, ge=0, lt=1, description="share of the files' dialogues held out to measure the loss")


class SFTRecipe(StageRecipe):
    """Supervised fine-tuning."""

    stage: Literal["sft"] = Field("sft", description="supervised fine-tuning")
    data: SFTDataConfig = Field(default_factory=SFTDataConfig, description="training data")

    @model_validator(mode="after")
    def _something(self) -> "SFTRecipe":
        if not self.data.files and not self.data.tasks:
            raise ValueError("data.files and data.tasks are both empty. Set at least one of them")
        return self
