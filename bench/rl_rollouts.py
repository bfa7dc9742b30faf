"""Rollout speed of a running reinforcement stage, compared with TRL's GRPO.

    python bench/rl_rollouts.py [--rounds 3] [--tokens 64]

Also shows where the rest of a step's time goes. Both train the same random model of the demo's size in float32 on the
same problems (planning.grid), with equally many answers of equally many tokens: random weights hardly ever end an
answer, so lengths are equal. TRL generates with transformers, its default without vLLM. Each is a process that stays
alive; they train in turns. Generation is timed from the trainer's call to its return, including padding, caches and
sampling; the complete step is timed too. TRL is installed into a separate environment under build/bench.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

PEER = ("trl>=1.10", "accelerate", "datasets", "dill", "multiprocess", "xxhash", "pandas", "python-dateutil", "six")
SHAPE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps per turn (default 3)")
    parser.add_argument("--problems", type=int, default=8, help="problems per step (default 8)")
    parser.add_argument("--samples", type=int, default=8, help="answers per problem (default 8)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer (default 64)")
    parser.add_argument("--threads", type=int, default=0, help="threads per contender (default: cores)")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "DIR"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    threads = args.threads or _cores()
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        given = [f"--{name}={getattr(args, name)}" for name in ("steps", "problems", "samples", "tokens")]
        pythons = {"puna": sys.executable, "trl": str(common.peer_environment("trl", PEER))}
        contenders = [
            common.Contender(
                name,
                [python, __file__, *given, f"--threads={threads}", "--worker", name, folder],
                OMP_NUM_THREADS=str(threads),
                HF_HUB_OFFLINE="1",
            )
            for name, python in pythons.items()
        ]
        turns: dict[str, list[dict[str, float]]] = {one.name: [] for one in contenders}
        for number in range(args.rounds + 1):
            for one in contenders:
                found = one.ask(seed=number)
                if number:  # the first turn warms up
                    turns[one.name].append(found)
                    print(number, one.name, found, file=sys.stderr)
        for one in contenders:
            one.close()
    results: dict[str, Any] = {
        name: {key: common.spread([turn[key] for turn in found]) for key in found[0]} for name, found in turns.items()
    }
    pairs = list(zip(turns["puna"], turns["trl"], strict=True))
    results["ratio"] = {
        key: common.spread([ours[key] / theirs[key] for ours, theirs in pairs])
        for key in ("rollout_tokens_per_second", "step_tokens_per_second")
    }
    print(results, file=sys.stderr)
    settings = {
        "model": "random, 4 layers of 256, vocabulary 4096",
        "dtype": "float32",
        "threads": threads,
        **{name: getattr(args, name) for name in ("rounds", "steps", "problems", "samples", "tokens")},
        "trl": pythons and contenders[1].ready["version"],
    }
    common.save("rl-rollouts", settings, results, packages=("torch", "transformers"))


def _cores() -> int:
    from puna.train.measure import machine

    return machine.cores()


def make_model(folder: Path) -> None:
    """A random model of the demo's size with the tokenizer of the standard library's corpus."""
    import torch

    from puna.data.corpus import Corpus
    from puna.model.config import ModelConfig
    from puna.model.llama import LlamaForCausalLM
    from puna.model.store import save_model

    tokenizer = Corpus.open(common.stdlib_corpus()).tokenizer
    config = ModelConfig(**SHAPE, vocab_size=tokenizer.vocab_size, num_key_value_heads=4, max_position_embeddings=1024)
    model = LlamaForCausalLM(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.02)
    save_model(folder / "model", config, model.state_dict(), tokenizer, dtype=torch.float32, lineage={})


def worker(args: argparse.Namespace) -> None:
    """One contender: answers {"seed"} with the measurements of one turn of training."""
    import torch

    torch.set_num_threads(args.threads)
    name, folder = args.worker
    if name == "puna":
        common.serve({"ready": True}, lambda request: puna_turn(args, Path(folder), request["seed"]))
    else:
        import trl

        common.serve({"version": trl.__version__}, lambda request: trl_turn(args, Path(folder), request["seed"]))


def a_reward(text: str) -> float:
    """A number that differs between answers, so that every problem has a learning signal."""
    return random.Random(text).random()


def puna_turn(args: argparse.Namespace, folder: Path, seed: int) -> dict[str, float]:
    """Train a few steps; the first one, which warms up, is not counted."""
    from functools import partial

    from puna.core.recipe import check
    from puna.tasks.contract import Verdict
    from puna.train.measure.machine import Machine
    from puna.tune.rl.objective import RL
    from puna.tune.rl.recipe import RLRecipe
    from puna.tune.stage import run_stage

    values = {
        "stage": "rl",
        "model": str(folder / "model"),
        "tasks": [{"name": "planning.grid", "levels": [2]}],
        "train": {"steps": args.steps + 1, "batch": args.problems, "seq_len": 1024, "precision": "fp32", "seed": seed},
        "rollout": {"samples": args.samples, "max_tokens": args.tokens, "max_batch": args.problems * args.samples},
        "curriculum": {"stop_reward": 9.0, "min_pass": 0.0},
        "measure": {"problems": 1, "samples": 1},
        "optimizer": {"lr": 1e-6},
        "log": {"every": 1, "eval_every": 0},
    }
    recipe = check(RLRecipe, values, "the benchmark's recipe")
    marks: list[tuple[float, dict[str, float], float]] = []
    tokens = [0]

    class Timed(RL):
        def batch(self, data_step: int) -> Any:
            marks.append((time.perf_counter(), dict(self.shares.seconds), self.collector.seconds["generation"]))
            batches = super().batch(data_step)
            if data_step:
                tokens[0] += sum(batch.tokens for batch in batches)
            return batches

        def evaluate(self, step: int) -> dict[str, float]:
            if step:
                marks.append((time.perf_counter(), dict(self.shares.seconds), self.collector.seconds["generation"]))
                self.shares.begin(self.collector.seconds)
                marks[-1] = (marks[-1][0], dict(self.shares.seconds), marks[-1][2])
            return {"score": 0.0}

    def scored(task: Any, problem: Any, text: str) -> Verdict:
        return Verdict(a_reward(text), {}, "")

    machine = Machine("cpu", "bench", 1, 8 << 30, {"fp32": 1e11, "bf16": 1e11}, False)
    with tempfile.TemporaryDirectory() as run:
        run_stage(recipe, Path(run) / "run", partial(Timed, recipe=recipe, check=scored), machine=machine)
    begin, end = marks[1], marks[-1]
    spent = {name: end[1][name] - begin[1][name] for name in end[1]}
    total = sum(spent.values())
    return {
        "rollout_tokens_per_second": tokens[0] / (end[2] - begin[2]),
        "step_tokens_per_second": tokens[0] / (end[0] - begin[0]),
        "tokens": float(tokens[0]),
        **{f"share_{name}": seconds / total for name, seconds in spent.items()},
    }


def trl_turn(args: argparse.Namespace, folder: Path, seed: int) -> dict[str, float]:
    """The same with TRL's GRPOTrainer; the first step is not counted."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from puna.tasks.catalogue import find
    from puna.tasks.heldout import training_problem

    task = find("planning.grid")
    rows = [{"prompt": training_problem(task, 2, number, seed).messages("")} for number in range(args.problems * 8)]
    spent = {"generation": 0.0, "tokens": 0.0}
    marks: list[float] = []

    class Timed(GRPOTrainer):
        def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = super()._generate_single_turn(*given, **named)
            if len(marks) > 1:
                spent["generation"] += time.perf_counter() - start
                spent["tokens"] += sum(len(ids) for ids in result[0])
            return result

        def training_step(self, *given: Any, **named: Any) -> Any:
            marks.append(time.perf_counter())
            return super().training_step(*given, **named)

    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            per_device_train_batch_size=args.problems * args.samples,
            num_generations=args.samples,
            max_completion_length=args.tokens,
            max_steps=args.steps + 1,
            learning_rate=1e-6,
            loss_type="dr_grpo",
            scale_rewards="none",
            beta=0.0,
            seed=seed,
            model_init_kwargs={"dtype": "float32"},
        )
        trainer = Timed(
            model=str(folder / "model"),
            reward_funcs=lambda completions, **_: [a_reward(one[0]["content"]) for one in completions],
            args=config,
            train_dataset=Dataset.from_list(rows),
        )
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
        end = time.perf_counter()
    return {
        "rollout_tokens_per_second": spent["tokens"] / spent["generation"],
        "step_tokens_per_second": spent["tokens"] / (end - marks[1]),
        "tokens": spent["tokens"],
    }


if __name__ == "__main__":
    main()
