"""Tokens per second of Puna's engine, transformers and llama.cpp on this CPU, in turns.

One Llama of 107M parameters with random weights (768 wide, 16 layers, 12 query heads on 4 key-value heads, feed-forward
2,048, vocabulary 4,096), as a model directory for Puna and transformers and as GGUF for llama.cpp. Greedy, token ids
in, end tokens ignored, two threads each:

    decode       one prompt of 32 tokens, 64 new ones; the time for the prompt is subtracted
    batch        32 prompts of 32 tokens at once, 64 new ones each: new tokens per second, prompts included
    mixed        32 prompts of 16 to 256 tokens at once, 16 to 128 new ones each: the same. transformers pads
    prefill      a prompt of 1,024 tokens
    prefix       the first token of 50 prompts that share their first 1,000 tokens, with and without the prefix cache

llama.cpp is measured when PUNA_LLAMA_CPP names the folder of its programs: decode and prefill as reported by its
server, the rest by the clock of 32 clients, with 32 slots.

    PUNA_LLAMA_CPP=~/llama.cpp/build/bin python bench/engine_speed.py [--rounds 5] [--only NAME ...]
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common

SHAPE = {
    "hidden_size": 768,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 2048,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
THREADS = 2
CONTENDERS = {
    "puna bf16": None,
    "puna int8": "int8",
    "puna int4": "int4",
    "transformers bf16": None,
    "transformers fp32": None,
    "llama.cpp bf16": "bf16",
    "llama.cpp q8_0": "q8_0",
    "llama.cpp q4_0": "q4_0",
}
Work = list[tuple[int, int]]  # prompt tokens, new tokens
DECODE: Work = [(32, 64)]
BATCH: Work = [(32, 64)] * 32
_draw = random.Random(0)
MIXED: Work = [(_draw.randint(16, 256), _draw.randint(16, 128)) for _ in range(32)]
LONG: Work = [(32, 160)] * 32  # used by serve_overhead.py
PREFILL: Work = [(1024, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    programs = os.environ.get("PUNA_LLAMA_CPP")
    names = [name for name in args.only if programs or not name.startswith("llama.cpp")]
    model_directory()
    for name in names:
        if name.startswith("llama.cpp"):
            gguf(str(CONTENDERS[name]))
    command = [sys.executable, __file__, "--worker"]
    contenders = [common.Contender(n, [*command, n], OMP_NUM_THREADS=str(THREADS)) for n in names]
    found: dict[str, dict[str, list[float]]] = {}
    for turn in range(args.rounds):
        for kind in ("decode", "batch", "mixed", "prefill", "prefix"):
            for contender in contenders:
                for what, value in contender.ask(kind=kind, turn=turn).items():
                    found.setdefault(what, {}).setdefault(contender.name, []).append(value)
            now = {what: {n: round(v[-1], 1) for n, v in of.items()} for what, of in found.items() if kind in what}
            print(f"round {turn + 1}: {now}", file=sys.stderr)
    for contender in contenders:
        contender.close()
    results = {
        "measured": {w: {n: common.spread(values) for n, values in of.items()} for w, of in found.items()},
        "ratios": ratios(found),
        "versions": {contender.name: contender.ready["version"] for contender in contenders},
        "choices": {c.name: c.ready["choices"] for c in contenders if "choices" in c.ready},
    }
    settings = {**SHAPE, "threads": THREADS, "rounds": args.rounds, "greedy": True, "mixed": MIXED}
    common.save("engine-speed-cpu", settings, results, packages=("torch", "transformers", "numpy"))


def ratios(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Median ratio of Puna to a peer, over the rounds.

    Both are of the same round and precision class.
    """
    pairs = [
        ("puna bf16", "transformers bf16"),
        ("puna bf16", "transformers fp32"),
        ("puna bf16", "llama.cpp bf16"),
        ("puna int8", "llama.cpp q8_0"),
        ("puna int4", "llama.cpp q4_0"),
        ("puna int8", "transformers bf16"),
        ("puna int4", "transformers bf16"),
    ]
    return {
        what: {
            f"{ours} / {peer}": round(statistics.median(a / b for a, b in zip(of[ours], of[peer], strict=True)), 3)
            for ours, peer in pairs
            if ours in of and peer in of
        }
        for what, of in found.items()
        if not what.startswith("prefix")
    }


