"""Compare an exported GGUF file with llama.cpp.

Compares tensors, token ids, dialogues, greedy text, and quantizers' errors.

    PUNA_LLAMA_CPP=…/bin PUNA_LLAMA_CPP_SOURCE=… python bench/gguf_parity.py models/demo

PUNA_LLAMA_CPP is the folder of llama-server and llama-quantize, PUNA_LLAMA_CPP_SOURCE the sources with
convert_hf_to_gguf.py. Parts that need a missing one are left out and named in the result. The model should be a trained
one whose rows are multiples of 256; a model with random weights shows nothing about greedy text.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

import common
from puna.convert.gguf import SCHEMES, export_gguf
from puna.convert.quants import quantize
from puna.engine.generate import SamplingParams, load_engine
from puna.model.hub import model_directory
from puna.model.store import load_model
from puna.text.chat import render
from puna.text.tokenizer import Tokenizer

NASTY = [
    "", " ", "  ", "\n", "\r\n", " \n ", "\t\t", "a\n\n\nb", "   leading", "trailing   ", "I'm 'LL it's WE'VE ſ'ſ",
    "1234567890", "3.14159", "٣٤٥٦", "½⅓", "a1b22c333d4444", "x\u00a0y\u2003z\u3000w", "\u200b\u200d\ufeff",
    "é e\u0301",
    "नमस्ते दुनिया", "ภาษาไทย", "日本語テキスト、句読点。", "한국어", "עברית‏",
    "👩‍👩‍👧‍👦🇵🇪🏴‍☠️", "\x00\x01\x7f\x80", "<|eot_id|>",
    "<|begin_of_text|>hi", "[INST] <s> </s>", "!!!???...", "----====----", "{}[]()<>;:'\"", "\u0600\u0601", "Ⅷ²₃",
]  # fmt: skip
QUESTIONS = ["import os\n", "def main(", "class ", "The", "for i in range(", "    return ", '"""Return', "try:\n    "]
DIALOGUES: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " spaces "}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c\n\nd"},
    ],
]
# With a description: llama-server writes an empty one into tools that have none.
WEATHER = {"name": "weather", "description": "Now.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": WEATHER}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model or run directory")
    parser.add_argument("--strings", type=int, default=12000)
    parser.add_argument("--tokens", type=int, default=64, help="greedy tokens per prompt")
    args = parser.parse_args()
    directory = model_directory(args.model)
    binaries, source = os.environ.get("PUNA_LLAMA_CPP"), os.environ.get("PUNA_LLAMA_CPP_SOURCE")
    results: dict[str, Any] = {"parameters": sum(p.numel() for p in load_model(directory).parameters())}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for scheme in SCHEMES:
            began = time.monotonic()
            written = export_gguf(directory, place / f"{scheme}.gguf", scheme, name="parity")
            results[f"export {scheme}"] = {
                "seconds": round(time.monotonic() - began, 1),
                "bytes": written.bytes,
                "rms_error": {kind: float(f"{error:.4g}") for kind, error in written.errors.items()},
            }
        results["converter"] = converter(directory, place, Path(source)) if source else "PUNA_LLAMA_CPP_SOURCE not set"
        if not binaries or not (Path(binaries) / "llama-server").is_file():
            results["llama.cpp"] = "not measured: no llama-server in PUNA_LLAMA_CPP"
        else:
            results["llama-quantize"] = quantizers(place, Path(binaries))
            tokenizer = Tokenizer.load(directory)
            for scheme in SCHEMES:
                with server(Path(binaries), place / f"{scheme}.gguf") as ask:
                    if scheme == "f32":
                        results["tokenizer"] = tokens(ask, tokenizer, args.strings)
                        results["dialogues"] = dialogues(ask, tokenizer)
                    results[f"greedy {scheme}"] = greedy(ask, directory, args.tokens)
    settings = {"model": directory.resolve().parent.name, "strings": args.strings, "greedy_tokens": args.tokens}
    common.save("gguf-parity", settings, results, packages=("torch", "gguf", "transformers", "numpy"))
    print(json.dumps(results, indent=2))


