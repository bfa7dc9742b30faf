"""Checkpoints: complete or absent, verified before use, and independent of the number of processes."""

import errno
import json
import os
import runpy
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from puna.core.errors import PunaError
from puna.train.recipe import CheckpointConfig
from puna.train.run.checkpoint import Checkpointer
from puna.train.run.launch import launch

FINGERPRINT = {"model": {"hidden_size": 64, "num_hidden_layers": 2}, "corpus": "abc"}


def make_state(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(8, 4, generator=generator), torch.randn(3, generator=generator)
    return {
        "model": {"a.weight": nn.Parameter(weight), "a.bias": bias.bfloat16()},
        "optimizer": {"a.weight": {"momentum": weight * 2, "step": torch.tensor(float(seed))}},
        "guard": {"accepted": torch.tensor(seed)},
    }


def flat(state: dict[str, Any]) -> list[torch.Tensor]:
    return [t for value in state.values() for t in (flat(value) if isinstance(value, dict) else [value.detach()])]


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(flat(left), flat(right), strict=True))


def checkpointer(run: Path, **config: Any) -> Checkpointer:
    return Checkpointer(run, CheckpointConfig(**config), FINGERPRINT)


def saved(run: Path, *steps: int, **config: Any) -> Checkpointer:
    keeper = checkpointer(run, **config)
    for step in steps:
        keeper.save(step, make_state(step), {"tokens": step * 10}, wait=True)
    return keeper


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_was_saved_is_loaded_in_place(tmp_path: Path, asynchronous: bool) -> None:
    keeper = checkpointer(tmp_path, asynchronous=asynchronous)
    keeper.save(7, make_state(7), {"tokens": 70, "skipped": [1, 2]}, wait=False)
    keeper.wait()
    state = make_state(0)
    places = [tensor.data_ptr() for tensor in flat(state)]
    assert checkpointer(tmp_path).load(state) == {"step": 7, "tokens": 70, "skipped": [1, 2]}
    assert same(state, make_state(7))
    assert places == [tensor.data_ptr() for tensor in flat(state)]


def test_an_empty_run_has_no_checkpoint(tmp_path: Path) -> None:
    state = make_state(1)
    assert checkpointer(tmp_path).load(state) is None
    assert same(state, make_state(1))


def test_training_may_change_the_weights_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    write = dcp.FileSystemWriter.write_data

    def slow(self: Any, plan: Any, planner: Any) -> Any:
        assert go.wait(30)
        return write(self, plan, planner)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", slow)
    keeper, state = checkpointer(tmp_path), make_state(5)
    keeper.save(5, state, {}, wait=False)
    for tensor in flat(state):
        tensor.fill_(99)
    assert keeper.steps() == []  # nothing under the final name before it is complete
    go.set()
    keeper.wait()
    assert keeper.steps() == [5]
    keeper.load(state)
    assert same(state, make_state(5))


def test_the_newest_k_and_every_n_stay(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 10, 20, 30, 40, 50, keep=2, keep_every=20)
    assert keeper.steps() == [20, 40, 50]
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step-20", "step-40", "step-50"}


def test_a_save_after_a_roll_back_removes_the_undone_future(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 10, 20, 30, keep=3)
    state = make_state(0)
    assert keeper.load(state, before=30) == {"step": 20, "tokens": 200}
    keeper.save(25, state, {}, wait=True)
    assert keeper.steps() == [10, 20, 25]


def test_a_step_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 10)
    keeper.save(10, make_state(3), {"again": True}, wait=True)
    state = make_state(0)
    assert keeper.load(state) == {"step": 10, "again": True}
    assert same(state, make_state(3))


def truncate(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 7)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_meta(path: Path) -> None:
    path.write_text(path.read_text().replace('"tokens": 200', '"tokens": 201'))


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("__0_0.distcp", truncate, "bytes instead of"),
        ("__0_0.distcp", flip, "hash differs"),
        (".metadata", flip, "hash differs"),
        ("manifest.json", truncate, "not valid JSON"),
        ("manifest.json", flip_meta, "hash differs"),
        ("manifest.json", os.remove, "does not exist"),
        ("__0_0.distcp", os.remove, "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, harm: Any, words: str
) -> None:
    keeper = saved(tmp_path, 10, 20)
    harm(tmp_path / "checkpoints" / "step-20" / name)
    state = make_state(0)
    meta = keeper.load(state)
    assert meta == {"step": 10, "tokens": 100}
    assert same(state, make_state(10))
    said = " ".join(capsys.readouterr().err.split())
    assert "step-20 is damaged" in said
    assert words in said


