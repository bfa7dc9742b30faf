"""Resolve TARGET of `puna plan`: a preset, a training recipe or a model directory.

Values that are not given default to those of published runs of that size (`plan.layouts.defaults`), and are noted as
assumptions.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.core.errors import PunaError, RecipeError, nearest
from puna.core.units import format_count, parse_count
from puna.model.config import PRESETS, ModelConfig
from puna.model.hub import model_name
from puna.model.layout import Layout
from puna.plan.equations.columns import PRECISIONS
from puna.plan.equations.constants import find_stack
from puna.plan.equations.cost_model import CostModel
from puna.plan.equations.hardware import Accelerator, AcceleratorGroup, find_accelerator, parse_fleet
from puna.plan.equations.shape import Shape, from_config, published_shapes
from puna.plan.evidence.calibrated import calibrated_cost_model
from puna.plan.evidence.local_device import device_here, has_compiler, read_calibration, this_machine
from puna.plan.layouts.defaults import TOKENS_PER_PARAMETER, divisible_batch, pretraining_length, tokens_per_step
from puna.plan.layouts.predict import Question

if TYPE_CHECKING:
    from puna.train.recipe import Recipe

_UNIT_HINT = "Write tokens with their unit, such as 15.6T, 300B or 20M."


@dataclass(frozen=True)
class Target:
    """What to train.

    sequences: exact batch, or None when `batch_tokens` gives the approximate tokens per step. tokens: of the run.
    recipe: the training recipe, if any. assumptions: the values that were filled in, one line each.
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
        """Iterations of Muon's orthogonalization, or 0 for AdamW."""
        optimizer = self.recipe.optimizer if self.recipe else None
        return optimizer.newton_schulz_steps if optimizer and optimizer.kind == "muon" else 0

    def question(self, accelerator: Accelerator, count: int) -> Question:
        """The question for `count` accelerators; an approximate batch is rounded to suit them."""
        return Question(
            model=self.name,
            shape=self.shape,
            accelerator=accelerator,
            accelerators=count,
            seq_len=self.seq_len,
            batch=self.sequences or divisible_batch(self.batch_tokens / self.seq_len, count, self.stack),
            precision=self.precision,
            costs=CostModel(self.stack),
        )

    def on_own_stack(self) -> "Target | None":
        """The same target for `puna train` itself; None where it is that already, or has no network for the shape."""
        return None if self.stack == "puna" or self.config is None else replace(self, stack="puna")

    def recipe_layout(self, accelerator: Accelerator, count: int) -> Layout | None:
        """The recipe's own layout, if it has one that can run on this fleet."""
        if self.recipe is None or self.stack != "puna":
            return None
        try:
            return self.recipe.resolve_layout(count, on_cpu=accelerator.generation == "cpu")
        except PunaError:
            return None

    def recipe_tree(self, tokens: float) -> dict[str, Any]:
        """The recipe, or one for the target's shape, as plain values, for a run of `tokens`.

        Raises PunaError for a shape that the trainer has no network for.
        """
        tree: dict[str, Any] = tomllib.loads(self.recipe_text) if self.recipe_text else {}
        if not tree and self.config is None:
            raise PunaError(
                f"puna train has no network for {self.name}, so there is nothing to launch.",
                "Plan a dense Llama, or omit --emit.",
            )
        if not tree and self.config:
            shape = self.config.model_dump(exclude_none=True)
            tree = {"corpus": "", "model": {"preset": self.name} if self.config.preset else shape}
        if self.recipe is None or tokens != self.recipe.total_steps * self.recipe.tokens_per_step:
            tree["train"] = dict(tree.get("train", {})) | {"tokens": round(tokens), "steps": 0}
        return tree

    def preset(self, name: str) -> "Target":
        """The same target for another preset, with that preset's batch and length."""
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


@dataclass(frozen=True)
class Options:
    """Options of the command line as typed, or None."""

    tokens: str | None = None
    batch: str | None = None
    seq_len: str | None = None
    precision: str | None = None
    stack: str | None = None


@dataclass(frozen=True)
class _Source:
    """What a target's name refers to.

    It is a network that Puna has (config), or a published shape and its length.
    """

    name: str
    config: ModelConfig | None = None
    published: tuple[Shape, int] | None = None
    recipe: "Recipe | None" = None
    recipe_text: str = ""

    @property
    def shape(self) -> Shape:
        if self.config:
            return from_config(self.config)
        assert self.published is not None
        return self.published[0]


