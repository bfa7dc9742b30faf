"""The recipe of all stages after pretraining, in Llama 3's order. No torch."""

from typing import Any, Literal

from pydantic import Field, model_validator

from puna.tune.recipe import MeasureConfig, StageBase

_LEFT_OUT = "; empty: left out"


class AllRecipe(StageBase):
    """All stages: SFT, reward model, rejection sampling, SFT, DPO, reinforcement, averaging.

    Each section contains the keys of that stage's recipe; models and files that one stage produces for another are
    filled in.
    """

    stage: Literal["all"] = Field("all", description="all stages, in rounds")
    rounds: int = Field(1, gt=0, description="number of rounds; each starts from the result of the one before")
    control: bool = Field(
        True,
        description="compare each stage after the first with a control: further fine-tuning from the same weights for "
        "the same time",
    )
    measure: MeasureConfig = Field(default_factory=MeasureConfig, description="held-out problems")
    sft: dict[str, Any] = Field(default_factory=dict, description="the first fine-tuning: keys of an sft recipe")
    annotate: dict[str, Any] = Field(
        default_factory=dict,
        description="answers ranked by the tasks' checks, for reward model and DPO: keys of a rejection recipe"
        + _LEFT_OUT,
    )
    reward: dict[str, Any] = Field(default_factory=dict, description="keys of a reward recipe" + _LEFT_OUT)
    rejection: dict[str, Any] = Field(default_factory=dict, description="keys of a rejection recipe" + _LEFT_OUT)
    again: dict[str, Any] = Field(
        default_factory=dict, description="fine-tuning on the picked answers: keys that differ from `sft`" + _LEFT_OUT
    )
    dpo: dict[str, Any] = Field(default_factory=dict, description="keys of a dpo recipe" + _LEFT_OUT)
    rl: dict[str, Any] = Field(default_factory=dict, description="keys of an rl recipe" + _LEFT_OUT)
    average: bool = Field(True, description="end with the mean of the round's models, if it is not worse")

    @model_validator(mode="after")
    def _possible(self) -> "AllRecipe":
        if not self.sft:
            raise ValueError("sft is empty. The first stage is supervised fine-tuning")
        if not self.measure.tasks:
            raise ValueError("measure.tasks is empty. Set the tasks on which the stages are measured")
        if self.reward and not self.annotate:
            raise ValueError("reward needs annotate: without ranked answers there is nothing to learn")
        if self.rejection.get("pick") == "reward" and not self.reward:
            raise ValueError("rejection.pick = 'reward' needs a [reward] section")
        return self
