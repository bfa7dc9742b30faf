"""Rejection sampling: sample K answers to each prompt and keep the best for tuning.

Answers are picked by the task's own check, which knows the right answer, or by a reward model. Every prompt's answers
and scores are written to `samples.jsonl` as soon as they exist, so a run that stops resumes after the last complete
line. The results are

    sft.jsonl          the picked answers as dialogues, each with its origin
    preferences.jsonl  where answers differ: the picked one and the worst, for DPO and reward models
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from puna.core.console import progress, say
from puna.core.errors import PunaError
from puna.core.files import disk_errors, lock_directory, write_text
from puna.core.recipe import dump
from puna.core.units import format_count
from puna.engine.generate import Engine, SamplingParams, load_engine
from puna.model.store import load_lineage
from puna.tasks.catalogue import find
from puna.tasks.contract import PASS, Problem
from puna.tasks.heldout import training_problem
from puna.tasks.tools import SCHEMAS, calls_in
from puna.text.chat import render
from puna.train.measure.machine import best_device
from puna.train.run.signals import StopRequest
from puna.tune.measure import answer
from puna.tune.preference.reward import Judge
from puna.tune.rejection.recipe import RejectionRecipe
from puna.tune.rows.dialogues import Message, read_dialogues

SAMPLES, PICKED, PREFERENCES = "samples.jsonl", "sft.jsonl", "preferences.jsonl"
_TOGETHER = 16  # prompts whose answers are written at once


class SampledPrompt(NamedTuple):
    """Messages to answer, and the problem that they state, if any."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    problem: Problem | None
    where: str


class Sample(NamedTuple):
    """One answer with its score. ended: whether with an end token."""

    messages: list[Message]
    score: float
    ended: bool
    tokens: int


def run(
    recipe: RejectionRecipe,
    run_dir: Path,
    *,
    resume: bool = False,
    observers: Sequence[Callable[[dict[str, Any]], None]] = (),
) -> dict[str, Any]:
    """Sample, score and pick; returns the last event, "end" or "interrupted".

    Raises PunaError for prompts, models or a verifier that cannot be used, before the first answer.
    """
    begin = time.perf_counter()
    with lock_directory(run_dir):
        prompts = list(prompts_of(recipe))
        judge = Judge(Path(recipe.reward_model), best_device()) if recipe.pick == "reward" else None
        engine = load_engine(Path(recipe.model), device=best_device(), fast=True)
        write_text(run_dir / "recipe.toml", dump(recipe))
        most = format_count(len(prompts) * recipe.samples * recipe.max_tokens)
        say(f"{recipe.samples} answers to each of {len(prompts):,} prompts, at most {most} tokens each.")
        path = run_dir / SAMPLES
        if path.exists() and not resume:
            raise PunaError(f"{path} already exists.", f"Resume with puna tune rejection --resume {run_dir}.")
        done = _complete_lines(path)
        stop = StopRequest(first=True)
        with stop.listening(), progress(transient=True) as bar, disk_errors(path), open(path, "ab") as file:
            shown = bar.add_task(f"{recipe.samples} answers to each prompt", total=len(prompts), completed=done)
            while done < len(prompts) and not stop.signal:
                chunk = prompts[done : done + _TOGETHER]
                for number, samples in enumerate(sample(engine, chunk, recipe, judge, first=done), done):
                    file.write(_line({"prompt": number, "samples": [entry._asdict() for entry in samples]}))
                file.flush()
                os.fsync(file.fileno())
                done += len(chunk)
                bar.update(shown, completed=done)
        if done < len(prompts):
            detail = f"stopped at prompt {done} of {len(prompts)}; resume with: puna tune rejection --resume {run_dir}"
            event = {"kind": "event", "step": done, "event": "interrupted", "detail": detail, "signal": stop.name}
        else:
            counts = write_picked(recipe, run_dir, prompts)
            event = {"kind": "end", "step": done, "seconds": time.perf_counter() - begin, **counts}
        _print_end(event, observers)
        return event


