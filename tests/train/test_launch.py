"""Several processes on one machine: their environment, how they end, how they are stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from puna.train.run.launch import launch


def script(tmp_path: Path, body: str) -> list[str]:
    path = tmp_path / "worker.py"
    path.write_text(f"import os, sys, time, signal, pathlib\nrank = int(os.environ.get('RANK', -1))\n{body}\n")
    return [sys.executable, str(path)]


def test_each_process_knows_its_rank_and_shares_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    keys = "('WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'OMP_NUM_THREADS')"
    body = f"pathlib.Path({str(tmp_path)!r}, str(rank)).write_text(' '.join(os.environ[k] for k in {keys}))"
    assert launch(script(tmp_path, body), 3) == 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for rank in range(3):
        size, local, address, threads = (tmp_path / str(rank)).read_text().split()
        assert (size, local, address) == ("3", str(rank), "127.0.0.1")
        assert 1 <= int(threads) <= max(1, cores // 3)


def test_one_process_needs_no_group(tmp_path: Path) -> None:
    assert launch(script(tmp_path, "sys.exit(0 if rank == -1 and 'MASTER_PORT' not in os.environ else 1)"), 1) == 0


def test_one_failure_ends_the_run_with_its_code_and_last_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.train.run.launch._GRACE_SECONDS", 0.2)
    body = "sys.exit('process 1 is ill') if rank == 1 else time.sleep(60)"
    assert launch(script(tmp_path, body), 2) == 1
    assert "process 1 is ill" in capfd.readouterr().err


def test_only_the_first_process_speaks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(script(tmp_path, "print('hello from', rank); print('note', rank, file=sys.stderr)"), 2) == 0
    out, err = capfd.readouterr()
    assert (out.split("\n"), err.split("\n")) == (["hello from 0", ""], ["note 0", ""])


def start(tmp_path: Path, body: str) -> subprocess.Popen[bytes]:
    """A launcher in a separate process, with two workers that are ready."""
    command = script(tmp_path, f"{body}\npathlib.Path({str(tmp_path)!r}, f'ready{{rank}}').touch()\ntime.sleep(60)")
    program = f"import sys; from puna.train.run.launch import launch; sys.exit(launch({command!r}, 2))"
    process = subprocess.Popen([sys.executable, "-c", program])
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    return process


def wait_for(condition: object) -> None:
    for _ in range(600):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.05)
    pytest.fail("waited in vain")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_the_workers_may_take_their_time(tmp_path: Path, number: signal.Signals) -> None:
    body = (
        "def leave(number, _):\n"
        "    time.sleep(0.5 * (1 + rank))\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'saved{{rank}}').touch()\n"
        "    sys.exit(128 + number)\n"
        "signal.signal(signal.SIGINT, leave); signal.signal(signal.SIGTERM, leave)"
    )
    process = start(tmp_path, body)
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert {path.name for path in tmp_path.glob("saved*")} == {"saved0", "saved1"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' parent-death signal")
def test_workers_do_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    body = f"pathlib.Path({str(tmp_path)!r}, f'pid{{rank}}').write_text(str(os.getpid()))"
    process = start(tmp_path, body)
    process.kill()
    process.wait()
    pids = [int(path.read_text()) for path in tmp_path.glob("pid*")]
    assert len(pids) == 2
    wait_for(lambda: not any(_alive(pid) for pid in pids))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
