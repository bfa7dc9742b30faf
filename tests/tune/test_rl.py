"""Reinforcement end to end on a test task: it learns, resumes to the bit, and stops when it should."""

import json
import math
import os
import random
import signal
import statistics
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from puna.core.errors import PunaError
from puna.core.recipe import check
from puna.tasks.contract import Verdict
from puna.tasks.heldout import is_heldout
from puna.train.run.launch import launch
from puna.train.run.metrics import read_metrics
from puna.tune.rl import objective as rl
from puna.tune.rl.alarm import Alarm
from puna.tune.rl.losses import METHODS
from puna.tune.rl.objective import RL
from puna.tune.rl.recipe import AlarmConfig, RLRecipe
from puna.tune.stage import run_stage

STEPS = 6


def likes_e(task, problem, text):
    """A reward that a random model earns sometimes: a tenth of the answer is the letter e."""
    share = sum(letter in "eE" for letter in text) / max(1, len(text))
    return Verdict(float(share > 0.1), {"share": share}, "")


@pytest.fixture
def values(model_dir):
    return {
        "stage": "rl",
        "model": str(model_dir),
        "tasks": [{"name": "planning.grid"}],
        "train": {"steps": STEPS, "batch": 4, "seq_len": 128, "precision": "fp32"},
        "rollout": {"samples": 4, "max_tokens": 8, "updates": 2, "max_batch": 32},
        "optimizer": {"lr": 0.003},
        "log": {"every": 1, "eval_every": 0},
        "checkpoint": {"every": 3, "keep": 9},
        "measure": {"problems": 4, "samples": 2},
    }


def recipe_of(values, **sections):
    tree = json.loads(json.dumps(values))
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return check(RLRecipe, tree, "test")


def run(recipe, folder, machine, *, scorer=likes_e, objective=RL, **options):
    return run_stage(recipe, folder, partial(objective, recipe=recipe, check=scorer), machine=machine, **options)


def lines(folder, kind="train"):
    return [event for event in read_metrics(folder) if event["kind"] == kind]


def numbers(folder):
    """Everything that must be the same in two runs: all except times."""
    return [
        (e["step"], e["loss"], {k: v for k, v in e["metrics"].items() if not k.startswith("time_")})
        for e in lines(folder)
    ]


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_the_reward_rises_and_every_step_is_accounted_for(values, tmp_path, machine):
    recipe = recipe_of(values, train={"steps": 20}, optimizer={"lr": 0.01})
    event = run(recipe, tmp_path / "run", machine)
    assert event["kind"] == "end"
    train = [line["metrics"] for line in lines(tmp_path / "run")]
    rewards = [m["reward"] for m in train if "reward" in m]
    assert len(rewards) == 10, "two updates share one set of answers"
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.3
    for m in train[2::2]:
        assert m["logprob_gap_max"] < 1e-4, "engine and trainer have the same weights"
        shares = [m[f"time_{name}"] for name in ("generation", "reward", "learning", "rest")]
        assert sum(shares) == pytest.approx(1)
    assert all("logprob_gap" not in m for m in train[1::2]), "later updates learn from older answers"
    held = lines(tmp_path / "run", "eval")
    assert held[-1]["metrics"]["planning.grid.1.pass@1"] > held[0]["metrics"]["planning.grid.1.pass@1"]


def test_an_interrupted_stage_reproduces_every_step_to_the_bit(values, tmp_path, machine):
    """Interrupted between two updates on one set of answers: the rest comes from the checkpoint."""
    recipe = recipe_of(values, policy={"method": "grpo", "kl": 0.05})
    run(recipe, tmp_path / "straight", machine)

    class Interrupted(RL):
        def batch(self, data_step):
            if data_step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(data_step)

    event = run(recipe, tmp_path / "run", machine, objective=Interrupted)
    assert event["event"] == "interrupted"
    assert event["step"] == 3
    assert run(recipe, tmp_path / "run", machine, resume=True)["kind"] == "end"
    assert numbers(tmp_path / "run") == numbers(tmp_path / "straight")
    one, other = weights(tmp_path / "run"), weights(tmp_path / "straight")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_adapters_alone_learn_and_the_engine_writes_with_them(values, tmp_path, machine):
    # The last weights, not the best ones.
    train = {"steps": 4, "final": "last"}
    recipe = recipe_of(values, lora={"rank": 4}, optimizer={"lr": 0.05}, train=train, rollout={"updates": 1})
    run(recipe, tmp_path / "run", machine)
    measured = [line["metrics"] for line in lines(tmp_path / "run")]
    assert all(m["logprob_gap_max"] < 1e-4 for m in measured), "the engine has the merged weights"
    before = load_file(os.path.join(values["model"], "model.safetensors"))
    after = weights(tmp_path / "run")
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