def converter(directory: Path, place: Path, source: Path) -> Any:
    """Compare with the output of llama.cpp's converter, with the pre-tokenizer set to llama-bpe."""
    code = (
        "import sys; sys.path[:0] = [SOURCE, SOURCE + '/gguf-py']\n"
        "import conversion.base as base\n"
        "for kind in (base.TextModel,): kind.get_vocab_base_pre = lambda self, tokenizer: 'llama-bpe'\n"
        "sys.argv = ['convert', DIRECTORY, '--outfile', OUT, '--outtype', 'f32']\n"
        "import runpy; runpy.run_path(SOURCE + '/convert_hf_to_gguf.py', run_name='__main__')\n"
    )
    out = place / "converter.gguf"
    for name, value in (("SOURCE", source), ("DIRECTORY", directory.resolve()), ("OUT", out)):
        code = code.replace(name, repr(str(value)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        return "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    ours, theirs = gguf.GGUFReader(place / "f32.gguf"), gguf.GGUFReader(out)
    tensors = {tensor.name: tensor.data for tensor in theirs.tensors}
    mine = {tensor.name: tensor.data for tensor in ours.tensors}
    keys = {name: field.contents() for name, field in ours.fields.items() if not name.startswith("GGUF.")}
    other = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    return {
        "tensors": len(tensors),
        "equal": sum(name in mine and np.array_equal(mine[name], data) for name, data in tensors.items()),
        "only_ours": sorted(mine.keys() - tensors.keys()),
        "keys_equal": sorted(key for key in keys if key in other and keys[key] == other[key]),
        "keys_different": {
            key: [_short(keys[key]), _short(other[key])] for key in keys if key in other and keys[key] != other[key]
        },
        "keys_only_ours": sorted(keys.keys() - other.keys()),
        "keys_only_theirs": sorted(other.keys() - keys.keys()),
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else text[:77] + "…"


def quantizers(place: Path, binaries: Path) -> dict[str, Any]:
    """Compare types and errors of Puna's quantized tensors with llama-quantize's.

    Both start from the same f32 file.
    """
    source = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(place / "f32.gguf").tensors}
    found: dict[str, Any] = {}
    for scheme in ("q8_0", "q4_0", "q4_k_m"):
        theirs = place / f"theirs-{scheme}.gguf"
        command = [str(binaries / "llama-quantize"), str(place / "f32.gguf"), str(theirs), scheme.upper()]
        began = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.monotonic() - began
        mine = {tensor.name: tensor for tensor in gguf.GGUFReader(place / f"{scheme}.gguf").tensors}
        errors: dict[str, list[float]] = {}
        same_types = same_bytes = 0
        for tensor in gguf.GGUFReader(theirs).tensors:
            own, values = mine[tensor.name], source[tensor.name]
            same_types += own.tensor_type == tensor.tensor_type
            same_bytes += np.array_equal(own.data, tensor.data)
            if values.ndim < 2 or own.tensor_type != tensor.tensor_type:
                continue
            sums = errors.setdefault(tensor.tensor_type.name, [0.0, 0.0, 0.0])
            for i, data in enumerate((own.data, tensor.data)):
                sums[i] += float(np.square(gguf.dequantize(np.array(data), tensor.tensor_type) - values).sum())
            sums[2] += float(np.square(values).sum())
        found[scheme] = {
            "tensors": len(mine),
            "same_type": same_types,
            "same_bytes": same_bytes,
            "rms_error_ours_and_theirs": {
                kind: [float(f"{(s / total) ** 0.5:.4g}") for s in (a, b)] for kind, (a, b, total) in errors.items()
            },
            "llama_quantize_seconds": round(seconds, 2),
        }
    rng = np.random.default_rng(0).standard_normal((256, 4096)).astype(np.float32)
    began = time.monotonic()
    quantize(rng, gguf.GGMLQuantizationType.Q4_K)
    found["our_q4_k_million_values_per_second"] = float(f"{rng.size / (time.monotonic() - began) / 1e6:.3g}")
    return found


@contextmanager
def server(binaries: Path, model: Path) -> Iterator[Callable[..., Any]]:
    """Run a llama-server on a free port; yields a function (path, **body) -> answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(binaries / "llama-server"),
        "-m",
        str(model),
        "--port",
        str(port),
        "--jinja",
        "-c",
        "1024",
        "-t",
        "2",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    try:
        for _ in range(600):
            try:
                ask("/health")
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(f"llama-server ended with {process.returncode} on {model.name}") from None
                time.sleep(0.2)
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=30)


def strings(count: int) -> list[str]:
    """Difficult strings, lines of this repository, and random Unicode of every plane."""
    rng = random.Random(0)
    lines = [
        line for path in sorted(common.ROOT.glob("**/*.[pm][yd]")) if ".venv" not in path.parts
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
    ]  # fmt: skip
    rng.shuffle(lines)
    texts = NASTY + lines[: count // 2]
    ranges = [(0x20, 0x7F), (0x80, 0x2FF), (0x300, 0x370), (0x370, 0x600), (0x600, 0x1100), (0x2000, 0x2C00),
              (0x3000, 0xD7FF), (0xF900, 0xFFFE), (0x1F300, 0x1FAFF), (0x10000, 0x10FFFF)]  # fmt: skip
    while len(texts) < count:
        chosen = [rng.choice(ranges) for _ in range(rng.randint(1, 4))]
        texts.append(
            "".join(chr(rng.randrange(*rng.choice(chosen))) + rng.choice(["", "", " ", "\n"]) for _ in range(24))
        )
    return texts


def tokens(ask: Callable[..., Any], tokenizer: Tokenizer, count: int) -> dict[str, Any]:
    """Whether both produce the same ids for the same texts, with special tokens read as text."""
    texts = strings(count)
    different = []
    for text in texts:
        theirs = ask("/tokenize", content=text, add_special=False, parse_special=False)["tokens"]
        if theirs != tokenizer.encode(text):
            different.append(text)
    return {
        "strings": len(texts),
        "different": len(different),
        "examples": [repr(text[:60]) for text in different[:10]],
    }


def dialogues(ask: Callable[..., Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Whether llama.cpp's own Jinja renders the chat template as `text.chat.render` does."""
    right, cases = 0, [(messages, tools) for messages in DIALOGUES for tools in (None, TOOLS)]
    for messages, tools in cases:
        prompt = ask("/apply-template", messages=messages, **({"tools": tools} if tools else {}))["prompt"]
        ours = render(messages, tokenizer, tools=tools, add_generation_prompt=True).ids
        theirs = tokenizer.encode(prompt, special=True)
        right += theirs == ours or [tokenizer.bos_id, *theirs] == ours
    return {"dialogues": len(cases), "equal": right}


def greedy(ask: Callable[..., Any], directory: Path, count: int) -> dict[str, Any]:
    """Count greedy tokens that agree with Puna's engine in float32.

    Also compares the first log probabilities.
    """
    engine = load_engine(directory, dtype=torch.float32)
    engine.end_ids = set()
    prompts = [engine.tokenizer.encode(text, bos=True) for text in QUESTIONS]
    ours = engine.generate(prompts, SamplingParams(max_tokens=count, temperature=0))
    prefixes, differences = [], []
    for prompt, completion in zip(prompts, ours, strict=True):
        options = {"temperature": 0, "ignore_eos": True, "cache_prompt": False, "return_tokens": True, "n_probs": 20}
        answer = ask("/completion", prompt=prompt, n_predict=count, **options)
        pairs = zip(completion.ids, answer["tokens"], strict=False)
        prefixes.append(next((i for i, (a, b) in enumerate(pairs) if a != b), count))
        with torch.no_grad():
            logprobs = engine.model(torch.tensor([prompt]))[0, -1].float().log_softmax(-1)
        first = answer["completion_probabilities"][0]
        differences += [abs(entry["logprob"] - float(logprobs[entry["id"]])) for entry in first["top_logprobs"]]
    return {
        "equal_prefix": prefixes,
        "of": count,
        "logprob_difference_mean": float(f"{np.mean(differences):.3g}"),
        "logprob_difference_max": float(f"{np.max(differences):.3g}"),
    }


if __name__ == "__main__":
    main()
