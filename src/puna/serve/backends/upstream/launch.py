"""Start vLLM or llama-server for a model, as a child that ends with us whatever ends us.

Between us and the child stands a small process that waits for us to close a pipe, which the system does for whoever
ends, and then ends the child and all its own.
"""

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

import httpx

from puna.core.errors import PunaError

START_SECONDS = 900.0
"""A large model on a cold disk takes minutes, and vLLM compiles."""


class Child:
    """A server of ours on a free port of this machine, which answers only to `key`. log: what it says."""

    def __init__(self, command: Sequence[str], port: int, *, key: str, environ: dict[str, str]) -> None:
        self.url, self.key = f"http://127.0.0.1:{port}", key
        handle, self.log = tempfile.mkstemp(prefix="puna-upstream-", suffix=".log")
        with os.fdopen(handle, "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("supervise.py")), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **environ},
                # Ctrl-C is for us; the child ends when its last answer is out.
                start_new_session=True,
            )

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def wait_until_ready(self, seconds: float = START_SECONDS) -> None:
        """Returns when it answers. Raises PunaError, with the last thing it said, when it ends or never does."""
        end = monotonic() + seconds
        with httpx.Client(base_url=self.url, timeout=5, trust_env=False) as api:
            while monotonic() < end:
                if not self.alive():
                    raise PunaError(f"It ended before it answered: {self._last_line()}", f"All it said: {self.log}")
                try:
                    if api.get("/health").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                sleep(0.1)
        raise PunaError(f"It did not answer within {seconds:.0f} seconds.", f"What it said: {self.log}")

    def close(self) -> None:
        """End it, and wait until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_line(self) -> str:
        lines = Path(self.log).read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line.strip() for line in lines if line.strip()]
        return telling[-1][:300] if telling else "it said nothing."


def start_vllm(directory: str, name: str, *, max_batch: int, dtype: str | None = None) -> Child:
    """vLLM for a Hugging Face directory. PUNA_VLLM_PYTHON: a Python that has vLLM, if this one has not.

    Raises PunaError when there is no vLLM, no model, or it does not come up.
    """
    python = os.environ.get("PUNA_VLLM_PYTHON") or (sys.executable if importlib.util.find_spec("vllm") else "")
    if not shutil.which(python):
        raise PunaError(
            "vLLM is not installed here.",
            "Install it, set PUNA_VLLM_PYTHON to a Python that has it, or give the --upstream URL of one that runs.",
        )
    if not (Path(directory) / "config.json").is_file():
        raise PunaError(f"{directory} is no model directory.", "vLLM wants one in Hugging Face's layout.")
    port = _free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", directory, "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", str(max_batch)]
    # Our models call tools as Hermes does.
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-prompt-tokens-details"]
    if dtype:
        command += ["--dtype", dtype]
    return _started("vLLM", command, port, "VLLM_API_KEY")


def start_llama(file: str, name: str) -> Child:
    """llama-server for a GGUF file. PUNA_LLAMA_SERVER: where it is, if not on the PATH. Raises PunaError as above."""
    program = os.environ.get("PUNA_LLAMA_SERVER") or "llama-server"
    found = shutil.which(program)
    if not found:
        raise PunaError(
            f"There is no {program} here.",
            "Install llama.cpp, set PUNA_LLAMA_SERVER to its place, or give the --upstream URL of one that runs.",
        )
    if not Path(file).is_file():
        raise PunaError(
            f"{file} is no file.", "llama-server wants a GGUF file: `puna export MODEL --to gguf` makes one."
        )
    port = _free_port()
    command = [found, "-m", file, "--alias", name, "--host", "127.0.0.1", "--port", str(port), "--jinja"]
    return _started("llama-server", command, port, "LLAMA_API_KEY")


def _started(what: str, command: Sequence[str], port: int, key_name: str) -> Child:
    key = secrets.token_hex(24)
    child = Child(command, port, key=key, environ={key_name: key})
    try:
        child.wait_until_ready()
    except PunaError as error:
        child.close()
        raise PunaError(f"{what} could not be started.", str(error)) from None
    except BaseException:
        child.close()
        raise
    return child


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
