"""The recipe of checkpoint averaging. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from puna.core.recipe import Config
from puna.tune.recipe import StageBase


class PartConfig(Config):
    """One of the models to average."""

    path: str = Field(description="model directory")
    weight: float = Field(1.0, gt=0, description="weight of this model, relative to the others")


class AverageRecipe(StageBase):
    """The mean of several models' weights, which Llama 3 uses after every stage.

    See arXiv 2203.05482.
    """

    stage: Literal["average"] = Field("average", description="averaging of checkpoints")
    models: tuple[PartConfig, ...] = Field((), description="models to average; at least two")

    @model_validator(mode="after")
    def _several(self) -> "AverageRecipe":
        if len(self.models) < 2:
            raise ValueError("models has fewer than two entries. List the models to average")
        return self
