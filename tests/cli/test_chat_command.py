"""`puna chat`: its commands, and the history of typed lines."""

import json
import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.cli.main import main

Talk = Callable[..., tuple[dict, str]]


@pytest.fixture
def talk(chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """A function `(*lines, options=()) -> (conversation, stderr)`."""

    def run(*lines: str, options: tuple[str, ...] = ()) -> tuple[dict, str]:
        coming = iter(lines)

        def read(_: str = "") -> str:
            line = next(coming, None)
            if line is None:
                raise EOFError
            return line

        monkeypatch.setattr("builtins.input", read)
        words = ["chat", str(chat_model), "--json", "--greedy", "--max-tokens", "4", "--device", "cpu", *options]
        assert main(words) == 0
        shown = capsys.readouterr()
        return json.loads(shown.out), shown.err

    return run


def roles(conversation: dict) -> list[str]:
    return [message["role"] for message in conversation["messages"]]


def test_help_names_every_command_and_unknown_ones_are_explained(talk: Talk) -> None:
    conversation, err = talk("/help", "/sytem be kind", "/exit", "never read")
    for name in ("/help", "/reset", "/system", "/retry", "/save", "/exit"):
        assert name in err
    assert "There is no command /sytem. Did you mean 'system'?" in err
    assert conversation["messages"] == []


def test_the_system_message_can_be_set_and_shown(talk: Talk) -> None:
    conversation, err = talk("/system", "/system be kind", "/system", "ships", options=("--system", "be brief"))
    assert "be brief" in err
    assert "be kind" in err
    assert conversation["messages"][0] == {"role": "system", "content": "be kind"}
    assert roles(conversation) == ["system", "user", "assistant"]
    conversation, _ = talk("ships", "/reset", options=("--system", "be brief"))
    assert roles(conversation) == ["system"]


def test_retry_answers_the_last_message_again(talk: Talk) -> None:
    conversation, err = talk("/retry", "ships", "harbour", "/retry")
    assert "There is no answer yet." in err
    assert roles(conversation) == ["user", "assistant", "user", "assistant"]
    assert conversation == talk("ships", "harbour")[0], "greedy: the same again"


def test_save_writes_json_and_overwrites_nothing(talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "talk.json"
    conversation, err = talk("ships", f"/save {file}", f"/save {file}", "/save")
    assert json.loads(file.read_text()) == conversation
    assert f"{file} exists already" in " ".join(err.split())
    assert len(list(tmp_path.glob("chat-*.json"))) == 1


def test_text_may_begin_with_a_slash(talk: Talk) -> None:
    conversation, _ = talk("/usr/bin is a folder", "//help", "/Berlin")
    sent = [message["content"] for message in conversation["messages"] if message["role"] == "user"]
    assert sent == ["/usr/bin is a folder", "/help", "/Berlin"]


def test_a_chat_can_be_saved_for_a_base_model_and_has_no_system_message(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.model.store.load_stage", lambda _: "base")
    conversation, err = talk("/system be kind", "ships")
    assert "A base model has no system message" in err
    assert conversation["chat"] is False


TYPE = "from puna.cli.chat_command import _lines; print(list(_lines(history={history})))"


def typed(keys: bytes, home: Path, *, history: bool = True) -> str:
    """What a process shows whose terminal gets these keys."""
    child, terminal = pty.fork()
    if not child:
        os.environ["XDG_DATA_HOME"] = str(home)
        os.environ["TERM"] = "dumb"
        os.execv(sys.executable, [sys.executable, "-c", TYPE.format(history=history)])
    shown = b""
    try:
        while b"> " not in shown:
            shown += os.read(terminal, 1024)
        os.write(terminal, keys)
        while True:
            shown += os.read(terminal, 1024)
    except OSError:  # Linux reports the end of a terminal so
        pass
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    return shown.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="reads a terminal as Linux has it")
def test_the_history_lasts_from_one_chat_to_the_next(tmp_path: Path) -> None:
    pytest.importorskip("readline", reason="needs a Python with readline")
    typed(b"where is the harbour\r\x04", tmp_path)
    file = tmp_path / "puna" / "chat_history"
    assert "where is the harbour" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0, "what somebody typed is theirs alone"
    assert "['where is the harbour']" in typed(b"\x1b[A\r\x04", tmp_path), "arrow up"
    assert "['/reset']" in typed(b"/re\x09s\x09\r\x04", tmp_path), "completion"
    before = file.read_text()
    typed(b"a secret\r\x04", tmp_path, history=False)
    assert file.read_text() == before
