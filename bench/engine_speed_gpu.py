"""New tokens per second of Puna's engine, transformers and vLLM on a GPU, in turns.

transformers uses continuous batching. A Llama of 8B parameters with random bfloat16 weights; 256 prompts at once, of
100 to 1,024 tokens, each with 100 to 1,024 new ones: greedy, token ids in, end tokens ignored. Each turn is a separate
process, because each contender takes most of the GPU's memory; timing begins when the model is loaded and a first text
was generated. Puna is measured as shipped and, to see what they contribute, without captured decode steps and without
overlapping steps.

vLLM is measured when PUNA_VLLM_PYTHON names a Python that has it.

    PUNA_VLLM_PYTHON=~/vllm/bin/python python bench/engine_speed_gpu.py [--rounds 3]
    python bench/engine_speed_gpu.py --shape tiny --device cpu --requests 8 --rounds 1   # a smoke test; writes nothing

It has not been run on a GPU yet, so there is no result. On a CPU nothing is written.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {  # Llama 3.1 8B's
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
}
PUNA: dict[str, dict[str, Any]] = {
    "puna": {},
    "puna, steps not captured": {"decode_buckets": False},
    "puna, steps not overlapped": {"overlap": False},
}
TRANSFORMERS, VLLM = "transformers continuous batching", "vLLM"
CONTENDERS = [*PUNA, TRANSFORMERS, VLLM]
Work = list[tuple[list[int], int]]  # prompt, new tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument(
        "--tokens", type=int, nargs=2, default=(100, 1024), metavar=("LEAST", "MOST"), help="of prompts and answers"
    )
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args)))
        return
    import common

    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("There is no GPU here. --device cpu --shape tiny --requests 8 shows whether this runs.")
    model = model_directory(args.shape, args.device)
    found: dict[str, list[float]] = {}
    versions: dict[str, str] = {}
    choices: dict[str, list[str]] = {}
    for turn in range(args.rounds):
        for name in args.only:
            python = os.environ.get("PUNA_VLLM_PYTHON") if name == VLLM else sys.executable
            if python is None:
                continue
            command = [python, __file__, "--worker", name, "--model", str(model), "--seed", str(turn)]
            command += ["--shape", args.shape, "--device", args.device, "--requests", str(args.requests)]
            command += ["--tokens", *map(str, args.tokens)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=common.ROOT)
            answer = json.loads(done.stdout.splitlines()[-1])
            found.setdefault(name, []).append(answer["tokens"] / answer["seconds"])
            versions[name], choices[name] = answer["version"], answer.get("choices", [])
            print(f"round {turn + 1}: {name}: {found[name][-1]:,.0f} tokens/s", file=sys.stderr)
    ratios = {
        f"{ours} / {peer}": round(statistics.median(a / b for a, b in zip(found[ours], found[peer], strict=True)), 3)
        for ours in found
        for peer in found
        if ours == "puna" and peer != ours
    }
    measured = {name: common.spread(values) for name, values in found.items()}
    results = {"new tokens/s": measured, "ratios": ratios, "versions": versions, "choices": choices}
    if args.device == "cpu":
        print(json.dumps(results, indent=2))
        print("Not a GPU: nothing is written.", file=sys.stderr)
        return
    settings = {**SHAPES[args.shape], "requests": args.requests, "tokens": args.tokens, "rounds": args.rounds}
    common.save("engine-speed-gpu", settings, results, packages=("torch", "transformers", "numpy"))


def model_directory(shape: str, device: str) -> Path:
    """The model, written once.

    Its weights are random but its logits are spread like a trained model's.
    """
    import common

    path = common.CACHE / f"engine-gpu-{shape}"
    if not path.exists():
        import torch

        from puna.model.config import ModelConfig
        from puna.model.llama import LlamaForCausalLM
        from puna.model.store import save_model

        with torch.device("meta"):
            model = LlamaForCausalLM(ModelConfig(**SHAPES[shape])).to(torch.bfloat16)
        model.to_empty(device=device)
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() == 2 else torch.nn.init.ones_(parameter)
        weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        save_model(path, model.config, weights, None, dtype=torch.bfloat16, lineage={"stage": "base"})
    return path


def requests(count: int, least: int, most: int, vocabulary: int, seed: int) -> Work:
    """Random token ids and the number of new ones for each.

    The same for all contenders of a turn.
    """
    draw = random.Random(seed)
    sizes = [(draw.randint(least, most), draw.randint(least, most)) for _ in range(count)]
    return [([draw.randrange(3, vocabulary) for _ in range(prompt)], new) for prompt, new in sizes]


# -- the workers -----------------------------------------------------------------------------------------------------


def work(args: argparse.Namespace) -> dict[str, Any]:
    asked = requests(args.requests, *args.tokens, SHAPES[args.shape]["vocab_size"], args.seed)
    run = with_puna if args.worker in PUNA else {TRANSFORMERS: with_transformers, VLLM: with_vllm}[args.worker]
    return {**run(args, asked), "tokens": sum(new for _, new in asked)}


def with_puna(args: argparse.Namespace, asked: Work) -> dict[str, Any]:
    import torch

    import puna
    from puna.engine.generate import SamplingParams, load_engine

    engine = load_engine(
        args.model, device=args.device, dtype=torch.bfloat16, max_batch=256, step_tokens=2048, **PUNA[args.worker]
    )
    params = [SamplingParams(max_tokens=new, temperature=0, ignore_end=True) for _, new in asked]
    # Sizes are captured when they first occur: that is a server's first minute and is not measured here.
    engine.generate(
        [[5 + i] for i in range(len(asked))], [SamplingParams(max_tokens=2 + i % 64) for i in range(len(asked))]
    )
    begin = time.perf_counter()
    done = engine.generate([prompt for prompt, _ in asked], params)
    seconds = time.perf_counter() - begin
    assert [len(one.ids) for one in done] == [new for _, new in asked]
    return {"seconds": seconds, "version": puna.__version__, "choices": engine.describe()}


def with_transformers(args: argparse.Namespace, asked: Work) -> dict[str, Any]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).to(args.device).eval()
    config = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    with model.continuous_batching_context_manager(generation_config=config) as manager:

        def generate(work: Work) -> list[int]:
            for i, (prompt, new) in enumerate(work):
                manager.add_request(prompt, request_id=f"{len(work)}-{i}", max_new_tokens=new)
            made = []
            while len(made) < len(work):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    made.append(len(result.generated_tokens))
                assert result is not None or manager.is_running()
            return made

        generate([([5, 6, 7], 4)])
        begin = time.perf_counter()
        made = generate(asked)
        seconds = time.perf_counter() - begin
    assert sorted(made) == sorted(new for _, new in asked)
    return {"seconds": seconds, "version": transformers.__version__}


def with_vllm(args: argparse.Namespace, asked: Work) -> dict[str, Any]:
    import vllm  # type: ignore[import-not-found]

    engine = vllm.LLM(model=str(args.model), skip_tokenizer_init=True, dtype="bfloat16", max_num_seqs=256)
    params = [vllm.SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False) for _, new in asked]
    engine.generate([{"prompt_token_ids": [5, 6, 7]}], params[:1], use_tqdm=False)
    begin = time.perf_counter()
    done = engine.generate([{"prompt_token_ids": prompt} for prompt, _ in asked], params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    assert [len(one.outputs[0].token_ids) for one in done] == [new for _, new in asked]
    return {"seconds": seconds, "version": vllm.__version__}


if __name__ == "__main__":
    main()
