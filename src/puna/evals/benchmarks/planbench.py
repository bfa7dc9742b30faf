"""PlanBench: plans in English for four domains, judged by executing them.

Any plan is right if every action is applicable in its place and the goal holds at the end. The domains below are
STRIPS: a few actions with the facts that they need, add and delete. Statements, goals and plans are read in PlanBench's
own phrases; a line in other words ends the plan as unreadable.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from puna.evals.contract import Benchmark, Item, Score, Text
from puna.evals.datasets import EvalData

Fact = tuple[str, ...]
MAX_STEPS = 200


class Action(NamedTuple):
    """phrase: with the parameters' names in braces. needs, adds, deletes: facts about them. short: its name in PDDL."""

    phrase: str
    needs: tuple[str, ...]
    adds: tuple[str, ...]
    deletes: tuple[str, ...]
    short: str = ""


@dataclass(frozen=True)
class Domain:
    """facts: phrases for facts, each with its fact. thing: the pattern of an object's name."""

    thing: str
    facts: tuple[tuple[str, str], ...]
    actions: tuple[Action, ...]

    def fact(self, text: str) -> Fact | None:
        """Return the fact that a phrase states."""
        return next((_filled(fact, found) for phrase, fact in self.facts if (found := self._read(phrase, text))), None)

    def action(self, text: str) -> tuple[Action, dict[str, str]] | None:
        """Return the action that a line of a plan states, with its arguments."""
        return next(((one, found) for one in self.actions if (found := self._read(one.phrase, text)) is not None), None)

    def _read(self, phrase: str, text: str) -> dict[str, str] | None:
        pattern = re.sub(r"\{(\w)\}", lambda m: f"(?P<{m.group(1)}>{self.thing})", phrase)
        match = re.fullmatch(pattern, " ".join(text.lower().split()).rstrip("."))
        return match.groupdict() if match else None


_BLOCKS = Domain(
    r"[a-z]+",
    (
        ("the {x} block is clear", "clear x"),
        ("the {x} block is on the table", "table x"),
        ("the {x} block is on top of the {y} block", "on x y"),
        ("the hand is(?P<e>) empty", "empty"),
        ("the hand is currently holding {x} block", "holding x"),
    ),
    (
        Action("pick up the {x} block", ("clear x", "table x", "empty"), ("holding x",),
               ("clear x", "table x", "empty"), "pick-up"),
        Action("put down the {x} block", ("holding x",), ("clear x", "table x", "empty"), ("holding x",), "put-down"),
        Action("stack the {x} block on top of the {y} block", ("clear y", "holding x"), ("empty", "clear x", "on x y"),
               ("clear y", "holding x"), "stack"),
        Action("unstack the {x} block from on top of the {y} block", ("on x y", "clear x", "empty"),
               ("holding x", "clear y"), ("on x y", "clear x", "empty"), "unstack"),
    ),
)  # fmt: skip
# The same domain in words without meaning.
_MYSTERY = Domain(
    r"[a-z]",
    (
        ("province object {x}", "clear x"),
        ("planet object {x}", "table x"),
        ("object {x} craves object {y}", "on x y"),
        ("harmony(?P<e>)", "empty"),
        ("pain object {x}", "holding x"),
    ),
    (
        _BLOCKS.actions[0]._replace(phrase="attack object {x}", short="attack"),
        _BLOCKS.actions[1]._replace(phrase="succumb object {x}", short="succumb"),
        _BLOCKS.actions[2]._replace(phrase="overcome object {x} from object {y}", short="overcome"),
        _BLOCKS.actions[3]._replace(phrase="feast object {x} from object {y}", short="feast"),
    ),
)
_LOGISTICS = Domain(
    r"[a-z]+_[0-9]+(?:_[0-9]+)?",
    (
        ("{x} is an airport", "airport x"),
        ("{x} is in the city {y}", "city x y"),
        ("{x} is at {y}", "at x y"),
    ),
    (
        Action("load {x} into {y} at {p}", ("at x p", "at y p", "package x", "vehicle y"), ("in x y",), ("at x p",),
               "load"),
        Action("unload {x} from {y} at {p}", ("in x y", "at y p"), ("at x p",), ("in x y",), "unload"),
        Action("drive {x} from {y} to {z} in {c}", ("truck x", "at x y", "city y c", "city z c"), ("at x z",),
               ("at x y",), "drive-truck"),
        Action("fly {x} from {y} to {z}", ("airplane x", "at x y", "airport y", "airport z"), ("at x z",), ("at x y",),
               "fly-airplane"),
    ),
)  # fmt: skip
_DEPOTS = Domain(
    r"[a-z]+[0-9]+",
    (
        ("{x} is at {y}", "at x y"),
        ("{x} is available", "available x"),
        ("{x} is clear", "clear x"),
        ("{x} is on {y}", "on x y"),
    ),
    (
        Action("drive {x} from {y} to {z}", ("truck x", "at x y", "place z"), ("at x z",), ("at x y",), "drive"),
        Action("use {h} to lift {x} from {y} at {p}", ("at h p", "available h", "at x p", "on x y", "clear x"),
               ("lifting h x", "clear y"), ("at x p", "clear x", "available h", "on x y"), "lift"),
        Action("use {h} to drop {x} to {y} at {p}", ("at h p", "at y p", "clear y", "lifting h x"),
               ("available h", "at x p", "clear x", "on x y"), ("lifting h x", "clear y"), "drop"),
        Action("use {h} to load {x} into {y} at {p}", ("at h p", "at y p", "lifting h x", "truck y"),
               ("in x y", "available h"), ("lifting h x",), "load"),
        Action("use {h} to unload {x} from {y} at {p}", ("at h p", "at y p", "available h", "in x y"), ("lifting h x",),
               ("in x y", "available h"), "unload"),
    ),
)  # fmt: skip
WORLDS = {"blocksworld": _BLOCKS, "mystery_blocksworld": _MYSTERY, "logistics": _LOGISTICS, "depots": _DEPOTS}
_KINDS = {"package", "truck", "airplane", "depot", "distributor", "location"}