def test_when_all_are_damaged_nothing_starts_from_nothing(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 10, 20)
    for step in (10, 20):
        truncate(tmp_path / "checkpoints" / f"step-{step}" / "__0_0.distcp")
    with pytest.raises(PunaError, match=r"All checkpoints .* are damaged .*step-10, step-20"):
        keeper.load(make_state(0))


@pytest.mark.parametrize("wait", [True, False])
def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    keeper = saved(tmp_path, 10)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("torch.distributed.checkpoint.filesystem._write_item", full)
        if wait:
            failing = partial(keeper.save, 20, make_state(20), {}, wait=True)
        else:
            keeper.save(20, make_state(20), {}, wait=False)
            failing = partial(keeper.save, 30, make_state(30), {}, wait=False)  # where the error is raised
        with pytest.raises(PunaError, match=r"step 20 was not saved\. No space left .* in place: step-10"):
            failing()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-10"]
    state = make_state(0)
    assert keeper.load(state) == {"step": 10, "tokens": 100}
    keeper.save(30, make_state(30), {}, wait=True)  # works again once there is space
    assert keeper.steps() == [10, 30]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """torch's zip writer hides the disk's error behind its own; a device that is always full shows that."""
    keeper = saved(tmp_path, 10)
    big = {"w": torch.zeros(300_000)}

    class Full(dcp.filesystem.FileSystem):
        def create_stream(self, path: Any, mode: str) -> Any:
            return super().create_stream("/dev/full" if "distcp" in str(path) else path, mode)

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dcp.filesystem, "FileSystem", Full)
        with pytest.raises(PunaError, match="No space left on the disk"):
            keeper.save(20, big, {}, wait=True)
    assert keeper.steps() == [10]


def test_what_an_interrupted_save_left_is_ignored_and_removed(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    folder = tmp_path / "checkpoints"
    (folder / ".step-20.tmp").mkdir()
    (folder / ".step-20.tmp" / "__0_0.distcp").write_bytes(b"half")
    os.rename(folder / "step-10", folder / ".step-10.old")  # killed between the two renames of a replacement
    keeper = checkpointer(tmp_path)
    assert keeper.steps() == [10]
    assert [p.name for p in folder.iterdir()] == ["step-10"]
    assert keeper.load(make_state(0)) == {"step": 10, "tokens": 100}


def test_a_checkpoint_of_another_run_is_refused_naming_the_difference(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    other = Checkpointer(tmp_path, CheckpointConfig(), {**FINGERPRINT, "model": {"hidden_size": 128}})
    with pytest.raises(PunaError, match=r"model\.hidden_size is 64 in the checkpoint and 128 here"):
        other.load(make_state(0))
    newer = Checkpointer(tmp_path, CheckpointConfig(), {**FINGERPRINT, "optimizer": "muon"})
    with pytest.raises(PunaError, match="optimizer is absent in the checkpoint and muon here"):
        newer.load(make_state(0))


def test_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    keeper = saved(tmp_path, 10)
    with pytest.raises(PunaError, match="does not fit this run"):
        keeper.load({"model": {"a.weight": torch.zeros(9, 4)}})
    with pytest.raises(PunaError, match="does not fit this run"):
        keeper.load({"model": {"b.weight": torch.zeros(9, 4)}})


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    folder = tmp_path / "checkpoints" / "step-10"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) | {"manifest.json"} == {p.name for p in folder.iterdir()}
    assert manifest["fingerprint"] == FINGERPRINT
    assert manifest["meta"]["tokens"] == 100


# -- several processes -------------------------------------------------------------------------------------------------


def test_one_process_to_two_and_back(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("checkpoint_worker.py")
    shared = runpy.run_path(str(worker))
    state = shared["state_of"](shared["network"]())
    for name, entry in state["optimizer"].items():
        entry["momentum"].copy_(state["model"][name] + 1)
    Checkpointer(tmp_path, CheckpointConfig(), shared["FINGERPRINT"]).save(1, state, {"tokens": 10}, wait=True)

    # Two processes load it into shards, double everything, save step 2, and fail to save step 3.
    assert launch([sys.executable, str(worker), str(tmp_path)], 2) == 0

    loaded = shared["state_of"](shared["network"]())
    keeper = Checkpointer(tmp_path, CheckpointConfig(), shared["FINGERPRINT"])
    assert keeper.load(loaded) == {"step": 2, "tokens": 20}
    for part in ("model", "optimizer"):
        for have, want in zip(flat(loaded[part]), flat(state[part]), strict=True):
            assert torch.equal(have, want * 2)
    assert loaded["guard"]["accepted"].item() == 1
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step-1", "step-2"}
