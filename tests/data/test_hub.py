"""Datasets of the Hub, through the real client against a small server that answers as the Hub does."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puna.core.errors import PunaError
from puna.data.document import Drops
from puna.data.reading.sources import list_inputs, read_documents
from puna.data.recipe import SourceConfig

hub = pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """The files of the dataset owner/stories."""
    pq.write_table(pa.table({"text": ["one", "two"], "kind": ["a", "b"]}), tmp_path / "p.parquet")
    return {
        "README.md": b"a dataset",
        "data/train-00000.parquet": (tmp_path / "p.parquet").read_bytes(),
        "data/extra.jsonl": b'{"text": "three"}\n',
    }


@pytest.fixture
def server(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that were asked for."""
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            resolve = f"/datasets/owner/stories/resolve/{COMMIT}/"
            asked.append(f"{self.command} {path}")
            if path in (f"/api/datasets/owner/stories/revision/{r}" for r in ("main", COMMIT)):
                siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
                self.answer(json.dumps({"id": "owner/stories", "sha": COMMIT, "siblings": siblings}).encode())
            elif path.startswith(resolve) and path.removeprefix(resolve) in files:
                content = files[path.removeprefix(resolve)]
                etag = hashlib.sha1(content).hexdigest()
                self.answer(content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
            else:
                wrong = "RevisionNotFound" if "/owner/stories/" in path else "RepoNotFound"
                self.answer(b"{}", {"X-Error-Code": wrong, "X-Error-Message": wrong}, 404)

        def answer(self, content: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    point_at(monkeypatch, f"http://127.0.0.1:{httpd.server_port}", tmp_path / "cache")
    yield asked
    httpd.shutdown()
    httpd.server_close()


def point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """What HF_ENDPOINT and HF_HOME do; the client reads both when it is first imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the hub of this test is on this machine

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def texts(source: SourceConfig) -> list[str]:
    inputs = list_inputs(source)
    assert all(item.revision == COMMIT for item in inputs)
    return [document.text for _, document in read_documents(source, inputs, "drop", Drops()) if document]


def test_a_dataset_is_read_at_one_commit_and_downloaded_once(server: list[str]) -> None:
    source = SourceConfig(name="s", kind="hub", id="owner/stories")
    assert texts(source) == ["three", "one", "two"]
    assert texts(source.model_copy(update={"glob": ["*.parquet"], "where": {"kind": "b"}})) == ["two"]
    downloads = [path for path in server if path.startswith("GET /datasets/")]
    assert len(downloads) == len(set(downloads)) == 2
    assert not any("README" in path for path in server)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "owner/nothing"}, "dataset 'owner/nothing' does not exist, or is private"),
        ({"revision": "v9"}, "has no revision 'v9'"),
        ({"glob": ["*.csv"]}, r"has no parquet or jsonl file that matches \*\.csv"),
        ({"id": "no/such/id"}, "is not a dataset id"),
    ],
)
def test_wrong_ids_are_said_in_a_sentence(server: list[str], change: dict[str, Any], message: str) -> None:
    with pytest.raises(PunaError, match=message):
        list_inputs(SourceConfig.model_validate({"name": "s", "kind": "hub", "id": "owner/stories", **change}))


def test_no_network_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(PunaError, match="cannot be reached"):
        list_inputs(SourceConfig(name="s", kind="hub", id="owner/stories"))