class Execution(NamedTuple):
    """facts: what holds after the plan, or before the first impossible step. reason: why it is not a plan."""

    facts: frozenset[Fact]
    steps: int
    reason: str = ""


def carry_out(world: Domain, start: frozenset[Fact], lines: Sequence[str]) -> Execution:
    """Execute the actions of a plan one after another."""
    facts = set(start)
    for number, line in enumerate(lines, 1):
        found = world.action(line)
        if found is None:
            return Execution(frozenset(facts), number - 1, f"step {number} is no action")
        action, arguments = found
        missing = next((need for need in action.needs if _filled(need, arguments) not in facts), None)
        if missing is not None:
            return Execution(
                frozenset(facts), number - 1, f"step {number} needs '{' '.join(_filled(missing, arguments))}'"
            )
        facts -= {_filled(one, arguments) for one in action.deletes}
        facts |= {_filled(one, arguments) for one in action.adds}
    return Execution(frozenset(facts), len(lines))


def read_statement(world: Domain, text: str) -> tuple[frozenset[Fact], frozenset[Fact]] | None:
    """Return the initial facts and the goal of the last [STATEMENT]; None for an unknown phrase."""
    statement = text.rpartition("[STATEMENT]")[2]
    start = re.search(r"initial conditions I have that,? (.*?)\.(?:\n|$)", statement, re.DOTALL)
    goal = re.search(r"[Mm]y goal is to have that (.*?)\.(?:\s|$)", statement, re.DOTALL)
    if start is None:
        return None
    sides = []
    for match in (start, goal):
        facts = [world.fact(part) for part in re.split(r", and |, | and ", match.group(1))] if match else []
        if None in facts:
            return None
        sides.append(frozenset(fact for fact in facts if fact is not None))
    return sides[0] | set(_kinds(sides[0])), sides[1]


def _kinds(facts: frozenset[Fact]) -> Iterator[Fact]:
    """The types of objects, by their names: truck_0 is a truck."""
    for thing in {part for fact in facts for part in fact[1:]}:
        kind = re.match(r"[a-z]+", thing)
        if kind and kind.group() in _KINDS:
            yield (kind.group(), thing)
            if kind.group() in ("truck", "airplane"):
                yield ("vehicle", thing)
            if kind.group() in ("depot", "distributor"):
                yield ("place", thing)


def _filled(pattern: str, arguments: dict[str, str]) -> Fact:
    name, *places = pattern.split()
    return (name, *(arguments[place] for place in places))


