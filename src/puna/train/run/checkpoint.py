"""Checkpoints: written in the background, atomically, and verified before they are read.

torch.distributed.checkpoint (DCP) writes the tensors, each process its shards, so that a different number of processes
can read them. This module adds what DCP does not do. Tensors are copied to the CPU first and written by a background
thread while training changes the weights. They go to `checkpoints/.step-N.tmp`. When every process is done,
`manifest.json`, with the size and SHA-256 of each file, is written last, everything is synced, and process 0 renames
the folder to `checkpoints/step-N`. A name without a dot is therefore always a complete checkpoint. Before a checkpoint
is read its hashes are checked; a damaged one is reported and the one before it is used.

Once step N is safely in place, checkpoints later than N are removed: they were damaged, or they belong to steps that a
roll-back has undone.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from puna.core.console import say
from puna.core.errors import PunaError
from puna.core.files import disk_errors, read_json, sha256_file, sync_directory, write_json
from puna.train.recipe import CheckpointConfig

MANIFEST = "manifest.json"


class Checkpointer:
    """Saves and loads the state of one run.

    Created by every process of it; save, wait and load are collective. run_dir: the run directory; checkpoints are
    stored in its folder `checkpoints`. fingerprint: a JSON-able dictionary of everything that must be the same for a
    checkpoint to be usable (model shape, corpus hash, ...), possibly nested.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig, fingerprint: Mapping[str, Any]) -> None:
        self.folder = run_dir / "checkpoints"
        self.config = config
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self.protected: set[int] = set()
        """Steps whose checkpoints are kept in addition to the newest, such as the best one."""
        # A separate process group: the background thread's messages must not mix with those of training.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(hours=2)) if dist.is_initialized() else None
        # On a GPU the staged copy is kept and pinned: the same memory serves every save, and copies run at full speed.
        self._stager = BlockingAsyncStager(cache_staged_state_dict=torch.cuda.is_available())
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        # DCP warns each time that there is only one process, which is the normal case here.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        if self._rank == 0:
            self._clean()

    # -- saving ------------------------------------------------------------------------------------------------------

    def save(self, step: int, state: dict[str, Any], meta: Mapping[str, Any], *, wait: bool) -> None:
        """Save `state` as the checkpoint of `step`. Returns as soon as the tensors may change again.

        state: nested dictionary of tensors and DTensors. meta: small JSON-able dictionary. wait: return only when the
        checkpoint is in place (always so with checkpoint.asynchronous = false). Raises PunaError when this save, or an
        earlier one in the background, failed; earlier checkpoints are kept.
        """
        self.wait()
        _only_tensors(state)
        meta_json: dict[str, Any] = json.loads(json.dumps({"step": step, **meta}))
        temporary = self.folder / f".step-{step}.tmp"
        if self._rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        storage = _Writer(temporary, overwrite=False)
        if self.config.asynchronous and not wait:
            with _plain_errors(temporary):
                written = dcp.async_save(
                    state, storage_writer=storage, process_group=self._group, async_stager=self._stager
                )
            assert isinstance(written, Future)
            self._pending = self._thread.submit(self._commit, written.result, temporary, step, meta_json)
        else:
            self._commit(
                lambda: dcp.save(state, storage_writer=storage, process_group=self._group), temporary, step, meta_json
            )

    def wait(self) -> None:
        """Wait for a save in the background.

        Raises PunaError when it failed; earlier checkpoints are kept.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for a save in the background and end its thread. Raises the same errors as `wait`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def steps(self) -> list[int]:
        """Steps of the checkpoints in place, oldest first."""
        names = (re.fullmatch(r"step-(\d+)", path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in names if match)

    def _commit(self, write: Callable[[], object], temporary: Path, step: int, meta: dict[str, Any]) -> None:
        """Write the files and publish them as `step-N`, or fail on every process alike.

        All processes raise the same message.
        """
        final = self.folder / f"step-{step}"
        problem, files = "", {}
        try:
            with _plain_errors(final):
                write()
                files = self._own_files(temporary)
        except PunaError as error:
            problem = str(error)
        parts = self._gather((problem, files))
        problem = next((found for found, _ in parts if found), "")
        if self._rank == 0:
            try:
                if not problem:
                    with _plain_errors(final):
                        self._publish(
                            temporary, final, step, meta, {k: v for _, part in parts for k, v in part.items()}
                        )
                        self._prune(step)
            except PunaError as error:
                problem = str(error)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        problem = self._from_first(problem)
        if problem:
            kept = ", ".join(f"step-{n}" for n in self.steps()) or "none yet"
            raise PunaError(f"The checkpoint of step {step} was not saved. {problem}", f"Checkpoints in place: {kept}.")

    def _own_files(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Size and hash of each file that this process wrote.

        DCP prefixes a process's files with its rank.
        """
        own = sorted(folder.glob(f"__{self._rank}_*"))
        if self._rank == 0:
            own.append(folder / ".metadata")
        return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in own}

    def _publish(self, temporary: Path, final: Path, step: int, meta: dict[str, Any], files: dict[str, Any]) -> None:
        manifest = {
            "format": "puna checkpoint 1",
            "step": step,
            "saved": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "processes": self._size,
            "torch": torch.__version__,
            "meta": meta,
            "fingerprint": self.fingerprint,
            "files": dict(sorted(files.items())),
        }
        write_json(temporary / MANIFEST, {**manifest, "sha256": _manifest_hash(manifest)})
        sync_directory(temporary)
        old = self.folder / f".step-{step}.old"
        if final.exists():
            os.rename(final, old)
        os.rename(temporary, final)
        sync_directory(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def _prune(self, saved: int) -> None:
        """Remove checkpoints that no setting keeps, and those later than the one just saved.

        The settings are `keep`, `keep_every` and `protected`.
        """
        steps = self.steps()
        wanted = {step for step in steps if step <= saved}
        newest = set(sorted(wanted)[-self.config.keep :])
        every = self.config.keep_every
        kept = newest | (wanted & self.protected) | {step for step in wanted if every and step % every == 0}
        for step in set(steps) - kept:
            shutil.rmtree(self.folder / f"step-{step}", ignore_errors=True)

    def _clean(self) -> None:
        """Remove what an interrupted save left, and restore a checkpoint that was being replaced."""
        for old in self.folder.glob(".step-*.old"):
            final = self.folder / old.name.removeprefix(".").removesuffix(".old")
            if not final.exists():
                with contextlib.suppress(OSError):
                    os.rename(old, final)
            shutil.rmtree(old, ignore_errors=True)
        for temporary in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(temporary, ignore_errors=True)

    # -- loading -----------------------------------------------------------------------------------------------------

    def load(self, state: dict[str, Any], *, before: int | None = None) -> dict[str, Any] | None:
        """Load the newest good checkpoint (of a step below `before`) into `state`, in place.

        Returns its meta with at least "step", or None when there is no checkpoint. A damaged one is reported on stderr
        and the one before it is used. Raises PunaError when all are damaged, or when the checkpoint belongs to another
        run, naming the first entry of the fingerprint that differs.
        """
        self.wait()
        _only_tensors(state)
        steps = self._from_first([step for step in self.steps() if before is None or step < before])
        for step in reversed(steps):
            path = self.folder / f"step-{step}"
            manifest, problem = self._from_first(_read_manifest(path) if self._rank == 0 else None)
            if not problem:
                self._check_fingerprint(path, manifest)
                problem = self._damage(path, manifest["files"])
            if problem:
                if self._rank == 0:
                    say(f"[yellow]{path} is damaged and not used:[/yellow] {problem}.")
                continue
            self._read(path, state)
            return dict(manifest["meta"])
        if steps:
            raise PunaError(
                f"All checkpoints in {self.folder} are damaged ({', '.join(f'step-{step}' for step in steps)}).",
                "Restore one of them from a copy, or start the run again in another run directory.",
            )
        return None

    def _damage(self, path: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
        """Describe the damage in the files of a checkpoint, or "".

        Each process checks its share; all get the result.
        """
        problem = ""
        for name in sorted(files)[self._rank :: self._size]:
            problem = problem or _file_damage(path / name, files[name])
        return next((found for found in self._gather(problem) if found), "")

    def _check_fingerprint(self, path: Path, manifest: Mapping[str, Any]) -> None:
        there, here = _flat(manifest["fingerprint"]), _flat(self.fingerprint)
        for key in [*there, *(key for key in here if key not in there)]:
            if there.get(key) != here.get(key):
                raise PunaError(
                    f"{path} belongs to another run: {key} is {there.get(key, 'absent')} in the checkpoint and "
                    f"{here.get(key, 'absent')} here.",
                    "Resume with the recipe that made it, or use another run directory.",
                )

    def _read(self, path: Path, state: dict[str, Any]) -> None:
        try:
            dcp.load(state, storage_reader=dcp.FileSystemReader(path), process_group=self._group)
        except CheckpointException as error:
            cause = _first_cause(error)
            raise PunaError(
                f"{path} does not fit this run: {str(cause).strip().splitlines()[0].rstrip('.')}.",
                "Resume with the recipe that made it, or use another run directory.",
            ) from error

    # -- the processes of the run ------------------------------------------------------------------------------------

    @property
    def _rank(self) -> int:
        return dist.get_rank() if self._group is not None else 0

    @property
    def _size(self) -> int:
        return dist.get_world_size() if self._group is not None else 1

    def _gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank, on every process."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self._size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _from_first(self, value: Any) -> Any:
        """Process 0's value, on every process."""
        if self._group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]


class _Writer(dcp.FileSystemWriter):
    """DCP's writer, with errors of the disk passed through unchanged.

    torch's zip writer turns a full disk into a RuntimeError about positions in the archive, with the real error as
    its context; that context would be lost on the way to the other processes.
    """

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


@contextlib.contextmanager
def _plain_errors(path: Path) -> Any:
    """Turn errors while writing `path` into a PunaError."""
    try:
        with disk_errors(path):
            try:
                yield
            except CheckpointException as error:
                raise _first_cause(error) from error
    except OSError as error:
        problem = f"{path} could not be written ({error.strerror or error})."
        raise PunaError(problem, "Check free space and permissions.") from error


def _first_cause(error: CheckpointException) -> BaseException:
    return next((cause for cause, _ in error.failures.values()), error)


def _only_tensors(state: Mapping[str, Any], prefix: str = "") -> None:
    # DCP would pickle anything else, and replace it on loading instead of filling it in place.
    for key, value in state.items():
        if isinstance(value, Mapping):
            _only_tensors(value, f"{prefix}{key}.")
        elif not isinstance(value, torch.Tensor):
            raise TypeError(f"state {prefix}{key} is a {type(value).__name__}; a checkpoint's state is tensors only")


def _manifest_hash(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own hash, as canonical JSON."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _read_manifest(path: Path) -> tuple[dict[str, Any], str]:
    """(manifest, "") or ({}, what is wrong with it)."""
    try:
        manifest = read_json(path / MANIFEST)
    except (PunaError, OSError) as error:
        return {}, str(error).rstrip(".")
    if not isinstance(manifest, dict) or manifest.get("sha256") != _manifest_hash(manifest):
        return {}, f"{MANIFEST} has changed since it was written (its hash differs)"
    return manifest, ""


def _file_damage(path: Path, record: Mapping[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != record["bytes"]:
            return f"{path.name} has {size:,} bytes instead of {record['bytes']:,}"
        if sha256_file(path) != record["sha256"]:
            return f"{path.name} has changed since it was written (its hash differs)"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror or error})"
    return ""


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
