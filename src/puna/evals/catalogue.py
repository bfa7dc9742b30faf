"""All benchmarks by name, and the suites they are run in."""

from puna.core.errors import PunaError, nearest
from puna.evals import (
    bbh,
    core_set,
    ifeval,
    knowledge,
    mathematics,
    own,
    planbench,
    programs,
    reading,
    refusals,
    tool_calls,
    translation,
)
from puna.evals.benchmark import Benchmark

_ROOMS = (
    programs, mathematics, bbh, planbench, own, knowledge, reading, core_set, ifeval, tool_calls, refusals, translation
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {one.name: one for room in _ROOMS for one in room.BENCHMARKS}
SUITES: dict[str, tuple[str, ...]] = {}
for _one in BENCHMARKS.values():
    for _suite in (*_one.suites, "all"):
        SUITES[_suite] = (*SUITES.get(_suite, ()), _one.name)


def select(names: str) -> list[Benchmark]:
    """The benchmarks of suites and single benchmarks, separated by commas, each once. Raises PunaError naming the
    nearest for a name that is neither."""
    found: dict[str, Benchmark] = {}
    for name in (part.strip() for part in names.split(",")):
        if name not in SUITES and name not in BENCHMARKS:
            raise PunaError(f"There is no suite or benchmark '{name}'.", nearest(name, {*SUITES, *BENCHMARKS}))
        found |= {one: BENCHMARKS[one] for one in SUITES.get(name, (name,))}
    return list(found.values())
