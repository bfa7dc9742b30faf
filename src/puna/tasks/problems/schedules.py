"""Scheduling: an order of jobs for one worker that keeps precedences and deadlines and has the least total waiting.

A job's cost is the time at which it ends; the sum over all jobs must be as small as possible. Dynamic programming over
sets of jobs finds it exactly: the remaining cost depends only on which jobs are done, not on their order.
"""

from functools import cache

from puna.tasks import answer_parser
from puna.tasks.contract import Data, Draw, Task, Verdict, refused
from puna.tasks.problems import plan_scoring

_NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# (jobs, precedences, deadlines, longest job) of each level
_LEVELS = ((2, 0, 0, 9), (3, 1, 0, 9), (4, 1, 1, 9), (5, 2, 1, 9), (6, 3, 2, 9), (8, 5, 3, 12), (10, 7, 4, 20))


def generate(draw: Draw, level: int) -> tuple[str, Data]:
    """Jobs with lengths, precedences and deadlines that some order keeps and shortest-first may break."""
    count, before, due, longest = _LEVELS[level - 1]
    names = draw.sample(_NAMES, count)
    lengths = dict(zip(names, draw.sample(range(1, longest + 1), min(count, longest)), strict=True))
    order = draw.sample(names, count)  # an order that keeps everything, so that one exists
    places = [(one, other) for one in range(count) for other in range(one + 1, count)]
    precedences = sorted([order[one], order[other]] for one, other in draw.sample(places, before))
    deadlines, time = {}, 0
    ends = {}
    for name in order:
        time += lengths[name]
        ends[name] = time
    for name in sorted(draw.sample(names, due)):
        deadlines[name] = ends[name] + draw.randint(0, 2)
    data: Data = {"lengths": lengths, "before": precedences, "deadlines": deadlines}
    data["best"] = best_order(data)[1]
    parts = [", ".join(f"{name} {length}" for name, length in lengths.items())]
    parts += [f"{one} before {other}" for one, other in precedences]
    parts += [f"{name} by {time}" for name, time in deadlines.items()]
    return "; ".join(parts), data


def best_order(data: Data) -> tuple[list[str], int]:
    """Return an order with the least sum of end times, and that sum."""
    names = sorted(data["lengths"])
    lengths = [data["lengths"][name] for name in names]
    deadlines = [data["deadlines"].get(name) for name in names]
    needs = [0] * len(names)
    for one, other in data["before"]:
        needs[names.index(other)] |= 1 << names.index(one)
    whole = (1 << len(names)) - 1

    @cache
    def least(done: int, time: int) -> tuple[int, int]:
        """The least cost of the remaining jobs and which one is first; infinite if there is no order."""
        if done == whole:
            return 0, -1
        best = (_NEVER, -1)
        for job, length in enumerate(lengths):
            end = time + length
            if done >> job & 1 or needs[job] & ~done or (deadlines[job] is not None and end > deadlines[job]):
                continue
            best = min(best, (end + least(done | 1 << job, end)[0], job))
        return best

    order: list[str] = []
    done = time = 0
    total = least(0, 0)[0]
    while done != whole:
        job = least(done, time)[1]
        order.append(names[job])
        done, time = done | 1 << job, time + lengths[job]
    return order, total


_NEVER = 10**9


def grade(data: Data, text: str) -> Verdict:
    """Every job once, after the jobs it depends on and by its deadline; then the sum of end times decides."""
    found = answer_parser.value(text)
    if found.text is None:
        return refused(found.reason)
    order = answer_parser.words(found.text, most=len(data["lengths"]))
    if order is None or sorted(order) != sorted(data["lengths"]):
        return plan_scoring.invalid("The answer does not name every job once.")
    place = {name: number for number, name in enumerate(order)}
    broken = [f"{one} is not before {other}" for one, other in data["before"] if place[one] > place[other]]
    time = total = 0
    for name in order:
        time += data["lengths"][name]
        total += time
        if time > data["deadlines"].get(name, time):
            broken.append(f"{name} ends at {time}, too late")
    if broken:
        rules = len(data["before"]) + len(data["deadlines"])
        return plan_scoring.invalid(f"A constraint is broken: {broken[0]}.", 1 - len(broken) / rules)
    return plan_scoring.verdict(total, data["best"])


def solve(data: Data) -> str:
    """Write a best order."""
    return "answer: " + " ".join(best_order(data)[0])


TASKS = (
    Task(
        "planning.schedule",
        "order with the least sum of end times 1, another valid one 0.5",
        "One worker does all jobs, one after another from time 0; each has a length. Keep what goes before what, "
        "and end a "
        "job by its deadline. Give the order of the jobs for which the sum of their end times is least, with blanks "
        "between them, on a line that begins with the word answer and a colon.",
        tuple(
            f"{count} jobs, {before} precedence{'' if before == 1 else 's'}, {due} deadline{'' if due == 1 else 's'}"
            for count, before, due, _ in _LEVELS
        ),
        generate,
        grade,
        solve,
        ("answer: A B", "answer: B A", "answer: A B C", "answer: A B C D"),
    ),
)
