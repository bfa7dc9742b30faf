"""The log of a run: lines survive, lines of repeated steps are moved aside, observers are called."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.train.recipe import LogConfig
from puna.train.run.metrics import MetricsLog, read_metrics, scalars, without_abandoned


def train(step, loss=2.5, **more):
    return {"kind": "train", "step": step, "loss": loss, **more}


def test_floats_come_back_bit_for_bit(tmp_path):
    values = [0.1 + 0.2, math.pi, 1e-310, 2.0**-1074, 123456789.123456789]
    log = MetricsLog(tmp_path, LogConfig())
    for step, value in enumerate(values):
        log.write(train(step, value))
    log.close()
    log.close()
    assert [event["loss"] for event in read_metrics(tmp_path)] == values


def test_what_is_not_finite_becomes_null_and_every_line_is_strict_json(tmp_path):
    log = MetricsLog(tmp_path, LogConfig())
    log.write(train(1, math.nan, mfu={"full": math.inf}, list=[1.0, -math.inf]))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    event = json.loads(line, parse_constant=pytest.fail)
    assert event == {"kind": "train", "step": 1, "loss": None, "mfu": {"full": None}, "list": [1.0, None]}


def test_every_line_is_there_when_the_process_is_killed(tmp_path):
    script = """
        import os, signal, sys
        from pathlib import Path
        from puna.train.run.metrics import MetricsLog
        from puna.train.recipe import LogConfig
        log = MetricsLog(Path(sys.argv[1]), LogConfig())
        for step in range(100):
            log.write({"kind": "train", "step": step, "text": "x" * 1000})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert [event["step"] for event in read_metrics(tmp_path)] == list(range(100))


def test_resuming_sets_later_lines_aside_and_keeps_the_rest_byte_for_byte(tmp_path):
    log = MetricsLog(tmp_path, LogConfig())
    log.write({"kind": "start", "step": 0})
    for step in (10, 20, 30):
        log.write(train(step, 1 / step))
    log.close()
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes().splitlines(keepends=True)
    with open(path, "ab") as file:
        file.write(b'{"kind": "train", "st')  # cut off by a power failure
    log = MetricsLog(tmp_path, LogConfig(), resume_step=20)
    assert path.read_bytes() == b"".join(before[:3])
    log.write(train(30, 0.5))
    log.close()
    assert [event["step"] for event in read_metrics(tmp_path)] == [0, 10, 20, 30]
    dropped = (tmp_path / "metrics.dropped.jsonl").read_bytes()
    assert dropped == before[3] + b'{"kind": "train", "st\n'


def test_a_resume_that_finds_the_disk_full_loses_no_line(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, LogConfig())
    for step in (10, 20, 30):
        log.write(train(step))
    log.close()
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PunaError, match=r"No space left on the disk while writing .*metrics\.jsonl"):
        MetricsLog(tmp_path, LogConfig(), resume_step=20)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.dropped.jsonl", "metrics.jsonl"]


def test_a_new_run_does_not_write_over_an_old_one(tmp_path):
    MetricsLog(tmp_path, LogConfig()).write(train(1))
    with pytest.raises(PunaError, match="already contains a run"):
        MetricsLog(tmp_path, LogConfig())
    assert len(read_metrics(tmp_path)) == 1


def test_a_full_disk_is_a_sentence():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full, which Linux has")
    log = MetricsLog.__new__(MetricsLog)
    log.path, log._trackers, log._observers = "metrics.jsonl", [], []
    log._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(PunaError, match="No space left on the disk"):
        log.write(train(1))
    log._file.close()


def test_observers_hear_every_event_after_it_is_written(tmp_path):
    heard = []
    log = MetricsLog(
        tmp_path, LogConfig(), observers=[lambda event: heard.append((event["step"], len(read_metrics(tmp_path))))]
    )
    log.write(train(1))
    log.write(train(2))
    assert heard == [(1, 1), (2, 2)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=8), st.data())
