"""Finding models. The Hub is a small local server that implements its protocol."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from puna.core.errors import PunaError
from puna.model.config import ModelConfig
from puna.model.hub import find_model, model_directory
from puna.model.llama import LlamaForCausalLM
from puna.model.store import load_model, save_model

COMMIT = "0123456789" * 4


@pytest.fixture
def saved(tmp_path: Path, random_model: Callable[..., LlamaForCausalLM]) -> Path:
    model = random_model(ModelConfig(preset="nano"))
    save_model(tmp_path / "saved", model.config, model.state_dict(), None, dtype=torch.float32, lineage={})
    return tmp_path / "saved"


@pytest.fixture
def hub(saved: Path) -> Iterator[str]:
    """The URL of a Hub that has org/tiny (the saved model), denies access to org/gated, and has nothing else."""
    files = {path.name: path.read_bytes() for path in saved.iterdir()} | {"pytorch_model.bin": b"a pickle"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if "org/gated" in path:
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif path.startswith("/api/models/org/tiny/revision/"):
                names = [{"rfilename": name} for name in files]
                self._send(200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": names}).encode())
            elif path.startswith("/api/models/org/tiny/tree/"):
                rows = [
                    {"type": "file", "path": name, "size": len(data), "oid": f"{i:040x}"}
                    for i, (name, data) in enumerate(files.items())
                ]
                self._send(200, json.dumps(rows).encode())
            elif path.startswith("/org/tiny/resolve/") and path.rpartition("/")[2] in files:
                name = path.rpartition("/")[2]
                self._send(200, files[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask(hub: str, home: Path, name: str, weights: bool = True) -> "subprocess.CompletedProcess[str]":
    """Call find_model in a process that uses `hub` as the Hub; prints the folder or the error."""
    code = (
        "import sys\nfrom puna.core.errors import PunaError\nfrom puna.model.hub import find_model\n"
        f"try: print(find_model({name!r}, weights={weights}))\nexcept PunaError as e: sys.exit(str(e))"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    env = {**clean, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, cwd=home)


def test_a_model_is_fetched_from_the_hub(hub: str, saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
    small = ask(hub, tmp_path, "org/tiny", weights=False)
    assert small.returncode == 0, small.stderr
    assert not list(Path(small.stdout.strip()).glob("*.safetensors"))
    whole = ask(hub, tmp_path, "hf:org/tiny")
    assert whole.returncode == 0, whole.stderr
    folder = Path(whole.stdout.strip())
    assert torch.equal(load_model(folder).lm_head.weight, load_model(saved).lm_head.weight)
    assert not (folder / "pytorch_model.bin").exists(), "pickles are not even downloaded"


@pytest.mark.parametrize(("name", "words"), [("org/nosuch", "neither a folder here nor"), ("org/gated", "is gated")])
def test_what_the_hub_refuses_is_said(hub: str, tmp_path: Path, name: str, words: str) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
    done = ask(hub, tmp_path, name)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_folders_and_runs_are_found(saved: Path, tmp_path: Path) -> None:
    assert model_directory(saved) == find_model(str(saved), weights=True) == saved
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").touch()
    with pytest.raises(PunaError, match="has not written its model yet"):
        model_directory(run)
    saved.rename(run / "model")
    assert model_directory(run) == run / "model"


def test_a_mistyped_folder_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(PunaError, match=r"models/typo does not exist\. .* hf:models/typo"):
        find_model("models/typo", weights=True)
    for name, words in {
        "nosuch": "does not exist",
        "a/b/c": "does not exist",
        "hf:nosuch": "not a Hugging Face id",
    }.items():
        with pytest.raises(PunaError, match=words):
            find_model(name, weights=True)
    with pytest.raises(PunaError, match="puna import org/name -o models/name"):
        model_directory("org/name")
    with pytest.raises(PunaError, match="no config"):
        model_directory(tmp_path / "models")
