"""talk to a model in the terminal

/help lists the commands. Ctrl-C stops an answer; /exit, Ctrl-D or Ctrl-C at the prompt leaves. A base model, which was
never trained to chat, continues what is typed. Lines of earlier chats come back with the arrow keys and Ctrl-R, from
~/.local/share/puna/chat_history; --no-history neither reads nor writes that file.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from puna.cli import generation_options

HISTORY_LINES = 2000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="model or run directory")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message (chat models)")
    parser.add_argument("--no-history", action="store_true", help="neither read nor write the history of typed lines")
    generation_options.add_options(parser, max_tokens=512)


def run(args: argparse.Namespace) -> None:
    """Load the model and chat.

    With --json the chat goes to stderr and the messages to stdout at the end.
    """
    from puna.core.console import print_json, say
    from puna.model.hub import model_directory

    directory = model_directory(args.model)
    params = generation_options.sampling_params(args)

    from puna.cli.chat_loop import Chat
    from puna.engine.chat_session import ChatSession
    from puna.model.store import load_stage

    chat = load_stage(directory) == "chat"
    conversation = ChatSession(generation_options.load(args, fast=True), chat=chat, system=args.system)
    if not chat:
        say("This is a base model: it was not trained to chat and continues what you type.")
    if sys.stdin.isatty():
        say("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    talk = Chat(conversation, params, sys.stderr if args.json else sys.stdout)
    talk.run(_lines(history=not args.no_history))
    if args.json:
        print_json(talk.plain())


def _lines(*, history: bool) -> Iterator[str]:
    """What is typed, line by line, until the end of input or Ctrl-C."""
    terminal = sys.stdin.isatty()
    if terminal:
        _prepare_editing(_history_file() if history else None)
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            if terminal:
                print(file=sys.stderr)
            return
        if line:
            yield line


def _history_file() -> Path:
    from puna.web.settings import data_directory

    return data_directory() / "chat_history"


def _prepare_editing(history: Path | None) -> None:
    """Give input() line editing, completion of commands and, where `history` is a file, lines of earlier chats."""
    import atexit
    import contextlib

    try:
        import readline
    except ImportError:  # a Python built without it
        return
    from puna.cli.chat_loop import COMMANDS

    def complete(text: str, state: int) -> str | None:
        found = [f"/{name}" for name in COMMANDS if text and f"/{name}".startswith(text)]
        return found[state] if state < len(found) else None

    def keep() -> None:
        with contextlib.suppress(OSError):
            assert history is not None
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(mode=0o600)
            readline.write_history_file(history)

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    # Python 3.13 and later may have libedit, which has a command of its own.
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    readline.set_auto_history(True)
    if history is not None:
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
        readline.set_history_length(HISTORY_LINES)
        atexit.register(keep)
