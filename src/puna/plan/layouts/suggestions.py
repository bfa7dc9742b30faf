"""Suggest the cheapest changes that make a model fit, each found by searching again.

Each suggestion changes one thing: a constraint is dropped, the stack is one that can split the model, sequences are
shorter, there are more accelerators, they have more memory, or the model is smaller. All are searched like the
question itself, so every suggestion works.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from puna.core.errors import PunaError
from puna.model.config import PRESETS, ModelConfig
from puna.model.layout import Layout
from puna.plan.equations.constants import DEFAULT_STACK
from puna.plan.equations.hardware import catalogue
from puna.plan.equations.shape import from_config
from puna.plan.layouts.constraints import constraint_text
from puna.plan.layouts.convert import from_columns
from puna.plan.layouts.defaults import divisible_batch
from puna.plan.layouts.predict import Prediction, Question, predict
from puna.plan.layouts.search import search

# The largest fleet that is suggested; the largest on record have a few hundred thousand accelerators.
_MOST_ACCELERATORS = 2**20
_SHORTEST_SEQUENCE = 512


@dataclass(frozen=True)
class Suggestion:
    """A change that makes the model fit, in words, and the best layout with it."""

    change: str
    prediction: Prediction


def suggest(question: Question, constraints: Mapping[str, int]) -> tuple[Suggestion, ...]:
    """All kinds of changes that help, the least invasive first; empty when none does."""
    found = []
    for look in (_unpinned, _other_stack, _shorter, _more, _larger, _smaller):
        for change, asked, kept in look(question, constraints):
            best = fitting(asked, kept)
            if best is not None:
                found.append(Suggestion(change, best))
                break
    return tuple(found)


def fitting(
    question: Question, constraints: Mapping[str, int], *, predicted: Callable[[Question, Layout], Prediction] = predict
) -> Prediction | None:
    """The fastest layout that fits within the constraints, or None. predicted: `predict`, or `predict_step` of many."""
    try:
        found = search(question.workload())
    except PunaError:
        return None
    keep = found.fits.copy()
    for name, value in constraints.items():
        keep &= getattr(found.jobs.layout, name) == value
    if not keep.any():
        return None
    return predicted(question, from_columns(found.jobs.layout, int(keep.argmax())))


_Tries = Iterator[tuple[str, Question, Mapping[str, int]]]


def _unpinned(question: Question, constraints: Mapping[str, int]) -> _Tries:
    for name, value in reversed(list(constraints.items())):
        rest = {key: fixed for key, fixed in constraints.items() if key != name}
        yield f"leave {constraint_text(name, value)} to the search", question, rest
    if len(constraints) > 1:
        yield "leave the layout to the search", question, {}


def _other_stack(question: Question, constraints: Mapping[str, int]) -> _Tries:
    if not question.costs.facts.model_parallel:
        told = " (tensor and pipeline parallelism, which puna train does not have yet)"
        yield (
            f"--stack megatron-core{told if question.stack == DEFAULT_STACK else ''}",
            replace(question, costs=question.costs.for_stack("megatron-core")),
            {},
        )


def _shorter(question: Question, constraints: Mapping[str, int]) -> _Tries:
    length = question.seq_len
    while length % 2 == 0 and length > _SHORTEST_SEQUENCE:
        length //= 2
        batch = question.batch * (question.seq_len // length)
        yield f"--seq-len {length}, as many tokens a step", replace(question, seq_len=length, batch=batch), constraints


def _more(question: Question, constraints: Mapping[str, int]) -> _Tries:
    """Larger fleets: nodes in powers of two and 1.5 times those, without constraints on sizes."""
    size = question.accelerator.node_size
    rest = {name: value for name, value in constraints.items() if name in ("micro_batch", "sharding", "recompute")}
    nodes = 1
    while nodes * size <= _MOST_ACCELERATORS:
        for count in (nodes * size, nodes * size * 3 // 2 if nodes > 1 else 0):
            if count > question.accelerators:
                batch = divisible_batch(question.batch, count, question.stack)
                yield (
                    f"--fleet {count}x{question.accelerator.name}"
                    + (f", and a batch of {batch:,}" if batch != question.batch else ""),
                    replace(question, accelerators=count, batch=batch),
                    rest,
                )
        nodes *= 2


def _larger(question: Question, constraints: Mapping[str, int]) -> _Tries:
    now = question.accelerator
    if now.generation == "cpu":
        return
    able = [one for one in catalogue().values() if one.memory_gb > 1.25 * now.memory_gb and one.node_size >= 4]
    for one in sorted(able, key=lambda one: (one.memory_gb, one.name)):
        try:
            one.peak_tflops(question.precision)
        except PunaError:
            continue
        yield f"--fleet {question.accelerators}x{one.name}", replace(question, accelerator=one), constraints


def _smaller(question: Question, constraints: Mapping[str, int]) -> _Tries:
    shapes = {name: from_config(ModelConfig(preset=name)) for name in PRESETS}
    ours = float(question.shape.num_parameters())
    order = sorted(shapes, key=lambda name: -float(shapes[name].num_parameters()))
    for name in order:
        if float(shapes[name].num_parameters()) < 0.95 * ours:
            yield f"a smaller model, {name}", replace(question, model=name, shape=shapes[name]), constraints