def plan_lines(text: str) -> list[str]:
    """Return the lines of a plan, up to [PLAN END], without leading numbers and dashes."""
    text = text.rpartition("[PLAN]\n")[2].split("[PLAN END]")[0].split("[STATEMENT]")[0]
    lines = [re.sub(r"^\W{0,3}(?:\d{1,3}[.)])?\s{0,3}", "", line).strip() for line in text.split("\n")]
    return [line for line in lines if line and not line.startswith(("```", "~~~"))][: MAX_STEPS + 1]


# -- the tasks ---------------------------------------------------------------------------------------------------------

_STOP = ("[PLAN END]", "[STATEMENT]", "\n\n")


def _plans(*files: tuple[str, str], group: bool = False, optimal: bool = False) -> Callable[[EvalData], list[Item]]:
    """Items that ask for a plan. files: (domain, file)."""

    def load(data: EvalData) -> list[Item]:
        items = []
        for domain, name in files:
            world = WORLDS[domain]
            for instance in data.json(f"planbench/{domain}/{name}.json")["instances"]:
                read = read_statement(world, instance["query"])
                reference = _reference(world, instance["ground_truth_plan"], read[0] if read else frozenset())
                if read is None or reference is None:
                    continue
                target = {
                    "domain": domain,
                    "start": sorted(map(list, read[0])),
                    "goal": sorted(map(list, read[1])),
                    "most": len(plan_lines(reference)) if optimal else None,
                }
                items.append(_item(f"{name}-{instance['instance_id']}", instance["query"], target,
                                   name.partition("_")[2] if group else "", reference))  # fmt: skip
        return items

    return load


def _item(id: str, query: str, target: Any, group: str, reference: str, stop: tuple[str, ...] = _STOP) -> Item:
    ask = Text(query.rstrip() + "\n", stop, max_tokens=320, messages=({"role": "user", "content": query.rstrip()},))
    body = query.rpartition("[STATEMENT]")[2].strip()
    return Item(id, ask, target, group, f"{body} {reference}", reference)


def _reference(world: Domain, plan: str, start: frozenset[Fact]) -> str | None:
    """Translate a plan from PDDL to PlanBench's English; English stays as it is."""
    if not plan.lstrip().startswith("("):
        return plan.strip()
    things = sorted({part for fact in start for part in fact[1:]})
    by_short = {_shortened(thing): thing for thing in things} | {thing: thing for thing in things}
    lines = []
    for words in (line.strip("() ").split() for line in plan.strip().split("\n")):
        short = re.sub(r"^(un)?load-(truck|airplane)$", r"\1load", words[0])
        action = next((one for one in world.actions if one.short == short), None)
        if action is None:
            return None
        # In PDDL the place is last, as in the phrases.
        arguments = [by_short.get(word, word) for word in words[1:]]
        names = list(dict.fromkeys(re.findall(r"\{(\w)\}", action.phrase)))
        lines.append(action.phrase.format(**dict(zip(names, arguments, strict=False))))
    return "\n".join(lines)


def _shortened(thing: str) -> str:
    """location_0_1 is l0-1 in PlanBench's PDDL, package_3 is p3."""
    return thing[0] + "-".join(re.findall(r"\d+", thing))


def plan_is_right(item: Item, response: str) -> Score:
    """Score 1 if the plan can be executed and reaches the goal, in at most as many steps as item.target allows."""
    target = item.target
    lines = plan_lines(response)
    if not lines:
        return Score(0.0, "", "no plan")
    if len(lines) > MAX_STEPS:
        return Score(0.0, "\n".join(lines), f"more than {MAX_STEPS} steps")
    start = frozenset(map(tuple, target["start"]))
    done = carry_out(WORLDS[target["domain"]], start, lines)
    shown = "\n".join(lines)
    reached = set(map(tuple, target["goal"])) <= done.facts
    parts = {"executable": float(not done.reason), "reached": float(reached and not done.reason)}
    if done.reason:
        return Score(0.0, shown, done.reason, parts)
    if not reached:
        return Score(0.0, shown, "the goal is not reached", parts)
    if target["most"] is not None and len(lines) > target["most"]:
        return Score(0.0, shown, f"{len(lines)} steps where {target['most']} do", parts)
    return Score(1.0, shown, "", parts)