def find_target(
    name: str, overrides: Sequence[str], options: Options, *, accelerator: Accelerator, machine: bool
) -> Target:
    """Resolve the target of a plan from its name and options.

    machine: the plan is for this machine. Raises PunaError for an unknown model, stack or precision, and for counts
    that are invalid or lack a unit.
    """
    notes: list[str] = []
    source = _source(name, overrides)
    stack = _stack(source, options.stack, notes, machine)
    seq_len = _seq_len(source, options.seq_len, notes)
    sequences, batch_tokens = _batch_of(source, options.batch, notes)
    total, given = _tokens_of(source, options.tokens, notes)
    precision = _precision(source.recipe, options.precision, accelerator, notes)
    recipe = source.recipe
    if recipe and recipe.optimizer.kind == "muon" and not (machine and stack == "puna"):
        notes.append("the optimizer is counted as AdamW; Muon stores one moment fewer for the blocks' matrices")
    return Target(
        name=source.name,
        config=source.config,
        shape=source.shape,
        seq_len=seq_len,
        sequences=sequences,
        batch_tokens=batch_tokens,
        tokens=total,
        tokens_given=given,
        precision=precision,
        stack=stack,
        recipe=recipe,
        recipe_text=source.recipe_text,
        assumptions=tuple(notes),
    )


def fleet_for(text: str | None, *, limited: bool) -> AcceleratorGroup:
    """Resolve the accelerators of a plan: the named ones, or this machine's.

    limited: the plan is limited by money or days, not by accelerators; without a name it is then for one node of H100,
    for its price. Raises RecipeError for a fleet of several kinds.
    """
    if text:
        fleet = parse_fleet(text)
        if len(fleet.groups) > 1:
            raise RecipeError(
                f"'{text}' has {len(fleet.groups)} kinds of accelerators, and one synchronous job would run at "
                "the pace of the slowest.",
                f"Plan one job for each kind, or list them all with: puna plan fleet {text}",
            )
        return fleet.groups[0]
    if limited:
        accelerator = find_accelerator("h100")
        return AcceleratorGroup(count=accelerator.node_size, accelerator=accelerator)
    return this_machine()


def on_this_machine(target: Target, question: Question) -> tuple[Question, str]:
    """The question with this machine's measured rates, and a note about them.

    For Puna's own runs.
    """
    accelerator = question.accelerator
    calibration = read_calibration(device_here("cpu" if accelerator.generation == "cpu" else "cuda"))
    costs = calibrated_cost_model(
        question,
        calibration,
        muon_iterations=target.muon_iterations,
        compiled=is_compiled(target.recipe, accelerator),
    )
    note = "this machine's rates are estimated; `puna plan calibrate` measures them"
    if calibration:
        note = f"this machine's rates as measured on {calibration.date} (puna plan calibrate)"
    return replace(question, costs=costs), note


def is_compiled(recipe: "Recipe | None", accelerator: Accelerator) -> bool:
    """Whether the trainer would compile blocks here, as `resolve_compile` decides.

    See `train.parallel.compute`.
    """
    if recipe is not None and recipe.train.compile != "auto":
        return recipe.train.compile == "on"
    return accelerator.generation != "cpu" or has_compiler()


def parse_tokens(text: str) -> int:
    """A number of tokens with its unit, or a whole number from a million on.

    Raises PunaError for "15.6".
    """
    count = parse_count(text)
    if not _has_unit(text) and (count < 1e6 or "." in text):
        raise PunaError(f"--tokens {text} has no unit.", f"Did you mean {text.strip()}T? {_UNIT_HINT}")
    if count < 1:
        raise PunaError(f"--tokens {text} trains nothing.", _UNIT_HINT)
    return count


# -- pieces ----------------------------------------------------------------------------------------------------------


def _source(name: str, overrides: Sequence[str]) -> _Source:
    published = published_shapes().get(name)
    if overrides and (name in PRESETS or published):
        raise PunaError(f"'{overrides[0]}' overrides a recipe, but {name} is a preset.", "Give a recipe, or options.")
    if name in PRESETS:
        return _Source(name, config=ModelConfig(preset=name))
    if published:
        return _Source(name, published=published)
    return _recipe(Path(name), overrides) if name.endswith(".toml") else _directory(name)