def prompts_of(recipe: RejectionRecipe) -> Iterator[SampledPrompt]:
    """Yield every prompt of a recipe, in order.

    Raises PunaError for unknown tasks, levels or files.
    """
    for entry in recipe.tasks:
        task = find(entry.name)
        for number in range(entry.count):
            problem = training_problem(task, entry.levels[number % len(entry.levels)], number, recipe.seed)
            messages = problem.messages(task.instruction if recipe.instruct else "")
            tools = [SCHEMAS[name] for name in task.tools]
            yield SampledPrompt([*messages], tools, problem, f"{task.name}, level {problem.level}, seed {problem.seed}")
    for name in recipe.files:
        for dialogue in read_dialogues(Path(name)):
            last = max(i for i, message in enumerate(dialogue.messages) if message["role"] == "assistant")
            if last:
                yield SampledPrompt(dialogue.messages[:last], dialogue.tools, None, dialogue.where)


def sample(
    engine: Engine, prompts: Sequence[SampledPrompt], recipe: RejectionRecipe, judge: Judge | None, *, first: int = 0
) -> list[list[Sample]]:
    """Sample and score K answers to each prompt.

    first: number of the first prompt, from which the seeds follow.
    """
    seed, k = recipe.seed * 1_000_003 + first * recipe.samples, recipe.samples
    problems = [prompt.problem for prompt in prompts if prompt.problem is not None]
    if len(problems) == len(prompts):
        answers = answer(
            engine,
            problems,
            samples=k,
            temperature=recipe.temperature,
            max_tokens=recipe.max_tokens,
            instruct=recipe.instruct,
            seed=seed,
        )
        flat = [Sample(_plain(a.messages), a.verdict.score, a.ended, a.tokens) for a in answers]
        groups = [flat[start : start + k] for start in range(0, len(flat), k)]
    else:
        groups = _continued(engine, prompts, recipe, seed)
    if judge is None:
        return groups
    return [
        [
            entry._replace(score=score)
            for entry, score in zip(
                group, judge.scores(prompt.messages, [entry.messages for entry in group], prompt.tools), strict=True
            )
        ]
        for prompt, group in zip(prompts, groups, strict=True)
    ]


def _continued(
    engine: Engine, prompts: Sequence[SampledPrompt], recipe: RejectionRecipe, seed: int
) -> list[list[Sample]]:
    """Answers to prompts that do not state a problem, scored by the judge."""
    assert engine.tokenizer is not None
    ids = [render(p.messages, engine.tokenizer, tools=p.tools or None, add_generation_prompt=True).ids for p in prompts]
    k, longest = recipe.samples, engine.model.config.max_position_embeddings
    fitting = [number for number, prompt in enumerate(ids) if len(prompt) < longest]
    params = [SamplingParams(recipe.max_tokens, recipe.temperature, seed=seed + number * k, n=k) for number in fitting]
    done = iter(engine.generate([ids[number] for number in fitting], params))
    groups: list[list[Sample]] = [[] for _ in prompts]
    for number in fitting:
        for entry in (next(done) for _ in range(k)):
            said = _plain([{"role": "assistant", "content": entry.text}])
            groups[number].append(Sample(said, 0.0, entry.finish_reason == "stop", len(entry.ids)))
    return groups


def pick(samples: Sequence[Sample], *, least: float, keep: int) -> list[Sample]:
    """The best non-empty answers that ended with an end token and score at least `least`.

    Of equals the shortest.
    """
    good = [entry for entry in samples if entry.ended and entry.score >= least and _says(entry)]
    chosen: dict[str, Sample] = {}
    for entry in sorted(good, key=lambda entry: (-entry.score, entry.tokens)):
        chosen.setdefault(json.dumps(entry.messages), entry)
    return list(chosen.values())[:keep]


