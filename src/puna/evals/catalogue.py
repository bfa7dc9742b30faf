"""All benchmarks by name, Puna's own and those of plugins, and the suites they are run in."""

from collections.abc import Iterator
from types import ModuleType

from puna.core.errors import PunaError, nearest
from puna.core.plugins import Registry, entries
from puna.evals.benchmarks import (
    bbh,
    dclm_core,
    function_calls,
    humaneval_mbpp,
    ifeval,
    mathematics,
    multiple_choice,
    planbench,
    puna_tasks,
    question_answering,
    refusals,
    translation,
)
from puna.evals.contract import Benchmark
from puna.tasks import catalogue as tasks
from puna.tasks.contract import Task

_BEFORE_TASKS = (humaneval_mbpp, mathematics, bbh, planbench)
_AFTER_TASKS = (multiple_choice, question_answering, dclm_core, ifeval, function_calls, refusals, translation)


def _built_in() -> Iterator[tuple[str, Benchmark]]:
    for module in _BEFORE_TASKS:
        yield from ((one.name, one) for one in module.BENCHMARKS)
    for task in tasks.built_in():
        yield task.name, puna_tasks.benchmark_of(task)
    for module in _AFTER_TASKS:
        yield from ((one.name, one) for one in module.BENCHMARKS)


def _of_plugin(module: ModuleType) -> list[tuple[str, Benchmark]]:
    """A plugin's benchmarks, and its tasks as benchmarks."""
    own = entries(module, "BENCHMARKS", Benchmark)
    of_tasks = [puna_tasks.benchmark_of(task) for task in entries(module, "TASKS", Task)]
    return [(one.name, one) for one in (*own, *of_tasks)]


BENCHMARKS: Registry[Benchmark] = Registry("benchmark", ("puna.benchmarks", "puna.tasks"), _built_in, _of_plugin)
"""Every benchmark by its name, plugins last."""


def suites() -> dict[str, tuple[str, ...]]:
    """Return the names of the benchmarks in each suite; `all` has every one."""
    found: dict[str, tuple[str, ...]] = {}
    for one in BENCHMARKS.values():
        for suite in dict.fromkeys((*one.suites, "all")):
            found[suite] = (*found.get(suite, ()), one.name)
    return found


def select(names: str) -> list[Benchmark]:
    """Return the benchmarks of suites and single benchmarks, separated by commas, each once.

    Raises PunaError naming the nearest known name for an unknown one.
    """
    known, found = suites(), dict[str, Benchmark]()
    for name in (part.strip() for part in names.split(",")):
        if name not in known and name not in BENCHMARKS:
            hint = nearest(name, {*known, *BENCHMARKS})
            raise PunaError(f"There is no suite or benchmark '{name}'.", f"{hint} One of your own needs --include.")
        found |= {one: BENCHMARKS[one] for one in known.get(name, (name,))}
    return list(found.values())
