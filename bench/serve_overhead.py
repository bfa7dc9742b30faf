"""Throughput of 32 streams through HTTP relative to the bare engine, in turns.

The model of `engine_speed.py` in bfloat16: 32 prompts of 32 tokens, 160 new ones each. The bare engine generates the
texts in its own process; the server streams them, token by token, to one client process that only counts bytes and
events. That client takes its share of the machine's cores too, which counts against the server.

    python bench/serve_overhead.py [--rounds 7]
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from typing import Any

import common
import engine_speed

TEXTS, NEW = 32, 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    args = parser.parse_args()
    command = [sys.executable, str(engine_speed.__file__), "--worker", "puna bf16"]
    engine = common.Contender("puna bf16", command, OMP_NUM_THREADS=str(engine_speed.THREADS))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--max-batch", str(TEXTS), "--kv-tokens", str(TEXTS * 512), "--port", str(port), "--no-page"]
    model = f"bench={engine_speed.model_directory()}"
    served = subprocess.Popen([sys.executable, "-m", "puna", "serve", model, *options], stderr=subprocess.DEVNULL)
    try:
        wait(port)
        asyncio.run(streams(port, -1))
        bare: list[float] = []
        through: list[float] = []
        for turn in range(args.rounds):
            bare.append(engine.ask(kind="long", turn=turn)["long tokens/s"])
            through.append(asyncio.run(streams(port, turn)))
            print(f"round {turn + 1}: engine {bare[-1]:.0f}, server {through[-1]:.0f}", file=sys.stderr)
    finally:
        served.terminate()
        served.wait(30)
        engine.close()
    ratios = [b / a for a, b in zip(bare, through, strict=True)]
    results = {
        "tokens_per_second": {"engine": common.spread(bare), "server": common.spread(through)},
        "server / engine": common.spread(ratios),
        "overhead": round(1 - statistics.median(ratios), 4),
    }
    settings = {**engine_speed.SHAPE, "streams": TEXTS, "prompt": 32, "new": NEW, "rounds": args.rounds}
    common.save("serve-overhead-cpu", settings, results, packages=("torch", "uvicorn", "fastapi"))


def wait(port: int) -> None:
    """Wait until the server is ready."""
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2)
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server did not start")


async def streams(port: int, turn: int) -> float:
    """Tokens per second of all texts, from the first request to the end of the last stream."""
    prompts = engine_speed.prompts([(32, NEW)] * TEXTS, turn + 7000)
    begin = time.perf_counter()
    counts = await asyncio.gather(*(stream(port, prompt) for prompt in prompts))
    assert counts == [NEW] * TEXTS, counts
    return TEXTS * NEW / (time.perf_counter() - begin)


async def stream(port: int, prompt: list[int]) -> int:
    """Stream one completion and count its tokens."""
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": NEW, "temperature": 0, "ignore_eos": True, "stream": True}
    body["return_token_ids"] = True
    text = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    said = await reader.read()
    writer.close()
    if b"data: [DONE]" not in said:
        raise RuntimeError(said[:500])
    events = [line[6:] for line in said.split(b"\n") if line.startswith(b"data: {")]
    return sum(len(choice.get("token_ids") or []) for event in events for choice in json.loads(event)["choices"])


if __name__ == "__main__":
    main()
