"""The recipes of reward models and direct preference optimisation. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from puna.core.recipe import Config
from puna.tune.recipe import StageOptimizerConfig, StageRecipe


class PreferenceDataConfig(Config):
    """Which preferences."""

    files: tuple[str, ...] = Field((), description="files of preferences (JSON lines, a JSON array or parquet)")
    overlong: Literal["truncate", "drop"] = Field(
        "truncate", description="answers longer than a row: truncate them, or drop the preference"
    )
    heldout: float = Field(0.05, ge=0, lt=1, description="share of the preferences on which accuracy is measured")


class PreferenceRecipe(StageRecipe):
    """Shared by stages that learn from preferences."""

    data: PreferenceDataConfig = Field(default_factory=PreferenceDataConfig, description="preferences")

    @model_validator(mode="after")
    def _something(self) -> "PreferenceRecipe":
        if not self.data.files:
            raise ValueError("data.files is empty. List the files with preferences")
        return self


class RewardRecipe(PreferenceRecipe):
    """A reward model: the network with a head that outputs one number."""

    stage: Literal["reward"] = Field("reward", description="a reward model")


class DPOOptimizerConfig(StageOptimizerConfig):
    """AdamW with very small rates: preferences change a model only a little."""

    lr: float = Field(1e-5, gt=0, description="AdamW learning rate for all parameters without a separate rate below")


class DPOConfig(Config):
    """The loss. The defaults are Llama 3's (arXiv 2407.21783, 4.1.4)."""

    loss: Literal["dpo", "ipo", "simpo", "kto"] = Field("dpo", description="which loss")
    beta: float = Field(0.1, gt=0, description="how strongly the model is kept near where it began (simpo: about 2)")
    nll: float = Field(0.2, ge=0, description="weight of the chosen answers' cross entropy, mean over their tokens")
    mask_format: bool = Field(
        True, description="exclude headers and end tokens of both answers from the preference (not from the nll)"
    )
    gamma: float = Field(0.5, ge=0, description="simpo: target margin of the chosen answer")
    good_weight: float = Field(1.0, ge=0, description="kto: weight of good answers")
    bad_weight: float = Field(1.0, ge=0, description="kto: weight of bad answers")


class DPORecipe(PreferenceRecipe):
    """Direct preference optimisation and its relatives."""

    stage: Literal["dpo"] = Field("dpo", description="direct preference optimisation")
    dpo: DPOConfig = Field(default_factory=DPOConfig, description="the loss")
    optimizer: DPOOptimizerConfig = Field(default_factory=DPOOptimizerConfig, description="update rule")