def write_picked(recipe: RejectionRecipe, run_dir: Path, prompts: Sequence[SampledPrompt]) -> dict[str, Any]:
    """Write the picked answers and the pairs; returns counts.

    Raises PunaError when no answer can be kept.
    """
    model = {"path": recipe.model, "stage": load_lineage(Path(recipe.model)).get("stage")}
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    best = 0.0
    right = total = 0
    least = PASS if recipe.pick == "verifier" else float("-inf")
    with open(run_dir / SAMPLES, encoding="utf-8") as file:
        for prompt, line in zip(prompts, file, strict=True):
            samples = [Sample(**entry) for entry in json.loads(line)["samples"]]
            total += len(samples)
            right += sum(entry.score >= PASS for entry in samples)
            picked = pick(samples, least=least, keep=recipe.keep)
            source = {"prompt": prompt.where, "model": model, "of": len(samples), "pick": recipe.pick}
            tools = {"tools": prompt.tools} if prompt.tools else {}
            for entry in picked:
                best += entry.score
                said = [*prompt.messages, *entry.messages]
                rows.append({"messages": said, **tools, "source": {**source, "score": entry.score}})
            worst = min((s for s in samples if _says(s)), key=lambda s: (s.score, -s.tokens), default=None)
            if picked and worst and worst.score < picked[0].score and worst.messages != picked[0].messages:
                sides = {"chosen": picked[0].messages, "rejected": worst.messages}
                scores = [picked[0].score, worst.score]
                pairs.append({"prompt": prompt.messages, **sides, **tools, "source": {**source, "scores": scores}})
    if not rows:
        raise PunaError(
            f"None of {total:,} answers to {len(prompts):,} prompts can be kept.",
            "Choose easier levels or more samples, or tune the model on demonstrations first.",
        )
    write_text(run_dir / PICKED, "".join(_line(row).decode() for row in rows))
    write_text(run_dir / PREFERENCES, "".join(_line(pair).decode() for pair in pairs))
    counts: dict[str, Any] = {"prompts": len(prompts), "answers": total, "kept": len(rows), "pairs": len(pairs)}
    if recipe.pick == "verifier":
        counts["right"] = right / max(1, total)
    return {**counts, "score": best / len(rows), "files": [str(run_dir / PICKED), str(run_dir / PREFERENCES)]}


def _plain(messages: Sequence[Message]) -> list[Message]:
    """Messages without this tokenizer's ids, and with structured calls.

    Any model can be tuned on them.
    """
    plain = []
    for message in messages:
        message = {"role": message["role"], "content": message["content"]}
        calls = calls_in(message["content"]) if message["role"] == "assistant" else []
        if calls:
            good = [call for call in calls if not isinstance(call, str)]
            # A call that is not JSON cannot be learned from: its content is removed, so the answer is not picked.
            message["content"] = message["content"].partition("<tool_call>")[0] if len(good) == len(calls) else ""
            if len(good) == len(calls):
                message["tool_calls"] = [{"name": name, "arguments": given} for name, given in good]
        plain.append(message)
    return plain


def _says(entry: Sample) -> bool:
    """Whether every message of the assistant has content, which the renderer requires."""
    said = [message for message in entry.messages if message["role"] == "assistant"]
    return bool(said) and all(message["content"].strip() or message.get("tool_calls") for message in said)


def _complete_lines(path: Path) -> int:
    """Count the lines of a file; a partial last line is cut off."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return content.count(b"\n")


def _line(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=True) + "\n").encode()


def _print_end(event: dict[str, Any], observers: Sequence[Callable[[dict[str, Any]], None]]) -> None:
    """Print how the run ended; the observers of training do not show this."""
    from puna.core.console import console

    if event["kind"] == "end":
        right = f", {event['right']:.1%} of them right" if "right" in event else ""
        console().print(
            f"Done: {event['answers']:,} answers to {event['prompts']:,} prompts{right}; {event['kept']:,} kept, "
            f"{event['pairs']:,} pairs, in {event['seconds']:.0f} s.",
            markup=False,
        )
    else:
        console().print(f"{event['event']}: {event['detail']}", markup=False)