def _stack(source: _Source, given: str | None, notes: list[str], machine: bool) -> str:
    """The software stack; a default is noted."""
    if given:
        if source.published and given == "puna":
            raise PunaError(f"puna train has no network for {source.name}.", "Omit --stack, or name another.")
        return find_stack(given)
    if source.published or not (machine or source.recipe):
        notes.append(
            "software: megatron-core, which most published runs used; --stack puna plans what puna train supports today"
        )
        return "megatron-core"
    notes.append("software: puna, what puna train supports today; --stack megatron-core plans with model parallelism")
    return "puna"


def _seq_len(source: _Source, given: str | None, notes: list[str]) -> int:
    if given:
        return _positive(given, "--seq-len")
    if source.recipe:
        return source.recipe.train.seq_len
    length = source.published[1] if source.published else 0
    if source.config:
        length = pretraining_length(source.config)
    notes.append(f"sequences of {length:,} tokens, the model's own pretraining length (--seq-len)")
    return length


def _batch_of(source: _Source, given: str | None, notes: list[str]) -> tuple[int | None, float]:
    """(sequences, 0), or (None, approximate tokens)."""
    if given is not None:
        return parse_batch(given)
    if source.recipe:
        return source.recipe.train.batch, 0.0
    tokens, origin = tokens_per_step(round(float(source.shape.num_parameters())))
    notes.append(f"about {format_count(tokens)} tokens a step (--batch). {origin}")
    return None, tokens


def _tokens_of(source: _Source, given: str | None, notes: list[str]) -> tuple[float, bool]:
    """Returns (tokens of the run, whether they were given)."""
    if given is not None:
        return float(parse_tokens(given)), True
    if source.recipe is not None:
        return float(source.recipe.total_steps * source.recipe.tokens_per_step), True
    parameters = source.shape.active_parameters() if source.published else source.shape.num_parameters()
    total = TOKENS_PER_PARAMETER * round(float(parameters))
    kind = "active parameter" if source.published else "parameter"
    notes.append(
        f"{format_count(total)} tokens, {TOKENS_PER_PARAMETER:g} for each {kind} (--tokens): compute-optimal, "
        "arXiv 2203.15556"
    )
    return total, False


def _recipe(path: Path, overrides: Sequence[str]) -> _Source:
    from puna.core.recipe import dump, load
    from puna.train.recipe import Recipe

    recipe = load(Recipe, path, overrides).value
    text = dump(recipe) if overrides else path.read_text(encoding="utf-8")
    name = recipe.name if recipe.name != "run" else path.stem
    return _Source(name, config=recipe.model, recipe=recipe, recipe_text=text)


def _directory(name: str) -> _Source:
    path = Path(name)
    where = path / "model" if (path / "model" / "config.json").is_file() else path  # a run directory holds one
    if not (where / "config.json").is_file():
        if path.is_dir():
            raise PunaError(f"{name} is not a model: it has no config.json.", "Give a model or run directory.")
        raise PunaError(
            f"'{name}' is not a preset, recipe or model directory.", nearest(name, [*PRESETS, *published_shapes()])
        )
    from puna.core.files import read_json

    config = ModelConfig.from_hf(read_json(where / "config.json"), str(where / "config.json"))
    return _Source(model_name(path), config=config)


def parse_batch(text: str) -> tuple[int | None, float]:
    """(sequences, 0) for a whole number, (None, tokens) for one with a unit.

    "tokens" and "sequences" may follow it.
    """
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


def _precision(recipe: "Recipe | None", given: str | None, accelerator: Accelerator, notes: list[str]) -> str:
    """The number format of matrix products, as given or as the recipe implies here."""
    if given is not None:
        if given not in PRECISIONS:
            raise PunaError(f"--precision {given} is not known.", nearest(given, PRECISIONS))
        return given
    if recipe is not None and recipe.train.fp8:
        return "fp8"
    if recipe is not None and recipe.train.precision == "fp32":
        return "fp32"
    if recipe is not None and recipe.train.precision in ("bf16", "mixed"):
        if recipe.train.precision == "bf16":
            notes.append("memory is counted with fp32 weights; it is less if all weights are in bf16")
        return "bf16"
    if accelerator.generation == "cpu":
        # As in `train.parallel.resolve_precision`: products in bf16 where they are fast, which their peak shows.
        fast = accelerator.bf16_tflops > (accelerator.fp32_tflops or accelerator.bf16_tflops)
        return "bf16" if fast else "fp32"
    return "bf16"
