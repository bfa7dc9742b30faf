"""Starts vLLM or llama-server as a child that ends with this process, however it ends.

A small supervisor process waits for a pipe from here to close, which the system does whenever a process ends, and then
ends the child with all its own children.
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
"""Loading a large model from a cold disk takes minutes, and vLLM compiles."""


class Child:
    """A server on a free port of this machine that accepts only `key`.

    log: the file with its output.
    """

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
                # Ctrl-C is not for the child: it ends after its last answer.
                start_new_session=True,
            )

    def alive(self) -> bool:
        """Whether it is running."""
        return self._process.poll() is None

    def wait_until_ready(self, seconds: float = START_SECONDS) -> None:
        """Return when it answers.

        Raises PunaError, with its last output, when it exits or never answers.
        """
        end = monotonic() + seconds
        with httpx.Client(base_url=self.url, timeout=5, trust_env=False) as api:
            while monotonic() < end:
                if not self.alive():
                    raise PunaError(
                        f"It exited before it answered: {self._last_line()}", f"Its output is in {self.log}"
                    )
                try:
                    if api.get("/health").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                sleep(0.1)
        raise PunaError(f"It did not answer within {seconds:.0f} seconds.", f"Its output is in {self.log}")

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
        return telling[-1][:300] if telling else "it printed nothing."


def start_vllm(directory: str, name: str, *, max_batch: int, dtype: str | None = None) -> Child:
    """Start vLLM for a Hugging Face directory.

    PUNA_VLLM_PYTHON: a Python that has vLLM, if this one does not.

    Raises PunaError when there is no vLLM or no model, or it does not start.
    """
    python = os.environ.get("PUNA_VLLM_PYTHON") or (sys.executable if importlib.util.find_spec("vllm") else "")
    if not shutil.which(python):
        raise PunaError(
            "vLLM is not installed here.",
            "Install it, set PUNA_VLLM_PYTHON to a Python that has it, or give the --upstream URL of a running one.",
        )
    if not (Path(directory) / "config.json").is_file():
        raise PunaError(f"{directory} is not a model directory.", "vLLM needs one in the Hugging Face layout.")
    port = _free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", directory, "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", str(max_batch)]
    # Our models use the Hermes format for tool calls.
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-prompt-tokens-details"]
    if dtype:
        command += ["--dtype", dtype]
    return _started("vLLM", command, port, "VLLM_API_KEY")


def start_llama(file: str, name: str) -> Child:
    """Start llama-server for a GGUF file.

    PUNA_LLAMA_SERVER: its path, if not on the PATH. Raises PunaError.
    """
    program = os.environ.get("PUNA_LLAMA_SERVER") or "llama-server"
    found = shutil.which(program)
    if not found:
        raise PunaError(
            f"{program} was not found.",
            "Install llama.cpp, set PUNA_LLAMA_SERVER to its path, or give the --upstream URL of a running one.",
        )
    if not Path(file).is_file():
        raise PunaError(
            f"{file} is not a file.", "llama-server needs a GGUF file: `puna export MODEL --to gguf` makes one."
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
