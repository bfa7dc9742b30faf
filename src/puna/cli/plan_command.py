"""Know what a training run takes before it starts: fit, speed, layout, days, failures, energy, cost.

puna plan TARGET [--fleet 8xh100]     a preset, a recipe or a model directory; without --fleet: this machine
puna plan fleet FILE|8xh100+64xa100   H100 equivalents, price, power and failures of a fleet
puna plan goodput --gpus N --days D   interruptions, checkpoint interval, effective time, spares
puna plan calibrate                   measure this device
puna plan predict --runs FILE         predict every row of a file of published runs
puna plan validate [--runs FILE]      errors by family, intervals, ranking
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.core.errors import PunaError

if TYPE_CHECKING:
    from puna.cli.plan_target import Target
    from puna.plan.answer import Answer
    from puna.plan.hardware import Group
    from puna.plan.money import Prices
    from puna.plan.predict import Prediction, Question
    from puna.plan.reliability import Reliability

ACTIONS = ("fleet", "goodput", "calibrate", "predict", "validate")
LAUNCHERS = ("slurm", "torchrun", "kubeflow", "skypilot", "ray")
_PARTS = ("tp", "cp", "pp", "vp", "dp", "ep", "micro_batch", "sharding", "recompute")
# Options that each action heeds; any other that is given is refused rather than silently without effect.
_HEEDED = {
    "fleet": {"json", "price", "days"},
    "goodput": {"json", "gpus", "days", "parameters", "rate"},
    "calibrate": {"json", "quick"},
    "predict": {"json", "runs"},
    "validate": {"json", "runs", "html"},
}
_NOT_A_PLAN = {"gpus", "parameters", "rate", "runs", "quick"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "puna plan TARGET [options] | fleet FILE | goodput | calibrate | predict | validate"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (__doc__ or "").strip()
    parser.add_argument("words", nargs="*", metavar="TARGET", help="preset, recipe, model directory, or an action")
    run = parser.add_argument_group("the run")
    run.add_argument("--fleet", metavar="16384xh100", help="accelerators (default: this machine's)")
    run.add_argument("--tokens", metavar="15.6T", help="tokens of the run (default: the recipe's, or 20 a parameter)")
    run.add_argument("--batch", metavar="N|16M", help="sequences of a step, or about so many tokens")
    run.add_argument("--seq-len", metavar="N", help="tokens of a sequence")
    run.add_argument("--precision", metavar="FORMAT", help="bf16, fp8, mxfp8, nvfp4 or fp32")
    run.add_argument("--stack", metavar="NAME", help="software, such as megatron-core, torchtitan, puna")
    pins = parser.add_argument_group("parts of the layout to keep as given")
    for name in _PARTS[:7]:
        pins.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    pins.add_argument("--sharding", metavar="KIND", help="ddp, zero1, zero2, zero3 or hsdp")
    pins.add_argument("--recompute", metavar="KIND", help="none, selective, ops, blocks or full")
    money = parser.add_argument_group("money and time")
    money.add_argument("--price", type=float, metavar="USD", help="rent of an accelerator and hour")
    money.add_argument("--budget-usd", type=float, metavar="USD", help="what may be spent: how far does it get?")
    money.add_argument("--days", type=float, metavar="D", help="time there is; of goodput and fleet: time to look at")
    shown = parser.add_argument_group("the answer")
    shown.add_argument("--explain", action="store_true", help="every millisecond and every GiB, with its equation")
    shown.add_argument("--json", action="store_true", help="plain values, for machines")
    shown.add_argument("--html", type=Path, metavar="FILE", help="a page with pictures")
    shown.add_argument("--emit", metavar="KIND", help=f"launch files: {', '.join(LAUNCHERS)}; into -o")
    shown.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the launch files")
    others = parser.add_argument_group("goodput, calibrate, predict, validate")
    others.add_argument("--gpus", metavar="N", help="goodput: accelerators of the job")
    others.add_argument("--parameters", metavar="405B", help="goodput: of the model (default: 25M an accelerator)")
    others.add_argument("--rate", type=float, metavar="R", help="goodput: failures of a node a day (default: 3.8e-3)")
    others.add_argument("--quick", action="store_true", help="calibrate: fewer sizes, in some seconds")
    others.add_argument("--runs", type=Path, metavar="FILE", help="predict, validate: published runs, YAML")


def run(args: argparse.Namespace) -> None:
    """Do what the first word says."""
    if not args.words:
        raise PunaError("There is nothing to plan.", "Try: puna plan llama3-8b --fleet 8xh100, or puna plan --help.")
    action = args.words[0] if args.words[0] in ACTIONS else "plan"
    _refuse_unheeded(args, action)
    if action == "plan":
        _plan(args)
    else:
        from puna.cli import plan_actions

        getattr(plan_actions, action)(args)


def _refuse_unheeded(args: argparse.Namespace, action: str) -> None:
    given = {name for name, value in vars(args).items() if name != "words" and value not in (None, False)}
    useless = given & _NOT_A_PLAN if action == "plan" else given - _HEEDED[action]
    if useless:
        option = f"--{sorted(useless)[0].replace('_', '-')}"
        what = "puna plan TARGET" if action == "plan" else f"puna plan {action}"
        raise PunaError(f"{option} means nothing to {what}.", "See puna plan --help.")
    if action in ("goodput", "calibrate", "predict", "validate") and len(args.words) > 1:
        raise PunaError(f"'{args.words[1]}' means nothing to puna plan {action}.", "See puna plan --help.")


# -- one run ---------------------------------------------------------------------------------------------------------


def _plan(args: argparse.Namespace) -> None:
    from puna.cli.plan_actions import terms
    from puna.cli.plan_target import find_target
    from puna.plan.answer import answer
    from puna.plan.stacks import find_stack

    name, *overrides = args.words
    prices, reliability, overrides = terms(args, overrides)
    _check_launcher(args)
    group = _fleet_of(args)
    target = find_target(
        name,
        overrides=overrides,
        accelerator=group.accelerator,
        machine=args.fleet is None and args.budget_usd is None and args.days is None,
        tokens=args.tokens,
        batch=args.batch,
        seq_len=args.seq_len,
        precision=args.precision,
        stack=find_stack(args.stack) if args.stack else None,
    )
    pinned = _pinned(args)
    if args.budget_usd is not None or args.days is not None:
        _budget(args, target, group, pinned, prices, reliability)
        return
    question = target.question(group.accelerator, group.count)
    own, measured = _own(target, question) if args.fleet is None and target.stack == "puna" else ({}, ())
    found = answer(
        question,
        tokens=target.tokens,
        pinned=pinned,
        given=_given(target, group),
        prices=prices,
        reliability=reliability,
        assumptions=(*target.assumptions, *measured, *_said(reliability)),
        **own,
    )
    _show(args, target, found, prices, reliability)


def _show(
    args: argparse.Namespace, target: "Target", found: "Answer", prices: "Prices", reliability: "Reliability"
) -> None:
    """Print the answer, and write what was asked for beside it."""
    from puna.core.console import console, print_json, say

    if args.json:
        from puna.plan.tree import answer_tree

        print_json(answer_tree(found))
    else:
        from puna.plan.brief import brief

        console(stderr=False).print(brief(found, explain=args.explain))
    if args.html:
        from puna.plan.budget import Terms
        from puna.plan.page import write_page

        terms = Terms.of(prices, reliability)
        path = write_page(
            found, args.html, sized=lambda count: target.question(found.question.accelerator, count), terms=terms
        )
        say(f"Wrote {path}.")
    if args.emit:
        from puna.cli.plan_launch import write_launch

        written = write_launch(args.emit, target, found, args.output)
        say(f"Wrote {', '.join(str(path) for path in written.files)}.")
        for warning in written.warnings:
            say(f"[yellow]{warning}[/yellow]")


def _budget(
    args: argparse.Namespace,
    target: "Target",
    group: "Group",
    pinned: dict[str, int],
    prices: "Prices",
    reliability: "Reliability",
) -> None:
    from puna.core.console import console, print_json
    from puna.model.config import PRESETS
    from puna.plan.budget import Terms, plan_budget

    for option, value in (("--emit", args.emit), ("--html", args.html), ("a pinned layout", pinned)):
        if value:
            raise PunaError(
                f"{option} does not go with --budget-usd and --days.", "Plan the fleet they lead to with --fleet."
            )
    found = plan_budget(
        lambda count: target.question(group.accelerator, count),
        group.accelerator,
        budget_usd=args.budget_usd,
        days=args.days,
        accelerators=group.count if args.fleet else None,
        tokens=target.tokens if target.tokens_given else None,
        presets=[known for known in PRESETS if known.startswith("llama3")],
        preset_question=lambda known, count: target.preset(known).question(group.accelerator, count),
        terms=Terms.of(prices, reliability),
        assumptions=target.assumptions,
    )
    if args.json:
        from puna.plan.tree import budget_tree

        print_json(budget_tree(found))
    else:
        from puna.plan.brief import budget_text

        console(stderr=False).print(budget_text(found, explain=args.explain))


def _fleet_of(args: argparse.Namespace) -> "Group":
    """The accelerators of one kind that were asked for, those of this machine, or one node of H100 to price."""
    from puna.plan.hardware import Group, find_accelerator, parse_fleet

    if args.fleet:
        fleet = parse_fleet(args.fleet)
        if len(fleet.groups) > 1:
            raise PunaError(
                f"'{args.fleet}' has {len(fleet.groups)} kinds of accelerators, and one synchronous job would run at "
                "the pace of the slowest.",
                f"Plan a job for each kind, or see all of them with: puna plan fleet {args.fleet}",
            )
        return fleet.groups[0]
    if args.budget_usd is not None or args.days is not None:
        accelerator = find_accelerator("h100")
        return Group(count=accelerator.node_size, accelerator=accelerator)
    from puna.plan.machine import this_machine

    return this_machine()


def _pinned(args: argparse.Namespace) -> dict[str, int]:
    """Parts of the layout that were given, as the search has them. Raises PunaError for an unknown kind."""
    from puna.core.errors import nearest
    from puna.plan.jobs import RECOMPUTE, SHARDING

    pinned = {}
    for name in _PARTS:
        value = getattr(args, name)
        if value is None:
            continue
        option = f"--{name.replace('_', '-')}"
        kinds = {"sharding": SHARDING, "recompute": RECOMPUTE}.get(name)
        if kinds:
            if value not in kinds:
                raise PunaError(f"{option} {value} is not known.", nearest(value, kinds))
            value = kinds.index(value)
        elif value < 1:
            raise PunaError(f"{option} {value} cannot be.", "Give a whole number of at least 1.")
        pinned[name] = value
    return pinned


def _given(target: "Target", group: "Group") -> dict[str, Any] | None:
    """The layout that the recipe itself asks for, where it can run on this fleet."""
    from puna.cli.plan_target import recipe_layout

    if target.recipe is None or target.stack != "puna":
        return None
    try:
        return recipe_layout(target.recipe, group.count)
    except PunaError:
        return None


def _own(target: "Target", question: "Question") -> tuple[dict[str, Any], tuple[str, ...]]:
    """How `plan.answer` predicts Puna's own run with what was measured on this machine, and a line that says so."""
    from dataclasses import replace

    from puna.cli.plan_target import is_compiled
    from puna.plan.machine import device_here, read_calibration
    from puna.plan.own import own_values, predict_own
    from puna.plan.predict import predict

    calibration = read_calibration(device_here("cpu" if question.accelerator.generation == "cpu" else "cuda"))
    compiled = is_compiled(target.recipe, question.accelerator)
    values = own_values(question, calibration, compiled=compiled)

    def here(question: "Question", layout: dict[str, Any], *, values: Any) -> "Prediction":
        usual = predict(question, layout, values=values)
        own = predict_own(question, layout, calibration, muon_iterations=target.muon_iterations, compiled=compiled)
        # What another optimizer takes, it takes under every assumption.
        more = own.step_seconds - usual.step_seconds
        lines = (replace(line, step_seconds=line.step_seconds + more) for line in usual.sensitivities)
        return replace(own, sensitivities=tuple(lines))

    told = "this machine's rates are estimated; `puna plan calibrate` measures them"
    if calibration:
        told = f"this machine's rates as measured on {calibration.date} (puna plan calibrate)"
    return {"values": values, "predictor": here}, (told,)


def _said(reliability: "Reliability") -> tuple[str, ...]:
    rate = reliability.failures_per_node_day
    return (f"{rate * 1e3:g} failures of 1,000 nodes a day (reliability.failures_per_node_day); Llama 3's run had 3.8",)


def _check_launcher(args: argparse.Namespace) -> None:
    from puna.core.errors import nearest

    if args.emit and args.emit not in LAUNCHERS:
        raise PunaError(f"'{args.emit}' is not a launcher.", nearest(args.emit, LAUNCHERS))
    if args.emit and not args.output:
        raise PunaError("--emit needs a folder to write into.", f"Add -o, such as: --emit {args.emit} -o job/")
    if args.output and not args.emit:
        raise PunaError("-o is the folder of launch files, and none were asked for.", "Add --emit slurm or another.")
