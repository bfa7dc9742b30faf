"""The recipe of a long-context extension. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from puna.model.config import ModelConfig, RopeScaling
from puna.train.recipe import Recipe
from puna.tune.recipe import StageRecipe


class ExtendRecipe(StageRecipe):
    """Continues pretraining with longer rows and slower rotary angles.

    train.seq_len is the new context.
    """

    stage: Literal["extend"] = Field("extend", description="long-context extension")
    corpus: str = Field("", description="corpus directory made by `puna data build`, preferably with long documents")
    rope: Literal["theta", "linear", "llama3"] = Field(
        "theta",
        description="theta: a larger base (Llama 3, arXiv 2309.16039); linear: positions divided (arXiv 2306.15595); "
        "llama3: slow angles divided, fast angles unchanged (Llama 3.1)",
    )
    rope_theta: float = Field(
        0.0, ge=0, description="rope = 'theta': the new base; 0: old base * factor^(d / (d - 2)), the NTK-aware rule"
    )

    @model_validator(mode="after")
    def _something(self) -> "ExtendRecipe":
        if not self.corpus:
            raise ValueError("corpus is empty. Set it to the corpus directory to continue training on")
        if self.lora.rank:
            raise ValueError("lora.rank is set, but this stage trains all weights. Remove lora")
        return self

    def longer(self, model: ModelConfig) -> ModelConfig:
        """The model's shape with the new context, train.seq_len."""
        old, new = model.max_position_embeddings, self.train.seq_len
        if new <= old:
            raise ValueError(f"train.seq_len = {new} is not longer than the model's context of {old} tokens")
        factor = new / old
        change: dict[str, object] = {"max_position_embeddings": new, "preset": None}
        if self.rope == "theta":
            exponent = model.head_dim / (model.head_dim - 2) if model.head_dim > 2 else 1.0
            change["rope_theta"] = self.rope_theta or model.rope_theta * factor**exponent
        else:
            change["rope_scaling"] = RopeScaling(
                rope_type=self.rope, factor=factor, original_max_position_embeddings=old
            )
        return model.model_copy(update=change)

    def as_pretraining(self, model: ModelConfig) -> Recipe:
        """The pretraining run that extends the context."""
        common = set(type(self.train).model_fields) - {"final"}
        return Recipe.model_validate(
            {
                "name": self.run_name,
                "corpus": self.corpus,
                "start_from": self.model,
                "model": self.longer(model).model_dump(),
                "train": self.train.model_dump(include=common),
                "optimizer": self.optimizer.model_dump(),
                "schedule": self.schedule.model_dump(),
                "layout": self.layout.model_dump(),
                "checkpoint": self.checkpoint.model_dump(),
                "guard": self.guard.model_dump(),
                "log": self.log.model_dump(),
            }
        )
