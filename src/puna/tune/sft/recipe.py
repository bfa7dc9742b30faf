"""The recipe of supervised fine-tuning: which dialogues and demonstrations, in which shares. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from puna.core.recipe import Config
from puna.tune.recipe import StageRecipe, TaskLevels


class FileConfig(Config):
    """Dialogues of a file."""

    path: str = Field(description="JSON lines, a JSON array or parquet (.gz, .xz, .bz2, .zst too)")
    share: float = Field(1.0, gt=0, description="examples from here, relative to the other sources")


class DemonstrationConfig(TaskLevels):
    """Reference answers to a task's problems; never to problems that are held out."""

    share: float = Field(1.0, gt=0, description="examples from here, relative to the other sources")
    count: int = Field(0, ge=0, description="so many problems, again and again; 0: new ones without end")


class SFTDataConfig(Config):
    """What is learned from."""

    files: tuple[FileConfig, ...] = Field((), description="files of dialogues")
    tasks: tuple[DemonstrationConfig, ...] = Field((), description="demonstrations of tasks")
    instruct: bool = Field(False, description="demonstrations begin with the task's instruction as the system message")
    overlong: Literal["truncate", "drop"] = Field(
        "truncate", description="dialogues longer than a row: cut off at its end, or left out"
    )
    heldout: float = Field(0.0, ge=0, lt=1, description="share of the files' dialogues that the loss is measured on")


class SFTRecipe(StageRecipe):
    """Supervised fine-tuning."""

    stage: Literal["sft"] = Field("sft", description="supervised fine-tuning")
    data: SFTDataConfig = Field(default_factory=SFTDataConfig, description="what is learned from")

    @model_validator(mode="after")
    def _something(self) -> "SFTRecipe":
        if not self.data.files and not self.data.tasks:
            raise ValueError("data.files and data.tasks are both empty. Say what the model is to learn from")
        return self
