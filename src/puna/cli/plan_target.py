"""What `puna plan TARGET` is about: a preset, a training recipe or a model directory, with what the command line adds.

Everything that is not said is filled in as published runs of that size did it (`plan.defaults`), and told as an
assumption.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.core.errors import PunaError, nearest
from puna.core.units import format_count, parse_count
from puna.model.config import PRESETS, ModelConfig
from puna.plan.defaults import TOKENS_PER_PARAMETER, divisible_batch, pretraining_length, tokens_per_step
from puna.plan.hardware import Accelerator
from puna.plan.jobs import PRECISIONS, RECOMPUTE, SHARDING
from puna.plan.predict import Question
from puna.plan.shape import Shape, from_config, published_shapes

if TYPE_CHECKING:
    from puna.train.recipe import Recipe

_UNIT_HINT = "Write tokens with their unit, such as 15.6T, 300B or 20M."


@dataclass(frozen=True)
class Target:
    """What is to be trained. sequences: of a step, exactly, else None and `batch_tokens` is about what a step has.

    tokens: of the run. recipe: the training recipe where there is one. assumptions: what was filled in, a line each.
    """

    name: str
    config: ModelConfig | None  # None for a published shape that Puna's own network does not have
    shape: Shape
    seq_len: int
    sequences: int | None
    batch_tokens: float
    tokens: float
    tokens_given: bool
    precision: str
    stack: str
    recipe: "Recipe | None"
    recipe_text: str
    assumptions: tuple[str, ...]

    @property
    def muon_iterations(self) -> int:
        """Of Muon's orthogonalisation where the recipe trains with it; 0 for AdamW."""
        optimizer = self.recipe.optimizer if self.recipe else None
        return optimizer.newton_schulz_steps if optimizer and optimizer.kind == "muon" else 0

    def question(self, accelerator: Accelerator, count: int) -> Question:
        """The question for so many accelerators; a batch that was not given exactly follows their number."""
        return Question(
            model=self.name,
            shape=self.shape,
            accelerator=accelerator,
            accelerators=count,
            seq_len=self.seq_len,
            batch=self.sequences or divisible_batch(self.batch_tokens / self.seq_len, count, self.stack),
            precision=self.precision,
            stack=self.stack,
        )

    def preset(self, name: str) -> "Target":
        """The same terms for another model of the presets, with a batch and a length as that one's."""
        config = ModelConfig(preset=name)
        shape = from_config(config)
        return replace(
            self,
            name=name,
            config=config,
            shape=shape,
            seq_len=min(self.seq_len, config.max_position_embeddings),
            sequences=None,
            batch_tokens=tokens_per_step(config.num_parameters())[0],
        )


def find_target(
    name: str,
    *,
    overrides: Sequence[str] = (),
    accelerator: Accelerator,
    machine: bool,
    tokens: str | None = None,
    batch: str | None = None,
    seq_len: str | None = None,
    precision: str | None = None,
    stack: str | None = None,
) -> Target:
    """Read TARGET and the options. machine: the plan is for the one at hand.

    Raises PunaError for an unknown model, a count without unit, and what cannot be.
    """
    recipe, recipe_text = None, ""
    told: list[str] = []
    config: ModelConfig | None = None
    published = published_shapes().get(name)
    if overrides and (name in PRESETS or published):
        raise PunaError(f"'{overrides[0]}' overrides a recipe, but {name} is a preset.", "Give a recipe, or options.")
    if name in PRESETS:
        config = ModelConfig(preset=name)
    elif published:
        if stack == "puna":
            raise PunaError(f"puna train has no network for {name}.", "Leave --stack out, or name another.")
        stack = stack or _default_stack(told, True)
    elif name.endswith(".toml"):
        recipe, recipe_text, name = _recipe(Path(name), overrides)
        config = recipe.model
    else:
        name, config = _directory(name)
    stack = stack or _default_stack(told, not machine and recipe is None)
    shape = from_config(config) if config else published[0] if published else None
    assert shape is not None  # one of the two it was
    parameters = round(float(shape.num_parameters()))
    length = _positive(seq_len, "--seq-len") if seq_len else recipe.train.seq_len if recipe else 0
    if not length:
        length = pretraining_length(config) if config else published[1] if published else 0
        told.append(f"sequences of {length:,} tokens, the model's own pretraining length (--seq-len)")
    sequences, batch_tokens = _batch(batch)
    if batch is None:
        if recipe:
            sequences = recipe.train.batch
        else:
            batch_tokens, source = tokens_per_step(parameters)
            told.append(f"about {format_count(batch_tokens)} tokens a step (--batch). {source}")
    total, given = _tokens(tokens, recipe, round(float(shape.active_parameters())) if published else parameters)
    if not given:
        kind = "active parameter" if published else "parameter"
        told.append(
            f"{format_count(total)} tokens, {TOKENS_PER_PARAMETER:g} for each {kind} (--tokens): compute-optimal, "
            "arXiv 2203.15556"
        )
    if precision is not None and precision not in PRECISIONS:
        raise PunaError(f"--precision {precision} is not known.", nearest(precision, PRECISIONS))
    precision = precision or _precision(recipe, accelerator, told)
    if recipe and recipe.optimizer.kind == "muon" and not (machine and stack == "puna"):
        told.append("the optimizer is counted as AdamW; Muon keeps one moment less of the blocks' matrices")
    return Target(
        name=name,
        config=config,
        shape=shape,
        seq_len=length,
        sequences=sequences,
        batch_tokens=batch_tokens,
        tokens=total,
        tokens_given=given,
        precision=precision,
        stack=stack,
        recipe=recipe,
        recipe_text=recipe_text,
        assumptions=tuple(told),
    )


