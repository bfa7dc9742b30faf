"""Files are whole or as they were: full disks, failing work, other processes."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from puna.core import files
from puna.core.errors import PunaError
from puna.core.files import (
    lock_directory,
    new_directory,
    read_json,
    require_space,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)


def raising(code: int) -> Callable[..., NoReturn]:
    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})
    monkeypatch.setattr(files.os, call, raising(errno.ENOSPC))
    with pytest.raises(PunaError, match=r"No space left on the disk while writing .*state.json; what was there before"):
        write_json(path, {"step": 2})
    assert read_json(path) == {"step": 1}
    assert names(tmp_path) == ["state.json"]


def test_a_really_full_device_is_the_same_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with (
        pytest.raises(PunaError, match="No space left"),
        files.disk_errors(Path("/dev/full")),
        open("/dev/full", "w", encoding="utf-8") as file,
    ):
        file.write("x" * 100_000)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(files.os, "replace", raising(code))
    with pytest.raises(PunaError, match="Not allowed to write"):
        write_text(tmp_path / "a.txt", "a")
    assert names(tmp_path) == []


def test_other_errors_of_the_system_are_bugs_and_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "replace", raising(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "a.txt", "a")


def test_bytes_replace_a_file_whole_or_leave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.bin"
    content = bytes(range(256))
    write_bytes(path, b"old, and longer than " + content)
    write_bytes(path, content)
    assert path.read_bytes() == content
    monkeypatch.setattr(files.os, "replace", raising(errno.ENOSPC))
    with pytest.raises(PunaError, match=r"No space left on the disk while writing .*a\.bin"):
        write_bytes(path, b"new")
    assert path.read_bytes() == content
    assert names(path.parent) == ["a.bin"]


def test_text_is_written_byte_for_byte_into_a_new_folder(tmp_path: Path) -> None:
    text = "a\r\nb\n\u2028 ü\U0001f600"
    write_text(tmp_path / "new" / "a.txt", text)
    assert (tmp_path / "new" / "a.txt").read_bytes() == text.encode()
    assert (
        sha256_file(tmp_path / "new" / "a.txt")
        == (
            subprocess.run(
                ["sha256sum", tmp_path / "new" / "a.txt"], capture_output=True, text=True, check=True
            ).stdout[:64]
        )
    )


def test_json_that_is_missing_cut_short_or_unreadable_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="does not exist"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": [1, 2', encoding="utf-8")
    with pytest.raises(PunaError, match=r"a.json is not valid JSON .* may be truncated"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(PunaError, match="is not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(PunaError, match="cannot be read"):
        read_json(tmp_path)


def test_numbers_that_json_does_not_know_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def fill(folder: Path, text: str) -> None:
    (folder / "a.txt").write_text(text, encoding="utf-8")


def make(path: Path, text: str, *, replace: bool = False, then: Callable[[], None] = lambda: None) -> None:
    """Make a folder with one file, and do `then` before it gets its name."""
    with new_directory(path, replace=replace) as place:
        fill(place, text)
        then()


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model"
    with new_directory(path) as place:
        fill(place, "new")
        assert not path.exists()
    assert (path / "a.txt").read_text() == "new"
    assert names(tmp_path / "deep") == ["model"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output"):
        make(tmp_path / "model", "half", then=raising(errno.EIO))
    assert names(tmp_path) == []


def test_replacing_keeps_the_old_folder_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    make(path, "old")
    with pytest.raises(PunaError, match="exists already"):
        make(path, "new")
    with pytest.raises(OSError, match="Input/output"):
        make(path, "half", replace=True, then=raising(errno.EIO))
    assert (path / "a.txt").read_text() == "old"
    with new_directory(path, replace=True) as place:
        fill(place, "new")
        assert (path / "a.txt").read_text() == "old"
    assert (path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_a_disk_that_fills_up_while_a_folder_is_made_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    make(path, "old")
    with pytest.raises(PunaError, match="No space left"):
        make(path, "half", replace=True, then=raising(errno.ENOSPC))
    assert (path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_when_the_last_rename_fails_the_old_folder_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    make(path, "old")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp"):
            raising(errno.ENOSPC)()
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", failing)
    with pytest.raises(PunaError, match="No space left"):
        make(path, "new", replace=True)
    assert (path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_what_another_process_made_in_the_meantime_is_not_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(PunaError, match="another process made it"):
        make(path, "ours", then=lambda: make(path, "theirs"))
    assert (path / "a.txt").read_text() == "theirs"
    assert names(tmp_path) == ["model"]


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet" / "there", 1, "The model")
    with pytest.raises(PunaError, match=r"^The model needs 1048576 TiB but the disk of"):
        require_space(tmp_path, 2**60, "The model")


HOLDER = """
import sys, time
from pathlib import Path
from puna.core.files import lock_directory
with lock_directory(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_locked_by_a_living_process_and_free_once_it_was_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(PunaError, match=f"in use by a living process \\(pid {holder.pid}\\)"),
            lock_directory(run),
        ):
            pass
        assert (run / ".lock").read_text() == str(holder.pid)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with lock_directory(run):
            assert (run / ".lock").read_text() == str(os.getpid())
    finally:
        holder.kill()
        holder.communicate()


def test_the_lock_ends_with_its_block_also_when_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), lock_directory(tmp_path):
        raise RuntimeError
    with lock_directory(tmp_path), pytest.raises(PunaError, match="in use"), lock_directory(tmp_path):
        pass
    with lock_directory(tmp_path):
        pass


def test_a_file_cannot_be_locked_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x", encoding="utf-8")
    with pytest.raises(PunaError, match="is a file, not a folder"), lock_directory(tmp_path / "run"):
        pass


def test_json_is_written_as_it_is_read(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "ü"], "b": {}}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value


def test_what_is_in_the_way_is_a_sentence_and_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below.json", tmp_path / "folder"):
        with pytest.raises(PunaError, match="something is in the way"):
            write_json(path, {})
    for replace in (False, True):
        with pytest.raises(PunaError, match="exists already"), new_directory(tmp_path / "file", replace=replace):
            pass
    with pytest.raises(PunaError, match="something is in the way"), new_directory(tmp_path / "file" / "below"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["file", "folder"]


def test_an_input_that_may_not_be_read_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), new_directory(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/input.txt")
    assert names(tmp_path) == []


def test_the_folder_one_stands_in_can_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "old").write_text("old")
    monkeypatch.chdir(tmp_path / "here")
    with new_directory(Path("."), replace=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path / "here") == ["new"]


def test_a_disk_without_locks_is_not_called_a_living_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.fcntl, "flock", raising(errno.ENOLCK))
    with pytest.raises(PunaError, match="cannot lock files"), lock_directory(tmp_path / "run"):
        pass
