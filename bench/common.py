"""Facts about the machine, results as JSON, a corpus, and contenders that take turns.

A contender is a separate process that stays alive: it answers each JSON line with another. Running all of them in
turns, round after round, means that a machine that gets busier or hotter slows all of them alike, so the ratios hold.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from puna.core.files import write_json
from puna.version import __version__

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
CACHE = ROOT / "build" / "bench"  # corpora, peers' environments, runs; ignored by git


def environment(packages: Iterable[str] = ("torch", "transformers", "numpy")) -> dict[str, Any]:
    """Hardware, system and versions, as stored in every result file."""
    import psutil

    from puna.train.measure import machine

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": machine.device_name("cuda" if machine.best_device() == "cuda" else "cpu"),
        "instructions": cpu_instructions(),
        "cores": machine.cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "puna": f"{__version__} ({_commit()})",
        **{name: _version(name) for name in packages},
    }


def cpu_instructions() -> list[str]:
    """The vector and matrix instructions of this CPU that determine how fast its products are."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags]


def save(name: str, settings: Mapping[str, Any], results: Any, *, packages: Iterable[str] = ("torch",)) -> None:
    """Write bench/results/NAME.json and print its path."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"benchmark": name, **environment(packages), "settings": dict(settings), "results": results})
    print(f"written: {path.relative_to(ROOT)}", file=sys.stderr)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum of some measurements, four significant digits."""
    short = [float(f"{value:.4g}") for value in (statistics.median(values), min(values), max(values))]
    return dict(zip(("median", "min", "max"), short, strict=True))


class Contender:
    """A worker process that answers requests: one JSON object per line, in and out.

    Its first line means ready.
    """

    def __init__(self, name: str, command: Sequence[str], **environ: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
            cwd=ROOT,
        )
        self.ready = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the worker, which exits when its input ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with exit code {self._process.wait()} before it answered")


def serve(ready: Mapping[str, Any], answer: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """The worker's side: report ready, then answer requests until the input ends."""
    print(json.dumps(dict(ready)), flush=True)
    for line in sys.stdin:
        print(json.dumps(dict(answer(json.loads(line)))), flush=True)


def stdlib_corpus(vocab_size: int = 4096) -> Path:
    """The corpus of this Python's standard library, built once (recipes/data/stdlib.toml)."""
    path = CACHE / f"stdlib-{platform.python_version()}-{vocab_size}"
    if not path.exists():
        command = [sys.executable, "-m", "puna", "data", "build", "recipes/data/stdlib.toml", "-o", str(path)]
        subprocess.run([*command, f"tokenizer.vocab_size={vocab_size}"], cwd=ROOT, check=True, stdout=sys.stderr)
    return path


def peer_environment(name: str, requirements: Sequence[str]) -> Path:
    """Create a separate Python environment with `requirements`.

    It borrows torch and everything else from this one. Nothing is installed into Puna's environment. Returns the
    interpreter. Raises CalledProcessError when the packages are not available.
    """
    folder = CACHE / "peers" / name
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        own = Path(importlib.metadata.distribution("torch").locate_file("")).resolve()
        packages = next(folder.glob("lib/python*/site-packages"))
        (packages / "borrowed.pth").write_text(f"{own}\n{ROOT / 'src'}\n")
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *requirements]
        subprocess.run(install, check=True, stdout=sys.stderr)
        (folder / ".installed").touch()
    return python


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return found.stdout.strip() or "no commit"