@pytest.mark.parametrize("layout", [{"dp_shard": 1, "dp_replicate": 2}, {"dp_shard": 2}, {"tp": 2}])
def test_two_processes_ask_and_learn_what_one_does(values, tmp_path, machine, layout):
    """Copies of the network, its halves or split matrices: the same problems, answers and losses, up to rounding."""
    tree = {**values, "train": {**values["train"], "steps": 2}, "policy": {"method": "dapo"}}
    alone = recipe_of(tree)
    run(alone, tmp_path / "one", machine)
    tree["layout"] = layout
    worker = Path(__file__).with_name("rl_worker.py")
    assert launch([sys.executable, str(worker), json.dumps(tree), str(tmp_path / "two")], 2) == 0
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        for name in ("reward", "problems", "length", "entropy", "tokens"):
            if name in one["metrics"]:
                assert two["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-4)
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-4) for name in ours)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_a_set(values, tmp_path, machine, method):
    recipe = recipe_of(values, policy={"method": method}, train={"steps": 2}, rollout={"updates": 1, "epochs": 2})
    run(recipe, tmp_path / "run", machine)
    first, second = (line for line in lines(tmp_path / "run"))
    assert first["grad_norm"] > 0
    assert math.isfinite(second["loss"])
    assert second["metrics"]["dropped"] == 0
    assert second["metrics"]["kl_old"] > first["metrics"]["kl_old"], "the second pass is off-policy"


def test_a_start_without_signal_is_refused(values, tmp_path, machine):
    sentence = r"planning\.grid 0\.0%\): below 2% there is nothing to reinforce.*puna tune sft"
    with pytest.raises(PunaError, match=sentence):
        run(recipe_of(values), tmp_path / "run", machine, scorer=lambda *_: Verdict(0.0, {}, ""))


def test_an_end_without_signal_is_the_end(values, tmp_path, machine):
    event = run(recipe_of(values), tmp_path / "run", machine, scorer=lambda *_: Verdict(1.0, {}, ""))
    assert event["kind"] == "end"
    assert "moving reward is 1.00" in event["finished"]
    assert event["step"] == 0


def test_collapse_goes_back_to_the_best_weights_with_lower_rates(values, tmp_path, machine):
    recipe = recipe_of(values, train={"steps": 12}, optimizer={"lr": 3.0}, alarm={"lr_scale": 0.001})
    event = run(recipe, tmp_path / "run", machine)
    events = lines(tmp_path / "run", "event")
    back = [e for e in events if e["event"] == "rollback"]
    assert back, "a rate of 3 destroys any model"
    assert back[0]["step"] == 0
    assert "Back at step 0" in back[0]["detail"]
    after = [line for line in lines(tmp_path / "run") if line["lr_factor"] < 0.002]
    assert after, "the stage continued with lower rates"
    assert event["best"]["score"] >= lines(tmp_path / "run", "eval")[0]["metrics"]["score"]


def test_a_broken_check_costs_one_reward_and_is_told(values, tmp_path, machine):
    calls = iter(range(10**6))

    def sometimes(task, problem, text):
        if next(calls) % 5 == 0:
            raise RuntimeError("no verdict")
        return likes_e(task, problem, text)

    run(recipe_of(values, train={"steps": 2}, measure={"problems": 1}), tmp_path / "run", machine, scorer=sometimes)
    told = [e for e in lines(tmp_path / "run", "event") if e["event"] == "warning"]
    assert any("RuntimeError: no verdict" in e["detail"] for e in told)
    assert lines(tmp_path / "run")[0]["metrics"]["broken"] > 0


def test_no_held_out_problem_is_learned_from(values, tmp_path, machine, monkeypatch):
    seen = []

    def note(task, problem, text):
        seen.append(problem)
        return likes_e(task, problem, text)

    run(recipe_of(values, log={"eval_every": 0}), tmp_path / "run", machine, scorer=note)
    asked = [problem for problem in seen if not is_heldout(problem)]
    held = [problem for problem in seen if is_heldout(problem)]
    assert len(held) <= 3 * 4 * 2 * 2  # of two evaluations alone
    assert len({p.prompt for p in asked} & {p.prompt for p in held}) == 0
    assert len(asked) > 20


