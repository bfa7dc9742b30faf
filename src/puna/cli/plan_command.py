"""plan what a training run takes: memory, speed, layout, days, failures, energy, cost

puna plan TARGET [--fleet 8xh100]     a preset, a recipe or a model directory; without --fleet: this machine
puna plan fleet FILE|8xh100+64xa100   H100 equivalents, price, power and failures of a fleet
puna plan goodput --gpus N --days D   interruptions, checkpoint interval, effective time, spares
puna plan calibrate                   measure this device
puna plan predict --runs FILE         predict every row of a file of published runs
puna plan validate [--runs FILE]      errors by family, intervals, ranking
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from puna.core.errors import PunaError

if TYPE_CHECKING:
    from puna.plan.equations.hardware import AcceleratorGroup
    from puna.plan.run.estimate import RunEstimate
    from puna.plan.run.terms import Terms
    from puna.train.planning.target import Target

ACTIONS = ("fleet", "goodput", "calibrate", "predict", "validate")
LAUNCHERS = ("slurm", "torchrun", "kubeflow", "skypilot", "ray")
_SIZES = ("tp", "cp", "pp", "vp", "dp", "ep", "micro_batch")
# Options of each action; any other is rejected instead of being ignored.
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
    parser.usage = "puna plan TARGET | fleet FILE | goodput | calibrate | predict | validate"
    parser.add_argument("words", nargs="*", metavar="TARGET", help="preset, recipe, model directory, or an action")
    run = parser.add_argument_group("the run")
    run.add_argument("--fleet", metavar="16384xh100", help="accelerators (default: this machine's)")
    run.add_argument("--tokens", metavar="15.6T", help="training tokens (default: the recipe's, or 20 per parameter)")
    run.add_argument("--batch", metavar="N|16M", help="sequences per step, or approximate tokens")
    run.add_argument("--seq-len", metavar="N", help="tokens per sequence")
    run.add_argument("--precision", metavar="FORMAT", help="bf16, fp8, mxfp8, nvfp4 or fp32")
    run.add_argument("--stack", metavar="NAME", help="software, such as megatron-core, torchtitan, puna")
    pins = parser.add_argument_group("fixed parts of the layout (the rest is searched)")
    for name in _SIZES:
        pins.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    pins.add_argument("--sharding", metavar="KIND", help="ddp, zero1, zero2, zero3 or hsdp")
    pins.add_argument("--recompute", metavar="KIND", help="none, selective, ops, blocks or full")
    money = parser.add_argument_group("money and time")
    money.add_argument("--price", type=float, metavar="USD", help="rent per accelerator-hour")
    money.add_argument("--budget-usd", type=float, metavar="USD", help="plan what this budget buys")
    money.add_argument("--days", type=float, metavar="D", help="days of the run; goodput, fleet: days to consider")
    shown = parser.add_argument_group("the answer")
    shown.add_argument("--explain", action="store_true", help="print every millisecond and every GiB with its equation")
    shown.add_argument("--json", action="store_true", help="print JSON")
    shown.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page with charts")
    shown.add_argument("--emit", metavar="KIND", help=f"write launch files into -o: {', '.join(LAUNCHERS)}")
    shown.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the launch files")
    others = parser.add_argument_group("goodput, calibrate, predict, validate")
    others.add_argument("--gpus", metavar="N", help="goodput: accelerators of the job")
    others.add_argument(
        "--parameters", metavar="405B", help="goodput: size of the model (default: 25M per accelerator)"
    )
    others.add_argument("--rate", type=float, metavar="R", help="goodput: failures per node and day (default: 3.8e-3)")
    others.add_argument("--quick", action="store_true", help="calibrate: fewer sizes, takes seconds")
    others.add_argument("--runs", type=Path, metavar="FILE", help="predict, validate: published runs, YAML")


def run(args: argparse.Namespace) -> None:
    """Run the action given by the first word, or plan a run."""
    if not args.words:
        raise PunaError("No target was given.", "Try: puna plan llama3-8b --fleet 8xh100, or puna plan --help.")
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
        raise PunaError(f"{option} is not an option of {what}.", "See puna plan --help.")
    if action in ("goodput", "calibrate", "predict", "validate") and len(args.words) > 1:
        raise PunaError(f"'{args.words[1]}' is not an argument of puna plan {action}.", "See puna plan --help.")


# -- one run ---------------------------------------------------------------------------------------------------------


def _plan(args: argparse.Namespace) -> None:
    from puna.plan.layouts.constraints import read_constraints
    from puna.plan.run.estimate import estimate_run
    from puna.plan.run.terms import read_terms
    from puna.train.planning.target import Options, find_target, fleet_for, on_this_machine

    name, *overrides = args.words
    terms, overrides = read_terms(overrides, args.price)
    _check_launcher(args)
    limited = args.budget_usd is not None or args.days is not None
    group = fleet_for(args.fleet, limited=limited)
    options = Options(args.tokens, args.batch, args.seq_len, args.precision, args.stack)
    here = args.fleet is None and not limited
    target = find_target(name, overrides, options, accelerator=group.accelerator, machine=here)
    constraints = read_constraints(vars(args))
    if limited:
        _budget(args, target, group, constraints, terms)
        return
    question, notes = target.question(group.accelerator, group.count), list(target.assumptions)
    if here and target.stack == "puna":
        question, note = on_this_machine(target, question)
        notes.append(note)
    found = estimate_run(
        question,
        tokens=target.tokens,
        constraints=constraints,
        recipe_layout=target.recipe_layout(group.accelerator, group.count),
        prices=terms.prices,
        reliability=terms.reliability,
        assumptions=(*notes, terms.reliability.assumption),
    )
    _show(args, target, found, terms)


def _show(args: argparse.Namespace, target: "Target", found: "RunEstimate", terms: "Terms") -> None:
    """Print the estimate, and write the requested files."""
    from puna.core.console import console, print_json, say
    from puna.plan.output.format import own_stack_words
    from puna.plan.run.budget import sizes

    own_target = None if args.stack else target.on_own_stack()
    own, question = None, found.question
    if own_target:
        sized = partial(own_target.question, question.accelerator)
        own = next(iter(sizes(sized, [question.accelerators], found.tokens, terms)), None)
    own_words = own_stack_words(own, found) if own_target else ""
    if args.json:
        from puna.plan.output.json_output import estimate_tree

        noted = (*found.assumptions, own_words) if own_words else found.assumptions
        print_json(estimate_tree(replace(found, assumptions=noted)))
    else:
        from puna.plan.output.terminal import estimate_text

        console(stderr=False).print(estimate_text(found, explain=args.explain, own=own_words))
    if args.html:
        from puna.plan.output.html import write_html

        path = write_html(
            found, args.html, sized=partial(target.question, question.accelerator), terms=terms, own=own_words
        )
        say(f"Wrote {path}.")
    if args.emit:
        from puna.plan.launch.from_estimate import write_launch

        written = write_launch(args.emit, target.name, target.recipe_tree(found.tokens), found, args.output)
        say(f"Wrote {', '.join(str(path) for path in written.files)}.")
        for warning in written.warnings:
            say(f"[yellow]{warning}[/yellow]")


def _budget(
    args: argparse.Namespace, target: "Target", group: "AcceleratorGroup", constraints: dict[str, int], terms: "Terms"
) -> None:
    from puna.core.console import console, print_json
    from puna.model.config import PRESETS
    from puna.plan.run.budget import plan_budget

    for option, value in (("--emit", args.emit), ("--html", args.html), ("a pinned layout", constraints)):
        if value:
            raise PunaError(
                f"{option} does not go with --budget-usd and --days.", "Plan the resulting fleet with --fleet."
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
        terms=terms,
        assumptions=target.assumptions,
    )
    if args.json:
        from puna.plan.output.json_output import budget_tree

        print_json(budget_tree(found))
    else:
        from puna.plan.output.terminal import budget_text

        console(stderr=False).print(budget_text(found, explain=args.explain))


def _check_launcher(args: argparse.Namespace) -> None:
    from puna.core.errors import nearest

    if args.emit and args.emit not in LAUNCHERS:
        raise PunaError(f"'{args.emit}' is not a launcher.", nearest(args.emit, LAUNCHERS))
    if args.emit and not args.output:
        raise PunaError("--emit needs a folder to write into.", f"Add -o, such as: --emit {args.emit} -o job/")
    if args.output and not args.emit:
        raise PunaError("-o is the folder of launch files, but --emit was not given.", "Add --emit slurm or another.")
