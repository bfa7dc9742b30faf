"""The conversation of `puna chat`: answers to what is typed, and the commands that begin with a slash."""

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from puna.core.console import say_plain
from puna.core.errors import PunaError, nearest
from puna.core.files import write_json
from puna.engine.chat_session import ChatSession
from puna.engine.generate import SamplingParams

COMMANDS = {
    "help": "list the commands",
    "reset": "forget the conversation",
    "system": "/system TEXT sets the system message and forgets the conversation; without TEXT it is shown",
    "retry": "answer the last message again",
    "save": "/save FILE writes the conversation as JSON (default: chat-DATE.json)",
    "exit": "leave (/quit, Ctrl-D)",
    "quit": "leave",
}


class Chat:
    """One conversation at the keyboard. out: where answers are written."""

    def __init__(self, session: ChatSession, params: SamplingParams, out: TextIO) -> None:
        self.session, self.params, self.out = session, params, out
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "reset": self._reset,
            "system": self._system,
            "retry": self._retry,
            "save": self._save,
        }

    def run(self, lines: Iterable[str]) -> None:
        """Answer line after line until one of them is /exit. A line that begins with // is sent with one slash."""
        for line in lines:
            command = re.fullmatch(r"/([a-z]+)(?:\s+(.*))?", line)
            if not command:
                self._answer(line.removeprefix("/") if line.startswith("//") else line)
                continue
            name, rest = command[1], command[2] or ""
            if name in ("exit", "quit"):
                return
            try:
                if name not in self._commands:
                    raise PunaError(f"There is no command /{name}.", nearest(name, COMMANDS))
                self._commands[name](rest.strip())
            except PunaError as error:
                say_plain(str(error))

    def plain(self) -> dict[str, Any]:
        """The conversation as plain values."""
        messages = [{"role": one["role"], "content": one["content"]} for one in self.session.messages]
        return {"chat": self.session.chat, "messages": messages}

    def _answer(self, text: str) -> None:
        answer = self.session.send(text, self.params)
        try:
            if not self.session.chat:
                self.out.write(text)
            for piece in answer:
                self.out.write(piece)
                self.out.flush()
        except PunaError as error:
            say_plain(f"{error} /reset starts again.")
        except KeyboardInterrupt:
            say_plain(" (stopped)")
        finally:
            answer.close()
        self.out.write("\n")
        self.out.flush()

    def _help(self, _: str) -> None:
        for name, meaning in COMMANDS.items():
            if name != "quit":
                say_plain(f"/{name:<8}{meaning}")

    def _reset(self, _: str) -> None:
        self.session.reset()
        say_plain("The conversation is forgotten.")

    def _system(self, text: str) -> None:
        if text:
            self.session.set_system(text)
            say_plain("The system message is set; the conversation begins again.")
        else:
            say_plain(self.session.system or "There is no system message.")

    def _retry(self, _: str) -> None:
        last = self.session.take_back()
        if last is None:
            raise PunaError("There is no answer yet.")
        self._answer(last)

    def _save(self, name: str) -> None:
        path = Path(name or f"chat-{datetime.now():%Y%m%d-%H%M%S}.json").expanduser()
        if path.exists():
            raise PunaError(f"{path} exists already.", "Choose another name.")
        write_json(path, self.plain())
        say_plain(f"Saved in {path}.")
