"""Stopped runs: killed, interrupted, skipped, rolled back.

The result must be the same as without a stop.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from puna.core.errors import PunaError
from puna.core.recipe import dump, load
from puna.train.loop import Loop
from puna.train.measure.machine import Machine
from puna.train.pretrain import train
from puna.train.recipe import Recipe
from puna.train.run import verify_resume as verify
from puna.train.run.checkpoint import _manifest_hash
from puna.train.run.directory import resolve_corpus
from puna.train.run.metrics import read_metrics
from puna.train.run.verify_resume import verify_resume

RECIPES = Path(__file__).parents[2] / "recipes"
STEPS = 12
# Not measured: these runs need no rates, and measuring takes longer than the runs.
MACHINE = Machine("cpu", "test", 1, 8 << 30, {"fp32": 1e11, "bf16": 1e11}, False)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Few threads, because other tests run at the same time. Children inherit the setting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files of the standard library, as recipes/data/smoke.toml says."""
    with contextlib.chdir(RECIPES.parent):
        recipe = resolve_corpus(load(Recipe, RECIPES / "smoke.toml").value, tmp_path_factory.mktemp("corpora"))
    return Path(recipe.corpus)


@pytest.fixture(scope="module")
def recipe(corpus: Path) -> Recipe:
    """The smoke recipe, 12 steps, a checkpoint every 4, a line every step."""
    words = [f"corpus={corpus}", f"train.steps={STEPS}", "checkpoint.every=4", "checkpoint.keep=9", "log.every=1"]
    return load(Recipe, RECIPES / "smoke.toml", words).value


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    run_dir = tmp_path_factory.mktemp("runs") / "straight"
    assert train(recipe, run_dir, machine=MACHINE)["kind"] == "end"
    return run_dir


def changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in read_metrics(run_dir) if event["kind"] == "train"]


def events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_metrics(run_dir) if event.get("event") == name]


def assert_same_run(one: Path, other: Path) -> None:
    """Compare every step's loss and the final weights, bit for bit."""
    assert losses(one) == losses(other)
    want, have = (load_file(path / "model" / "model.safetensors") for path in (one, other))
    assert want.keys() == have.keys()
    assert all(torch.equal(want[name], have[name]) for name in want)