def _verification(data: EvalData) -> list[Item]:
    items = []
    for instance in data.json("planbench/blocksworld/task_3_plan_verification.json")["instances"]:
        truth = instance["ground_truth_plan"]
        valid = "invalid" not in truth.lower().split(".")[0]
        items.append(_item(f"verify-{instance['instance_id']}", instance["query"], "valid" if valid else "invalid", "",
                           truth.strip(), ("[STATEMENT]", "\n\n")))  # fmt: skip
    return items


def verified(item: Item, response: str) -> Score:
    """Score 1 if the first word of judgement is right."""
    found = re.search(r"\b(in)?valid\b", response[:5000].lower())
    if found is None:
        return Score(0.0, "", "neither valid nor invalid")
    right = found.group() == item.target
    return Score(float(right), found.group(), "" if right else "misjudged")


def _execution(data: EvalData) -> list[Item]:
    items = []
    for instance in data.json("planbench/blocksworld/task_7_plan_execution.json")["instances"]:
        query = instance["query"]
        read = read_statement(_BLOCKS, query)
        actions = query.rpartition("[ACTION SEQUENCE]\n")[2].partition("[ACTION SEQUENCE END]")[0].strip().split("\n")
        if read is None:
            continue
        done = carry_out(_BLOCKS, read[0], actions)
        if done.reason:
            continue
        said = " and ".join(_said(fact) for fact in sorted(done.facts))
        items.append(_item(f"execute-{instance['instance_id']}", query, sorted(map(list, done.facts)), "", said,
                           ("[STATEMENT]", "\n\n")))  # fmt: skip
    return items


def _said(fact: Fact) -> str:
    phrase = next(phrase for phrase, pattern in _BLOCKS.facts if pattern.split()[0] == fact[0])
    names = re.findall(r"\{(\w)\}", phrase)
    return phrase.replace("(?P<e>)", "").format(**dict(zip(names, fact[1:], strict=True)))


def state_is_right(item: Item, response: str) -> Score:
    """Score 1 if exactly the facts that hold are stated."""
    text = response.strip().split("\n\n")[0].rstrip(".")[:5000]
    facts = [_BLOCKS.fact(part) for part in re.split(r", and |, | and |\n", text) if part.strip()]
    if not facts or None in facts:
        return Score(0.0, text, "unreadable")
    said, right = set(facts), set(map(tuple, item.target))
    return Score(float(said == right), text, "" if said == right else "another state",
                 {"shared": len(said & right) / max(1, len(said | right))})  # fmt: skip


_SOURCE = "Valmeekam et al. 2022 (arXiv 2206.10498), MIT"
_PROMPT = "1-shot; the rules of the world in English, one statement with its plan, one without"
_VALID = "the plan can be carried out and reaches the goal"


def _benchmark(
    name: str, title: str, load: Any, score: Any = plan_is_right, metric: str = _VALID, **more: Any
) -> Benchmark:
    return Benchmark(
        f"planbench_{name}", f"PlanBench: {title}", ("planning",), load, score, _PROMPT, metric, _SOURCE, **more
    )


_GENERATE = "task_1_plan_generation"
BENCHMARKS = (
    _benchmark("blocksworld", "blocks", _plans(("blocksworld", _GENERATE))),
    _benchmark("mystery", "blocks in other words", _plans(("mystery_blocksworld", _GENERATE))),
    _benchmark("logistics", "logistics", _plans(("logistics", _GENERATE))),
    _benchmark("depots", "depots", _plans(("depots", _GENERATE))),
    _benchmark("optimal", "shortest plans", _plans(("blocksworld", "task_2_plan_optimality"), optimal=True),
               metric=f"{_VALID} in as few steps as possible"),
    _benchmark("generalization", "longer than the example", _plans(("blocksworld", "task_5_plan_generalization"))),
    _benchmark("reformulation", "goals put otherwise",
               _plans(*(("blocksworld", f"task_8_{name}")
                        for name in ("1_goal_shuffling", "2_full_to_partial", "3_partial_to_full")), group=True)),
    _benchmark("verification", "is this a plan?", _verification, verified, "valid or invalid, the rest is not read",
               constants=("valid", "invalid")),
    _benchmark("execution", "what holds after it?", _execution, state_is_right, "exactly the facts that hold"),
)  # fmt: skip
