"""The `puna` command, which finds the module of a command and runs it.

Each module `puna.cli.<name>` has `arguments(parser)` and `run(args) -> None`. Only the module of the given command is
imported, so `puna --help` needs neither torch nor rich. `PunaError` is printed as one line and exits with 2.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from puna.core.errors import PunaError, nearest
from puna.version import __version__

COMMANDS = {
    "plan": "predict what a training run takes before it starts",
    "demo": "train and tune a small model on this machine, from its own files to a chat page",
    "doctor": "check this machine: what can be used, what is missing, how to get it",
    "data": "build and inspect corpora",
    "tokenizer": "train and compare tokenizers",
    "train": "train a model from a recipe, or resume a run",
    "tune": "tune a model after pretraining, one stage at a time",
    "verify-resume": "verify on this machine that stopping and resuming changes nothing",
    "report": "draw a run as one self-contained HTML page",
    "tasks": "generate problems that can be checked, and check answers",
    "eval": "evaluate a model",
    "sample": "continue a prompt",
    "chat": "chat with a model in the terminal",
    "sandbox": "test the isolation of untrusted code, with attacks",
    "serve": "serve models over HTTP: the OpenAI API and a chat page",
    "model": "inspect a model directory",
    "import": "import a model in Hugging Face layout",
    "export": "write a model as GGUF, for Ollama or as ONNX",
    "recipe": "show every field of a recipe, its value and its origin",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    top = argparse.ArgumentParser(
        prog="puna",
        description="Build Llama-class language models, from raw files to a prompt.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:<14} {text}" for name, text in COMMANDS.items())
        + "\n\nRun puna COMMAND --help for details.",
    )
    top.add_argument("--version", action="version", version=f"puna {__version__}")
    top.add_argument("command", metavar="COMMAND", nargs="?")
    if not argv or argv[0] not in COMMANDS:
        args, _ = top.parse_known_args(argv[:1])
        if args.command is None:
            top.print_help()
            return 0
        print(f"puna: unknown command '{args.command}'. {nearest(args.command, COMMANDS)}", file=sys.stderr)
        return 2
    name = argv[0]
    module = importlib.import_module(f"puna.cli.{name.replace('-', '_')}_command")
    parser = argparse.ArgumentParser(prog=f"puna {name}", description=(module.__doc__ or "").strip().splitlines()[0])
    module.arguments(parser)
    try:
        args = _parse(parser, argv[1:])
        module.run(args)
    except PunaError as error:
        print(f"puna {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"puna {name}: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse, allowing overrides after options too, which argparse rejects.

    An example is `data build R -o DIR seed=1`.
    """
    args, rest = parser.parse_known_args(argv)
    where = next((name for name in ("overrides", "words") if hasattr(args, name)), None)
    if where and all("=" in word and not word.startswith("-") for word in rest):
        setattr(args, where, [*getattr(args, where), *rest])
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args