def model_directory() -> Path:
    """The model, written once.

    Its weights are random but its logits are spread like a trained model's.
    """
    path = common.CACHE / "engine-107m"
    if not path.exists():
        import torch

        from puna.model.config import ModelConfig
        from puna.model.llama import LlamaForCausalLM
        from puna.model.store import save_model
        from puna.text.tokenizer import Tokenizer

        model = LlamaForCausalLM(ModelConfig(**SHAPE))
        model.init_weights(0)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(len(name)))
        tokenizer = Tokenizer.load(common.stdlib_corpus(4096) / "tokenizer")
        save_model(path, model.config, model.state_dict(), tokenizer, dtype=torch.bfloat16, lineage={"stage": "base"})
    return path


def gguf(kind: str) -> Path:
    """The same model as GGUF: bf16, q8_0 or q4_0."""
    path = common.CACHE / f"engine-107m-{kind}.gguf"
    if not path.exists():
        how = ["--dtype", "bf16"] if kind == "bf16" else ["--quantize", kind]
        command = [
            sys.executable,
            "-m",
            "puna",
            "export",
            str(model_directory()),
            "--to",
            "gguf",
            *how,
            "-o",
            str(path),
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return path


def prompts(sizes: Work, turn: int) -> list[list[int]]:
    """Random token ids, different in each turn, so that no cache has them."""
    draw = random.Random(turn * 1000 + len(sizes))
    return [[draw.randrange(300, 4000) for _ in range(count)] for count, _ in sizes]


# -- the workers -----------------------------------------------------------------------------------------------------


def work(name: str) -> None:
    worker = {"puna": Puna, "transformers": Transformers, "llama.cpp": LlamaCpp}[name.split()[0]](name)
    worker.seconds(prompts([(8, 4)], 99), [4])

    def answer(request: dict[str, Any]) -> dict[str, float]:
        turn, kind = request["turn"], request["kind"]
        if kind == "prefix":
            return worker.prefix(turn) if isinstance(worker, Puna) else {}
        if kind == "decode":
            return {"decode tokens/s": worker.decode(turn)}
        if kind == "prefill":
            return {"prefill tokens/s": worker.prefill(turn)}
        sizes = {"batch": BATCH, "mixed": MIXED, "long": LONG}[kind]
        seconds = worker.seconds(prompts(sizes, turn), [new for _, new in sizes])
        return {f"{kind} tokens/s": sum(new for _, new in sizes) / seconds}

    common.serve(worker.ready, answer)


class Worker:
    """seconds: time for these prompts, with this many new tokens each."""

    ready: dict[str, Any]

    def seconds(self, prompts: Sequence[Sequence[int]], new: Sequence[int]) -> float:
        raise NotImplementedError

    def decode(self, turn: int) -> float:
        [(count, new)] = DECODE
        best = []
        for wanted in (2, new + 2):
            [prompt] = prompts([(count, 0)], turn + wanted)
            best.append(self.seconds([prompt], [wanted]))
        return new / (best[1] - best[0])

    def prefill(self, turn: int) -> float:
        return PREFILL[0][0] / self.seconds(prompts(PREFILL, turn), [1])


class Puna(Worker):
    def __init__(self, name: str) -> None:
        import torch

        import puna
        from puna.engine.generate import load_engine

        torch.set_num_threads(THREADS)
        options = {"max_batch": 32, "kv_tokens": 32 * 512}
        self.engine = load_engine(model_directory(), fast=True, quantize=CONTENDERS[name], **options)
        self.uncached = (
            load_engine(model_directory(), fast=True, prefix_cache=False, **options) if "bf16" in name else None
        )
        self.ready = {"version": puna.__version__, "choices": self.engine.describe()}

    def seconds(self, prompts: Sequence[Sequence[int]], new: Sequence[int]) -> float:
        from puna.engine.generate import SamplingParams

        params = [SamplingParams(max_tokens=count, temperature=0, ignore_end=True) for count in new]
        begin = time.perf_counter()
        done = self.engine.generate(prompts, params)
        assert [len(one.ids) for one in done] == list(new)
        return time.perf_counter() - begin

    def prefix(self, turn: int) -> dict[str, float]:
        """Milliseconds to the first token of prompts that share 1,000 tokens, one after the other."""
        from puna.engine.generate import SamplingParams

        if self.uncached is None:
            return {}
        [system] = prompts([(1000, 0)], turn + 500)
        asked = [[*system, 4000 + i, *tail] for i, tail in enumerate(prompts([(20, 0)] * 50, turn + 501))]
        result = {}
        for label, engine in (("with", self.engine), ("without", self.uncached)):
            engine.generate([asked[0]], SamplingParams(max_tokens=1))
            times = []
            for prompt in asked[1:]:
                begin = time.perf_counter()
                next(iter(engine.stream(prompt, SamplingParams(max_tokens=1, temperature=0, ignore_end=True))))
                times.append(time.perf_counter() - begin)
                if label == "without" and len(times) == 5:  # each costs a full prefill
                    break
            result[f"prefix first token ms {label} cache"] = statistics.median(times) * 1000
        result["prefix ratio"] = (
            result["prefix first token ms without cache"] / result["prefix first token ms with cache"]
        )
        return result


class Transformers(Worker):
    def __init__(self, name: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(THREADS)
        dtype = torch.bfloat16 if "bf16" in name else torch.float32  # the faster one without bfloat16 instructions
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model_directory(), dtype=dtype).eval()
        self.ready = {"version": transformers.__version__}

    def seconds(self, prompts: Sequence[Sequence[int]], new: Sequence[int]) -> float:
        import torch

        longest, most = max(map(len, prompts)), max(new)
        begin = time.perf_counter()
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            self.model.generate(
                ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False, pad_token_id=0
            )
        return time.perf_counter() - begin


class LlamaCpp(Worker):
    def __init__(self, name: str) -> None:
        kind = str(CONTENDERS[name])
        port = 18100 + list(CONTENDERS).index(name)
        self.url = f"http://127.0.0.1:{port}"
        program = Path(os.environ["PUNA_LLAMA_CPP"]).expanduser() / "llama-server"
        options = ["-m", str(gguf(kind)), "-t", str(THREADS), "-tb", str(THREADS), "-np", "32", "-c", str(32 * 512)]
        command = [str(program), *options, "--host", "127.0.0.1", "--port", str(port), "--kv-unified"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.1)
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        self.ready = {"version": (said.stderr + said.stdout).strip().splitlines()[0]}
        import atexit

        atexit.register(self.process.terminate)

    def post(self, prompt: Sequence[int], new: int) -> dict[str, Any]:
        body = {"prompt": list(prompt), "n_predict": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(
            f"{self.url}/completion", json.dumps(body).encode(), {"Content-Type": "a/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)

    def seconds(self, prompts: Sequence[Sequence[int]], new: Sequence[int]) -> float:
        with ThreadPoolExecutor(len(prompts)) as pool:
            begin = time.perf_counter()
            done = list(pool.map(self.post, prompts, new))
            took = time.perf_counter() - begin
        assert [one["tokens_predicted"] for one in done] == list(new)
        return took

    def decode(self, turn: int) -> float:
        [(count, new)] = DECODE
        return self.post(prompts([(count, 0)], turn)[0], new)["timings"]["predicted_per_second"]

    def prefill(self, turn: int) -> float:
        return self.post(prompts(PREFILL, turn)[0], 1)["timings"]["prompt_per_second"]


if __name__ == "__main__":
    main()