def forked(command: list[str], processes: int) -> int:
    """Replaces `launch`: the same orders to processes that have already imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["puna.train.pretrain"])
    port = 20000 + os.getpid() % 20000
    workers = []
    for rank in range(processes):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
        world |= {"MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
        env = {key: str(value) for key, value in world.items()} if processes > 1 else {}
        worker = context.Process(target=verify.run_order, args=(json.loads(command[-1]), env))
        worker.start()
        workers.append(worker)
    for worker in workers:
        worker.join()
    code = next((worker.exitcode for worker in workers if worker.exitcode), 0)
    return code if code >= 0 else 128 - code


@pytest.fixture
def fast_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "launch", forked)
    monkeypatch.setattr(verify, "measure", lambda: MACHINE)


def kill_before(step: int, recipe: Recipe, run_dir: Path) -> None:
    """Train in a separate process that dies of SIGKILL right before `step`."""
    recipe_file = run_dir.with_suffix(".toml")
    recipe_file.write_text(dump(recipe))
    order = {"recipe": str(recipe_file), "run_dir": str(run_dir), "machine": dataclasses.asdict(MACHINE)}
    assert forked([json.dumps({**order, "resume": False, "die_at": step})], 1) == 128 + signal.SIGKILL


@pytest.mark.parametrize("step", [1, 4, 11])
def test_killed_at_any_step_and_resumed_is_the_same_run(
    recipe: Recipe, straight: Path, tmp_path: Path, step: int
) -> None:
    run_dir = tmp_path / "run"
    kill_before(step, recipe, run_dir)
    assert len(losses(run_dir)) == step
    assert train(recipe, run_dir, resume=True, machine=MACHINE)["kind"] == "end"
    assert_same_run(straight, run_dir)


def test_a_damaged_newest_checkpoint_costs_steps_but_changes_nothing(
    recipe: Recipe, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    shutil.rmtree(run_dir / "model")
    shutil.rmtree(run_dir / "checkpoints" / "step-12")
    victim = run_dir / "checkpoints" / "step-8" / "__0_0.distcp"
    victim.write_bytes(victim.read_bytes()[:-100])
    train(recipe, run_dir, resume=True, machine=MACHINE)
    assert "step-8 is damaged" in " ".join(capsys.readouterr().err.split())
    assert read_metrics(run_dir)[-1]["kind"] == "end"
    assert [event["resumed_from"] for event in read_metrics(run_dir) if event["kind"] == "start"] == [None, 4]
    assert_same_run(straight, run_dir)


def test_a_longer_run_goes_on_from_the_end(recipe: Recipe, straight: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    event = train(changed(recipe, "train", steps=15), run_dir, resume=True, machine=MACHINE)
    assert (event["kind"], event["step"]) == ("end", 15)
    assert losses(run_dir)[:STEPS] == losses(straight)


def test_a_checkpoint_of_an_earlier_version_goes_on(recipe: Recipe, straight: Path, tmp_path: Path) -> None:
    """Earlier versions of pretraining wrote fewer numbers next to the tensors."""
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    shutil.rmtree(run_dir / "model")
    shutil.rmtree(run_dir / "checkpoints" / "step-12")
    manifest_file = run_dir / "checkpoints" / "step-8" / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    known = ("step", "data_step", "rollbacks", "training_seconds", "skipped")
    manifest["meta"] = {key: manifest["meta"][key] for key in known}
    manifest_file.write_text(json.dumps({**manifest, "sha256": _manifest_hash(manifest)}))
    event = train(recipe, run_dir, resume=True, machine=MACHINE)
    assert event["tokens"] == STEPS * recipe.tokens_per_step
    assert_same_run(straight, run_dir)


@pytest.mark.usefixtures("fast_processes")
def test_verify_resume_proves_it_over_1_2_and_4_processes(recipe: Recipe, tmp_path: Path) -> None:
    checks = verify_resume(recipe, tmp_path, steps=10, processes=(1, 2, 4))
    assert all(check.passed for check in checks), checks
    assert [check.compared for check in checks[1:3]] == [10, 1]
    assert len(checks) == 5

    # The verification can fail: each kind of difference is found.
    def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
        path.write_bytes(change(path.read_bytes()))

    killed = tmp_path / "killed"
    value = repr(losses(killed)[3][1]).encode()
    spoil(killed / "metrics.jsonl", lambda data: data.replace(value, repr(float(value) * (1 + 2e-16)).encode()))
    spoil(killed / "rows-1-0.jsonl", lambda data: data[:-5] + b'0"]}\n')
    spoil(killed / "model" / "model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    straight = tmp_path / "straight"
    assert not verify._same_losses(straight, killed, 10, 0.0, "").passed
    assert not verify._same_batches(straight, killed, "").passed
    assert not verify._same_weights(straight, killed).passed


def test_verify_resume_refuses_what_cannot_be_proved(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="too few"):
        verify_resume(recipe, tmp_path, steps=3)
    with pytest.raises(PunaError, match="cannot be divided evenly among 1, 3 processes"):
        verify_resume(recipe, tmp_path, processes=(1, 3))


# -- interrupted -------------------------------------------------------------------------------------------------------


def start(recipe: Recipe, run_dir: Path, *words: str) -> "subprocess.Popen[str]":
    """`puna train` as started by a user, writing to a pipe."""
    recipe_file = run_dir.with_suffix(".toml")
    recipe_file.write_text(dump(recipe))
    command = [sys.executable, "-m", "puna", "train", str(recipe_file), "--run-dir", str(run_dir), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    for _ in range(6000):  # five minutes: the machine may be busy
        if condition():
            return
        if process.poll() is not None:
            pytest.fail(f"ended with {process.returncode}: {process.stderr.read() if process.stderr else ''}")
        time.sleep(0.05)
    process.kill()
    pytest.fail("waited in vain")


def test_sigterm_to_two_processes_saves_and_leaves_with_143(recipe: Recipe, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    endless = changed(changed(recipe, "train", steps=10**6), "checkpoint", every=0)
    process = start(endless, run_dir, "--nproc", "2")
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and '"kind": "train"' in _text(run_dir), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    event = read_metrics(run_dir)[-1]
    assert (event["event"], event["signal"]) == ("interrupted", "SIGTERM")
    assert f"puna train --resume {run_dir}" in event["detail"]
    # One process continues the run of two.
    resumed = changed(load(Recipe, run_dir / "recipe.toml").value, "train", steps=event["step"] + 2, compile="off")
    assert train(resumed, run_dir, resume=True, machine=MACHINE)["step"] == event["step"] + 2
    assert [step for step, _ in losses(run_dir)] == list(range(1, event["step"] + 3))


def test_ctrl_c_twice_leaves_at_once_with_130(recipe: Recipe, tmp_path: Path) -> None:
    # Steps are long enough that the second Ctrl-C falls within the same step as the first.
    slow = changed(recipe, "train", steps=1000, batch=1 << 12, micro_batch=64)
    slow = changed(slow, "checkpoint", every=0)
    run_dir = tmp_path / "run"
    process = start(slow, run_dir)
    assert process.stderr is not None
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and '"kind": "train"' in _text(run_dir), process)
    process.send_signal(signal.SIGINT)
    said = ""
    while "Ctrl-C again" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    assert events(run_dir, "interrupted") == []
    assert not list((run_dir / "checkpoints").glob("step-*"))


def test_one_ctrl_c_finishes_the_step_and_saves(recipe: Recipe, tmp_path: Path) -> None:
    """In this process: the trainer handles signals while it trains, and restores the handlers afterwards."""
    before = signal.getsignal(signal.SIGINT)
    hooks = {5: lambda loop: os.kill(os.getpid(), signal.SIGINT)}
    event = train(recipe, tmp_path, hooks=hooks, machine=MACHINE)
    assert (event["event"], event["signal"]) == ("interrupted", "SIGINT")
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "checkpoints" / f"step-{event['step']}").is_dir()
    assert len(losses(tmp_path)) == event["step"]


def _text(run_dir: Path) -> str:
    return (run_dir / "metrics.jsonl").read_text()


# -- the guard at work -------------------------------------------------------------------------------------------------


def plant(bad: set[int]) -> Callable[[Loop], None]:
    """A hook (for step 0) after which the batches of these data steps have a NaN loss."""

    def hook(loop: Loop) -> None:
        check = loop.state.guard.check

        def poisoned(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
            return check(loss * float("nan") if loop.state.data_step in bad else loss, norm)

        loop.state.guard.check = poisoned  # type: ignore[method-assign]

    return hook


def test_a_bad_step_changes_nothing_and_names_its_documents(recipe: Recipe, tmp_path: Path) -> None:
    weights: list[list[torch.Tensor]] = []

    def note(loop: Loop) -> None:
        weights.append([tensor.detach().clone() for tensor in loop.state.model.state_dict().values()])

    train(recipe, tmp_path, hooks={0: plant({5}), 5: note, 6: note, 7: note}, machine=MACHINE)
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[1], weights[2], strict=True))
    (event,) = events(tmp_path, "skip")
    assert event["step"] == 5
    assert event["documents"]
    assert all(name.startswith("python/") for name in event["documents"])


def test_many_bad_steps_are_gone_around(recipe: Recipe, tmp_path: Path) -> None:
    careful = changed(recipe, "guard", max_skips=3)
    event = train(careful, tmp_path, hooks={0: plant({5, 6, 7})}, machine=MACHINE)
    assert (event["kind"], event["step"]) == ("end", STEPS)
    (rollback,) = events(tmp_path, "rollback")
    assert (rollback["step"], rollback["from_step"]) == (4, 8)
    assert len(events(tmp_path, "skip")) == 3  # after the roll-back training continues with later data


def test_a_run_that_does_not_recover_stops_with_a_sentence(recipe: Recipe, tmp_path: Path) -> None:
    careful = changed(recipe, "guard", max_skips=3, max_rollbacks=1)
    with pytest.raises(PunaError, match="Training is not recovering: 3 of the last"):
        train(careful, tmp_path, hooks={0: plant(set(range(5, 99)))}, machine=MACHINE)
    assert len(events(tmp_path, "stopped")) == 1
