"""The tutorials, followed to the letter: their files are written and their commands run in an empty folder."""

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from docs_support import DOCS, blocks

from puna.cli.main import main
from puna.core.files import read_json


def follow(page: str, heading: str, folder: Path) -> list[str]:
    """Write the section's files, run its commands (but `puna serve`) in order; returns the commands."""
    text = (DOCS / page).read_text(encoding="utf-8")
    commands = []
    for block in blocks(page, heading):
        named = re.match(r"# ([\w./-]+)\n", block.text)
        if block.language == "json":
            before = text.splitlines()[block.line - 4 : block.line - 1]
            named = re.search(r"`([\w./-]+)`:", "\n".join(before))
        if named:
            path = folder / named[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        if block.language == "sh":
            for line in block.text.splitlines():
                commands.append(line)
                if not line.startswith("puna serve"):
                    assert main(shlex.split(line)[1:]) == 0, line
    return commands


def test_a_benchmark_of_your_own(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = follow("evals.md", "A benchmark of your own", workshop)
    printed = capsys.readouterr().out
    assert len(commands) == 3
    assert re.search(r"colours\s+.*Colours\s+.*knowledge", printed)
    [colours] = read_json(workshop / "evals" / "colours" / "results.json")["benchmarks"]
    assert (colours["items"], colours["baselines"]["chance"]) == (3, pytest.approx(1 / 3))
    [capitals] = read_json(workshop / "evals" / "demo" / "results.json")["benchmarks"]
    assert (capitals["benchmark"], set(capitals["groups"])) == ("capitals", {"Europe", "South America", "Africa"})
    assert (workshop / "evals" / "demo" / "report.html").is_file()


def test_a_task_of_your_own(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = follow("tasks.md", "A task of your own", workshop)
    printed = capsys.readouterr().out
    assert len(commands) == 4
    assert "counting.ones" in printed
    assert re.search(r"^[01]{14}:\n\nanswer: \d+$", printed, re.MULTILINE)
    [found] = read_json(workshop / "evals" / "counting" / "results.json")["benchmarks"]
    assert (found["benchmark"], found["suites"], found["items"]) == ("counting.ones", ["counting", "puna"], 6)
    assert (workshop / "runs" / "counting" / "model" / "config.json").is_file()


def test_a_backend_of_your_own(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [command] = follow("serving.md", "A backend of your own", workshop)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", *shlex.split(command), "--port", str(port), "--data", str(workshop / "data")]
    with subprocess.Popen(words, stderr=subprocess.PIPE, encoding="utf-8") as server:
        try:
            assert server.stderr is not None
            assert str(port) in server.stderr.readline()
            client = next(b.text for b in blocks("serving.md", "A backend of your own") if "OpenAI(" in b.text)
            exec(client.replace("localhost:8000", f"localhost:{port}"), {})
            assert capsys.readouterr().out.strip() == "hello there"
            with httpx.Client(base_url=f"http://localhost:{port}", trust_env=False) as api:
                body = {"model": "parrot", "prompt": "one two three four", "stop": "thr", "stream": True}
                streamed = api.post("/v1/completions", json=body).text
                assert "two" in streamed
                assert "thr" not in streamed
                refused = api.post("/v1/completions", json={"prompt": "x", "logprobs": 1})
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
                short = api.post("/v1/completions", json={"prompt": "one two three", "max_tokens": 2}).json()
                assert (short["choices"][0]["text"], short["choices"][0]["finish_reason"]) == ("one two ", "length")
        finally:
            server.terminate()
