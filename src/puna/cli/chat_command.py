"""Chat with a model in the terminal.

/reset forgets the conversation, /quit or Ctrl-D exits. Ctrl-C stops an answer; at the prompt it exits. A base model,
which was not trained to chat, continues the typed text.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from puna.cli import generation_options

if TYPE_CHECKING:
    from puna.engine.chat_session import ChatSession
    from puna.engine.generate import SamplingParams


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="model or run directory")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message (chat models)")
    generation_options.add_options(parser, max_tokens=512)


def run(args: argparse.Namespace) -> None:
    """Load the model and chat.

    With --json the chat goes to stderr and the messages to stdout at the end.
    """
    from puna.core.console import print_json, say
    from puna.engine.chat_session import ChatSession
    from puna.model.hub import model_directory
    from puna.model.store import load_stage

    params = generation_options.sampling_params(args)
    chat = load_stage(model_directory(args.model)) == "chat"
    conversation = ChatSession(generation_options.load(args, fast=True), chat=chat, system=args.system)
    if not chat:
        say("This is a base model: it was not trained to chat and continues what you type.")
    if sys.stdin.isatty():
        say("/reset forgets the conversation, /quit exits, Ctrl-C stops an answer.")
    talk(conversation, params, sys.stderr if args.json else sys.stdout)
    if args.json:
        keys = ("role", "content")
        print_json({"chat": chat, "messages": [{key: m[key] for key in keys} for m in conversation.messages]})


def talk(conversation: "ChatSession", params: "SamplingParams", out: TextIO) -> None:
    """Answer line by line until the user exits."""
    from rich.markup import escape

    from puna.core.console import say
    from puna.core.errors import PunaError

    for line in _lines():
        if line == "/quit":
            return
        if line == "/reset":
            conversation.reset()
            say("Forgotten.")
            continue
        answer = conversation.send(line, params)
        try:
            if not conversation.chat:
                out.write(line)
            for piece in answer:
                out.write(piece)
                out.flush()
        except PunaError as error:
            say(escape(f"{error} /reset starts again."))
        except KeyboardInterrupt:
            say(" (stopped)")
        finally:
            answer.close()
        out.write("\n")
        out.flush()


def _lines() -> Iterator[str]:
    """Yield typed lines until the end of input or Ctrl-C."""
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  (gives input() its history and editing)
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            if terminal:
                print(file=sys.stderr)
            return
        if line:
            yield line
