"""The `puna` command: imports the module of a command and runs it.

Each module `puna.cli.<name>_command` has `arguments(parser)` and `run(args) -> None`. Only the module of the command is
imported, so `puna --help` needs neither torch nor rich. A `PunaError` is printed as one sentence and exits with 2.
"""

import importlib
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence

from puna.cli.help import Parser
from puna.core.errors import PunaError, nearest
from puna.version import __version__

COMMANDS = {
    "plan": "plan what a training run takes before it starts",
    "demo": "raise a small model on this machine and open a page to talk to it",
    "doctor": "show what works on this machine, what is missing and how to get it",
    "data": "build and inspect corpora",
    "tokenizer": "train and compare tokenizers",
    "train": "train a model from a recipe, or resume a run",
    "tune": "tune a model after pretraining, one stage at a time",
    "verify-resume": "prove on this machine that stopping and resuming changes nothing",
    "report": "write a run's report as one self-contained HTML page",
    "tasks": "generate problems that can be checked, and check answers",
    "eval": "evaluate a model",
    "sample": "continue a prompt",
    "chat": "talk to a model in the terminal",
    "sandbox": "check how well this machine isolates untrusted code",
    "serve": "serve models over HTTP: the OpenAI API and a chat page",
    "model": "inspect a model directory",
    "import": "import a model in Hugging Face layout",
    "export": "export a model as GGUF, for Ollama or as ONNX",
    "recipe": "show every field of a recipe, its value and its origin",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 for bad input, 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    top = Parser(
        prog="puna",
        description="Raise a Llama-class language model, from raw files to a prompt.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<14}   {text}" for name, text in COMMANDS.items())
        + "\n\nRun puna COMMAND --help for the options of a command.",
    )
    top.add_argument("--version", action="version", version=f"puna {__version__}")
    top.add_argument("command", metavar="COMMAND", nargs="?")
    if not argv or argv[0] not in COMMANDS:
        args, _ = top.parse_known_args(argv[:1])
        if args.command is None:
            top.print_help()
            return 0
        _complain(f"puna: unknown command '{args.command}'. {nearest(args.command, COMMANDS)}")
        return 2
    name = argv[0]
    module = importlib.import_module(f"puna.cli.{name.replace('-', '_')}_command")
    parser = Parser(prog=f"puna {name}", description=(module.__doc__ or "").strip())
    module.arguments(parser)
    try:
        args = _parse(parser, argv[1:])
        module.run(args)
    except PunaError as error:
        _complain(f"puna {name}: {error}")
        return 2
    except KeyboardInterrupt:
        print(f"puna {name}: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0


def _complain(sentence: str) -> None:
    """Print an error; on a terminal it is wrapped between words."""
    if sys.stderr.isatty():
        from puna.core.console import say_plain

        say_plain(sentence)
    else:
        print(sentence, file=sys.stderr)


def _parse(parser: Parser, argv: list[str]) -> Namespace:
    """Parse, with overrides allowed after options too, which argparse alone refuses (`data build R -o DIR seed=1`)."""
    args, rest = parser.parse_known_args(argv)
    where = next((name for name in ("overrides", "words") if hasattr(args, name)), None)
    if where and all("=" in word and not word.startswith("-") for word in rest):
        setattr(args, where, [*getattr(args, where), *rest])
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args