def _default_stack(told: list[str], widest: bool) -> str:
    """The software that a plan assumes when nobody says it, told as an assumption."""
    told.append(
        "software: megatron-core, which most published runs used; --stack puna plans what puna train runs today"
        if widest
        else "software: puna, what puna train runs today; --stack megatron-core plans with model parallelism"
    )
    return "megatron-core" if widest else "puna"


def recipe_layout(recipe: "Recipe", count: int) -> dict[str, Any]:
    """The layout that a recipe asks for on so many processes, as columns of `plan.jobs.Layouts`.

    Raises PunaError where the recipe's layout does not fill them or its batch does not divide.
    """
    layout, train = recipe.layout.resolve(count), recipe.train
    sharded, copies = layout.dp_shard > 1, layout.dp_replicate > 1
    if train.batch % layout.data_parallel:
        raise PunaError(
            f"train.batch = {train.batch} rows cannot be shared evenly by {layout.data_parallel} processes.",
            "Change train.batch or the fleet.",
        )
    return {
        "tp": layout.tp,
        "cp": layout.cp,
        "pp": layout.pp,
        "dp": layout.data_parallel,
        "micro_batch": train.micro_batch or train.batch // layout.data_parallel,
        "sharding": SHARDING.index("hsdp" if sharded and copies else "zero3" if sharded else "ddp"),
        "recompute": RECOMPUTE.index({"selective": "ops"}.get(train.checkpointing, train.checkpointing)),
        "sequence_parallel": layout.tp > 1,
    }


def is_compiled(recipe: "Recipe | None", accelerator: Accelerator) -> bool:
    """Whether the trainer would compile blocks here, as `train.parallel.resolve_compile` decides."""
    if recipe is not None and recipe.train.compile != "auto":
        return recipe.train.compile == "on"
    return accelerator.generation != "cpu" or any(
        shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")
    )


def parse_tokens(text: str) -> int:
    """A number of tokens with its unit, or a whole number from a million on. Raises PunaError for "15.6"."""
    count = parse_count(text)
    if not _has_unit(text) and (count < 1e6 or "." in text):
        raise PunaError(f"--tokens {text} has no unit.", f"Did you mean {text.strip()}T? {_UNIT_HINT}")
    if count < 1:
        raise PunaError(f"--tokens {text} trains nothing.", _UNIT_HINT)
    return count


# -- pieces ----------------------------------------------------------------------------------------------------------


def _recipe(path: Path, overrides: Sequence[str]) -> "tuple[Recipe, str, str]":
    from puna.core.recipe import dump, load
    from puna.train.recipe import Recipe

    recipe = load(Recipe, path, overrides).value
    text = dump(recipe) if overrides else path.read_text(encoding="utf-8")
    name = recipe.name if recipe.name != "run" else path.stem
    return recipe, text, name


def _directory(name: str) -> tuple[str, ModelConfig]:
    path = Path(name)
    where = path / "model" if (path / "model" / "config.json").is_file() else path  # a run directory holds one
    if not (where / "config.json").is_file():
        if path.is_dir():
            raise PunaError(f"{name} holds no config.json, so it is no model.", "Give a model or run directory.")
        raise PunaError(
            f"'{name}' is no preset, recipe or model directory.", nearest(name, [*PRESETS, *published_shapes()])
        )
    from puna.core.files import read_json

    return path.resolve().name, ModelConfig.from_hf(read_json(where / "config.json"), str(where / "config.json"))


def _tokens(text: str | None, recipe: "Recipe | None", parameters: int) -> tuple[float, bool]:
    if text is not None:
        return float(parse_tokens(text)), True
    if recipe is not None:
        return float(recipe.total_steps * recipe.tokens_per_step), True
    return TOKENS_PER_PARAMETER * parameters, False


def _batch(text: str | None) -> tuple[int | None, float]:
    """(sequences, 0) for a whole number, (None, tokens) for one with a unit; "tokens" and "sequences" may follow it."""
    if text is None:
        return None, 0.0
    number, _, word = text.strip().partition(" ")
    if word not in ("", "tokens", "sequences"):
        raise PunaError(f"--batch {text} is neither sequences nor tokens.", "Write it like 2048 or 16M.")
    count = parse_count(number)
    if count < 1:
        raise PunaError(f"--batch {text} is nothing to train on.", "Give at least one sequence, such as 512.")
    if word == "tokens" or (_has_unit(number) and word != "sequences"):
        return None, float(count)
    if "." in number:
        raise PunaError(f"--batch {text} has no unit.", f"Did you mean {number}M tokens? Sequences are whole.")
    return count, 0.0


def _positive(text: str, option: str) -> int:
    count = parse_count(text)
    if count < 1:
        raise PunaError(f"{option} {text} is less than one token.", "Give a number of tokens, such as 8192.")
    return count


def _has_unit(text: str) -> bool:
    return text.strip()[-1:].isalpha()


def _precision(recipe: "Recipe | None", accelerator: Accelerator, told: list[str]) -> str:
    """The number format of the products that the recipe means on this accelerator."""
    if recipe is not None and recipe.train.fp8:
        return "fp8"
    if recipe is not None and recipe.train.precision == "fp32":
        return "fp32"
    if recipe is not None and recipe.train.precision in ("bf16", "mixed"):
        if recipe.train.precision == "bf16":
            told.append("memory is counted with fp32 weights; all in bf16 it is less")
        return "bf16"
    if accelerator.generation == "cpu":
        # As `train.parallel.resolve_precision`: products in bf16 where they are fast, which their peak tells.
        fast = accelerator.bf16_tflops > (accelerator.fp32_tflops or accelerator.bf16_tflops)
        return "bf16" if fast else "fp32"
    return "bf16"
