"""What to change when a model does not fit: the cheapest legal changes that would make it fit, found by asking again.

Each remedy changes one thing: a pinned part is left to the search, the stack is one that can split the model, sequences
are shorter, there are more accelerators, they have more memory, or the model is smaller. All are searched like the
question itself, so what is told would work.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from puna.core.errors import PunaError
from puna.model.config import PRESETS, ModelConfig
from puna.plan.defaults import divisible_batch
from puna.plan.hardware import catalogue
from puna.plan.memory import rules_for
from puna.plan.pins import spoken_pin
from puna.plan.predict import Prediction, Question, predict
from puna.plan.search import layout_at, search
from puna.plan.shape import from_config
from puna.plan.stacks import DEFAULT_STACK, STACKS, Values

# Beyond so many accelerators no remedy is looked for; the largest fleets on record have a few hundred thousand.
_MOST_ACCELERATORS = 2**20
_SHORTEST_SEQUENCE = 512


@dataclass(frozen=True)
class Remedy:
    """One change that makes it fit, in words, and the best layout then."""

    change: str
    prediction: Prediction


def remedies(question: Question, pinned: Mapping[str, int], values: Values) -> tuple[Remedy, ...]:
    """Every kind of change that helps, the least invasive first; empty when nothing does."""
    found = []
    for look in (_unpinned, _other_stack, _shorter, _more, _larger, _smaller):
        for change, asked, kept in look(question, pinned, values):
            best = fitting(asked, kept, values)
            if best is not None:
                found.append(Remedy(change, best))
                break
    return tuple(found)


def fitting(question: Question, pinned: Mapping[str, int], values: Values) -> Prediction | None:
    """The fastest layout that fits, with the pinned parts as they are; None when there is none."""
    try:
        found = search(question.workload(), values, rules_for(question.stack))
    except PunaError:
        return None
    keep = found.fits.copy()
    for name, value in pinned.items():
        keep &= getattr(found.jobs.layout, name) == value
    if not keep.any():
        return None
    return predict(question, layout_at(found.jobs.layout, int(keep.argmax())), values=values)


_Tries = Iterator[tuple[str, Question, Mapping[str, int]]]


def _unpinned(question: Question, pinned: Mapping[str, int], values: Values) -> _Tries:
    for name, value in reversed(list(pinned.items())):
        rest = {key: fixed for key, fixed in pinned.items() if key != name}
        yield f"leave {spoken_pin(name, value)} to the search", question, rest
    if len(pinned) > 1:
        yield "leave the layout to the search", question, {}


def _other_stack(question: Question, pinned: Mapping[str, int], values: Values) -> _Tries:
    if not STACKS[question.stack].model_parallel:
        told = " (tensor and pipeline parallelism, which puna train has not yet)"
        yield (
            f"--stack megatron-core{told if question.stack == DEFAULT_STACK else ''}",
            replace(question, stack="megatron-core"),
            {},
        )


def _shorter(question: Question, pinned: Mapping[str, int], values: Values) -> _Tries:
    length = question.seq_len
    while length % 2 == 0 and length > _SHORTEST_SEQUENCE:
        length //= 2
        batch = question.batch * (question.seq_len // length)
        yield f"--seq-len {length}, as many tokens a step", replace(question, seq_len=length, batch=batch), pinned


def _more(question: Question, pinned: Mapping[str, int], values: Values) -> _Tries:
    """Larger fleets: nodes in powers of two, and half as much again. Pinned sizes would not fill them."""
    size = question.accelerator.node_size
    rest = {name: value for name, value in pinned.items() if name in ("micro_batch", "sharding", "recompute")}
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


def _larger(question: Question, pinned: Mapping[str, int], values: Values) -> _Tries:
    now = question.accelerator
    if now.generation == "cpu":
        return
    able = [one for one in catalogue().values() if one.memory_gb > 1.25 * now.memory_gb and one.node_size >= 4]
    for one in sorted(able, key=lambda one: (one.memory_gb, one.name)):
        try:
            one.peak_tflops(question.precision)
        except PunaError:
            continue
        yield f"--fleet {question.accelerators}x{one.name}", replace(question, accelerator=one), pinned


def _smaller(question: Question, pinned: Mapping[str, int], values: Values) -> _Tries:
    shapes = {name: from_config(ModelConfig(preset=name)) for name in PRESETS}
    ours = float(question.shape.num_parameters())
    order = sorted(shapes, key=lambda name: -float(shapes[name].num_parameters()))
    for name in order:
        if float(shapes[name].num_parameters()) < 0.95 * ours:
            yield f"a smaller model, {name}", replace(question, model=name, shape=shapes[name]), pinned
