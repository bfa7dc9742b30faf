"""Running programs and functions: what comes back, what ends early, and the floor."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from puna.cli.main import main
from puna.core.errors import PunaError
from puna.sandbox import run as rooms
from puna.sandbox.result import Limits, level_of
from puna.sandbox.run import run_python
from puna.sandbox.worker import Sandbox

FLOOR = "limits"  # what every Linux has: these tests are about the way, not the walls


def test_a_program_reads_stdin_and_prints() -> None:
    result = run_python("print(input()[::-1]); import sys; print('é', file=sys.stderr)", stdin="abc\n", floor=FLOOR)
    assert (result.stdout, result.stderr, result.exit, result.ok) == ("cba\n", "é\n", 0, True)
    assert result.level in ("limits", "confined", "isolated")
    assert "rlimits" in result.walls


def test_exit_codes_and_tracebacks_are_those_of_an_interpreter() -> None:
    assert run_python("raise SystemExit(3)", floor=FLOOR).exit == 3
    assert run_python("import sys; sys.exit('sorry')", floor=FLOOR).stderr == "sorry\n"
    result = run_python("import atexit\natexit.register(print, 'bye')\n1 / 0", floor=FLOOR)
    assert (result.exit, result.stdout) == (1, "bye\n")
    assert "ZeroDivisionError" in result.stderr
    assert "harness" not in result.stderr


def test_values_come_back_with_their_types() -> None:
    inputs = [[True], [1], [1.0], [-0.0], ["a\0\ud800"], [(1, [2])], [{1, 2}], [{1: None}], [b"\xff"], [10**5000]]
    result = run_python("def f(x): return x", function="f", inputs=inputs, floor=FLOOR)
    assert result.ok
    assert [type(answer.value) for answer in result.values] == [type(one[0]) for one in inputs]
    assert [answer.value for answer in result.values] == [one[0] for one in inputs]


def test_an_exception_is_one_answer_and_the_others_stand() -> None:
    result = run_python("def f(x): return 6 // x", function="f", inputs=[[1], [0], [2]], floor=FLOOR)
    assert result.ok
    assert [answer.value for answer in result.values] == [6, None, 3]
    assert result.values[1].error.startswith("ZeroDivisionError")


def test_values_before_the_end_of_time_are_kept() -> None:
    source = "def f(x):\n    while x == 2: pass\n    return x"
    result = run_python(source, function="f", inputs=[[1], [2], [3]], limits=Limits(seconds=1), floor=FLOOR)
    assert [answer.value for answer in result.values] == [1]
    assert result.reason.startswith("time")


def test_nothing_is_shared_between_evaluations() -> None:
    run_python("import math, builtins; math.pi = 3; builtins.mark = 1; open('left', 'w').write('x')", floor=FLOOR)
    result = run_python(
        "import math, os; print(math.pi > 3, 'mark' in dir(__builtins__), os.listdir('.'))", floor=FLOOR
    )
    assert result.stdout == "True False []\n"


def test_the_working_folder_is_its_own_and_asyncio_and_threads_work() -> None:
    source = (
        "import asyncio, threading\n"
        "open('a', 'w').write('x')\n"
        "t = threading.Thread(target=print, args=(open('a').read(),)); t.start(); t.join()\n"
        "asyncio.run(asyncio.sleep(0.001)); print('y')"
    )
    assert run_python(source, floor=FLOOR).stdout == "x\ny\n"


def test_the_same_program_gives_the_same_order_of_a_set() -> None:
    first, second = Sandbox(), Sandbox()
    try:
        texts = {one.run("print(set('abcdefghij'))").stdout for one in (first, second)}
    finally:
        first.close()
        second.close()
    assert len(texts) == 1


def test_threads_get_a_warm_process_each() -> None:
    def one(number: int) -> bool:
        result = run_python(f"def f(x): return x + {number}", function="f", inputs=[[1]], floor=FLOOR)
        return result.values[0].value == 1 + number

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(12)))


def test_a_killed_warm_process_is_replaced() -> None:
    run_python("pass", floor=FLOOR)
    for sandbox in rooms._idle:
        sandbox._process.kill()
        sandbox._process.wait()
    assert run_python("print(1)", floor=FLOOR).stdout == "1\n"


def test_the_end_of_the_owner_is_the_end_of_everything() -> None:
    code = (
        "from puna.sandbox.worker import Sandbox\nimport threading, time\ns = Sandbox()\n"
        "threading.Thread(target=s.run, args=('import time; time.sleep(60)',), daemon=True).start()\n"
        "time.sleep(0.5); print(s._process.pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    warm = int(owner.stdout.readline())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    gone = threading.Event()
    for _ in range(200):
        if not os.path.exists(f"/proc/{warm}"):
            gone.set()
            break
        threading.Event().wait(0.05)
    assert gone.is_set()


def test_secrets_of_the_caller_are_not_in_the_warm_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "very-secret-words")
    sandbox = Sandbox()
    try:
        found = sandbox.run(
            "import gc, os\nprint(os.environ, any('very-' + x in str(o) for o in gc.get_objects() for x in ['secret']))"
        )
    finally:
        sandbox.close()
    assert found.stdout == "environ({}) False\n"


def test_below_the_floor_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "Sandbox", lambda: Sandbox("limits"))
    monkeypatch.setattr(rooms, "_idle", [])
    with pytest.raises(PunaError, match="reaches level 'limits', below the floor 'isolated'"):
        run_python("print(1)", floor="isolated")


def test_elsewhere_the_level_is_none_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(PunaError, match="level on darwin is 'none'"):
        Sandbox()


@pytest.mark.parametrize(
    ("missing", "level"),
    [
        ((), "isolated"),
        (("user", "landlock"), "isolated"),
        (("tmpfs",), "confined"),
        (("landlock", "pid", "root"), "limits"),
        (("seccomp",), "limits"),
        (("rlimits",), "none"),
        (("uid",), "none"),
    ],
)
def test_walls_make_levels(missing: tuple[str, ...], level: str) -> None:
    names = [
        "user",
        "pid",
        "net",
        "ipc",
        "root",
        "tmpfs",
        "landlock",
        "seccomp",
        "uid",
        "rlimits",
        "capabilities",
        "no_new_privs",
    ]
    assert level_of({name: "gone" if name in missing else "" for name in names}) == level


def test_bad_words_are_refused_with_a_sentence() -> None:
    with pytest.raises(PunaError, match="no level 'isolatd'"):
        run_python("", floor="isolatd")
    with pytest.raises(PunaError, match="memory_bytes = 0"):
        Limits(memory_bytes=0)
    with pytest.raises(PunaError, match="not plain data"):
        run_python("def f(x): pass", function="f", inputs=[[object()]], floor=FLOOR)


def test_the_command_prints_walls_and_attacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "check", "--kind", "reward", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["level"] in ("limits", "confined", "isolated")
    assert "seccomp" in said["walls"]
    assert all(attack["contained"] for attack in said["attacks"])
    assert main(["sandbox", "check", "--no-attacks", "--ceiling", "limits", "--floor", "isolated"]) == 2
    caught = capsys.readouterr()
    assert "the ceiling is 'limits'" in caught.out
    assert "below the floor 'isolated'" in caught.err