def test_reading_tolerates_a_last_line_torn_anywhere(tmp_path_factory, steps, data):
    folder = tmp_path_factory.mktemp("run")
    lines = [json.dumps(train(step)).encode() + b"\n" for step in steps]
    last = json.dumps(train(9, text="é\n")).encode()
    cut = data.draw(st.integers(0, len(last) - 1))
    (folder / "metrics.jsonl").write_bytes(b"".join(lines) + last[:cut])
    assert [event["step"] for event in read_metrics(folder)] == steps


def test_missing_and_damaged_files_are_sentences(tmp_path):
    with pytest.raises(PunaError, match="does not exist"):
        read_metrics(tmp_path / "nowhere")
    with pytest.raises(PunaError, match=r"has no metrics\.jsonl"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\nrubbish\n{"kind": "train", "step": 2}\n')
    with pytest.raises(PunaError, match="line 2"):
        read_metrics(tmp_path)


def test_what_a_roll_back_undid_is_left_out():
    events = [train(10), train(20), {"kind": "eval", "step": 20}, train(30), {"kind": "event", "step": 10}, train(20)]
    kept = without_abandoned([*events, train(30, 9.0)])
    assert [(event["kind"], event["step"]) for event in kept] == [
        ("train", 10), ("event", 10), ("train", 20), ("train", 30),
    ]  # fmt: skip
    assert kept[-1]["loss"] == 9.0


def test_scalars_are_flat_and_finite():
    event = train(3, mfu={"full": 0.4, "causal": None}, compiled=True, note="x", bad=math.nan)
    assert scalars(event) == {"train/loss": 2.5, "train/mfu/full": 0.4}
    assert scalars({"kind": "start", "step": 0, "parameters": 5}) == {}


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, LogConfig(tensorboard=True))
    for step in (1, 2):
        log.write(train(step, 1 / step))
    log.write({"kind": "sample", "step": 2, "prompt": "def ", "text": "f(): pass"})
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(point.step, point.value) for point in board.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert "sample/text_summary" in board.Tags()["tensors"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # the import fails
    with pytest.raises(PunaError, match=rf"pip install 'puna\[{name}\]'"):
        MetricsLog(tmp_path, LogConfig(**{name: "project"}))


def fake_wandb(calls, fails=False):
    """The part of wandb's interface that is used, recording calls."""

    class Run:
        config = SimpleNamespace(update=lambda *a, **k: calls.append(("config", a, k)))

        def define_metric(self, *a, **k):
            calls.append(("define_metric", a, k))

        def log(self, *a, **k):
            if fails:
                raise ConnectionError("no network")
            calls.append(("log", a, k))

        def finish(self):
            calls.append(("finish", (), {}))

    module = ModuleType("wandb")
    module.init = lambda **k: calls.append(("init", (), k)) or Run()
    return module


def test_wandb_goes_on_as_the_same_run_after_resuming(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls))
    for resume_step in (None, 1):
        log = MetricsLog(tmp_path, LogConfig(wandb="puna"), resume_step=resume_step)
        log.write(train(2))
        log.close()
    first, second = (call[2] for call in calls if call[0] == "init")
    assert first["id"] == second["id"]
    assert first["project"] == "puna"
    assert first["resume"] == "allow"
    assert ("log", ({"train/loss": 2.5, "step": 2},), {}) in calls
    assert calls[-1][0] == "finish"


def test_trackio_gets_project_name_and_steps(tmp_path, monkeypatch):
    calls = []
    module = ModuleType("trackio")
    for name in ("init", "log", "finish"):
        setattr(module, name, lambda *a, _name=name, **k: calls.append((_name, a, k)))
    monkeypatch.setitem(sys.modules, "trackio", module)
    log = MetricsLog(tmp_path, LogConfig(trackio="puna"))
    log.write(train(7))
    log.close()
    assert calls[0][2]["project"] == "puna"
    assert calls[1:] == [("log", ({"train/loss": 2.5},), {"step": 7}), ("finish", (), {})]


def test_a_tracker_that_fails_does_not_stop_the_run(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls, fails=True))
    log = MetricsLog(tmp_path, LogConfig(wandb="puna"))
    log.write(train(1))
    log.write(train(2))
    log.close()
    assert len(read_metrics(tmp_path)) == 2