@pytest.mark.parametrize("levels", [[2], [3, 2]])
def test_only_levels_that_are_named_are_asked(values, tmp_path, machine, levels):
    """However rarely their problems are solved: they are not replaced by easier ones."""
    seen = set()

    def rarely(task, problem, text):
        seen.add(problem.level)
        return Verdict(float(hash(text) % 20 == 0), {}, "")

    recipe = recipe_of(
        values, tasks=[{"name": "planning.grid", "levels": levels}], curriculum={"window": 8, "min_pass": 0.0}
    )
    run(recipe, tmp_path / "run", machine, scorer=rarely)
    assert seen == set(levels)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"tasks": [{"name": "planning.gird"}]}, "planning.grid"),
        ({"tasks": [{"name": "planning.grid", "levels": [99]}]}, "no level 99"),
        ({"tasks": [{"name": "planning.grid"}, {"name": "planning.grid"}]}, "is listed twice"),
        ({"rollout": {"samples": 1}}, "Set 2 or more"),
        ({"rollout": {"max_tokens": 128}}, "no room for a problem"),
        ({"curriculum": {"low": 0.9}}, "low must be below"),
        ({"policy": {"method": "ppo"}}, "policy.method"),
    ],
)
def test_a_recipe_that_cannot_be_run_says_why(values, sections, said):
    with pytest.raises(PunaError, match=said):
        recipe_of(values, **sections)


def test_verdicts_of_the_tasks_are_the_default(values, tmp_path, machine):
    with pytest.raises(PunaError, match="nothing to reinforce"):  # a random model finds no path
        rl.run(recipe_of(values), tmp_path / "run", machine=machine)


HEALTHY = {"reward": 0.5, "reward_error": 0.03, "ended": 0.9, "length": 20.0}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"ended": 0.1}, "end with an end token; it was 90%"),
        ({"length": 200.0}, "200 tokens long; it was 20"),
    ],
)
def test_alarms_about_answers(found, said):
    alarm = Alarm(AlarmConfig())
    assert alarm.answers(HEALTHY) == ""
    assert said in alarm.answers({**HEALTHY, **found})
    again = Alarm(AlarmConfig())
    again.restore(json.loads(json.dumps(alarm.state())))
    assert again.state() == alarm.state()
    assert again.answers(HEALTHY) == ""


def test_a_reward_of_few_problems_may_move_by_chance():
    draw = random.Random(0)
    for _ in range(20):  # runs of 100 sets of 16 problems with rewards 0 or 1, 0.3 on average
        alarm = Alarm(AlarmConfig())
        for _ in range(100):
            earned = [float(draw.random() < 0.3) for _ in range(16)]
            found = {"reward": statistics.mean(earned), "reward_error": statistics.stdev(earned) / 4}
            assert alarm.answers({**HEALTHY, **found}) == ""
        told = [alarm.answers({**HEALTHY, "reward": 0.0, "reward_error": 0.0}) for _ in range(8)]
        assert any(told), "a lasting fall"


def test_alarms_about_updates_and_a_falling_reward():
    alarm = Alarm(AlarmConfig())
    assert alarm.update(entropy=1.0, kl=0.01) == ""
    assert alarm.update(entropy=0.001, kl=0.01) == "", "one set whose problems it is sure of"
    assert any("entropy of a token fell to 0.0" in alarm.update(entropy=0.001, kl=0.01) for _ in range(12))
    assert "rose to 9" in alarm.update(entropy=9.0, kl=0.01)
    assert "2 nats a token away" in alarm.update(entropy=1.0, kl=2.0)
    assert "fell to nan" in alarm.update(entropy=math.nan, kl=0.0)
    told = [alarm.answers({**HEALTHY, "reward": reward}) for reward in (0.6, 0.6, 0.0, 0.0, 0.6)]
    assert [bool(reason) for reason in told] == [False, False, False, True, False]
    assert "moving reward" in told[3]
    assert alarm.answers({**HEALTHY, "reward": 0.1}, positions=[1.5]) == "", "harder problems earn less"
