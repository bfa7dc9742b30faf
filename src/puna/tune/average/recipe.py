"""The recipe of checkpoint averaging. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from puna.core.recipe import Config
from puna.tune.recipe import StageBase


class PartConfig(Config):
    """One of the models."""

    path: str = Field(description="model directory")
    weight: float = Field(1.0, gt=0, description="its share, relative to the others")


class AverageRecipe(StageBase):
    """The mean of several models' weights (arXiv 2203.05482), as Llama 3 takes it after every stage."""

    stage: Literal["average"] = Field("average", description="averaging of checkpoints")
    models: tuple[PartConfig, ...] = Field((), description="the models; two at least")

    @model_validator(mode="after")
    def _several(self) -> "AverageRecipe":
        if len(self.models) < 2:
            raise ValueError("models has fewer than two entries. Name the models that are averaged")
        return self
