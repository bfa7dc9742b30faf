"""The demo, shortened, on the real standard library; its model is opened with transformers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from puna.core.errors import PunaError
from puna.core.recipe import check, load
from puna.data.recipe import DataRecipe
from puna.demo import tuning
from puna.demo.progress import find
from puna.demo.run import CORPUS_RECIPE, OTHER_SECONDS
from puna.demo.tuning import STAGES
from puna.engine.generate import SamplingParams, load_engine
from puna.train.measure.machine import Machine
from puna.train.pretrain import train
from puna.train.recipe import Recipe
from puna.train.run.metrics import read_metrics

ROOT = Path(__file__).parents[2]
# Not measured: a run that is counted in steps needs no rates.
MACHINE = Machine("cpu", "test", 1, 8 << 30, {"fp32": 1e11, "bf16": 1e11}, False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, dict, str]:
    """Run a short demo in a separate process: (folder, its JSON, its output)."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "puna", "demo", "--minutes", "1", "--no-chat", "--json", "--bodies", "12"]
    command += ["--tune-minutes", "0.3"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads(done.stdout), done.stderr


def test_says_what_it_expects_and_shows_every_row(demo):
    _, result, said = demo
    assert "GFLOP/s" in said
    assert "steps of" in said
    assert "expected: " in said
    names = [row["name"] for row in result["bits_per_byte"]]
    assert names[0] == "this model"
    assert {"gzip -9", "xz -9"} <= set(names)
    assert any("dictionary" in name for name in names)
    assert [row["label"] for row in result["completions"]] == ["at initialisation", "half-way", "at the end"]
    assert all(0 <= row["parsed"] <= row["sampled"] for row in result["completions"])


def test_even_a_minute_beats_a_compressor(demo):
    _, result, _ = demo
    value = {row["name"]: row["value"] for row in result["bits_per_byte"]}
    assert value["this model"] < value["gzip -9"]


def test_steps_improve_on_the_counted_first_weights(demo, tmp_path):
    folder, _, _ = demo
    # The initial weights alone beat gzip. The demo counts steps, not minutes, so a busy machine gives the same result.
    changes = [f"corpus={folder / 'corpora/demo'}", "train.tokens=0", "train.steps=60", "train.seq_len=128"]
    changes += ["train.batch=8", "train.compile=off", "model.hidden_size=128", "model.intermediate_size=256"]
    changes += ["model.num_hidden_layers=2", "model.num_attention_heads=4", "model.num_key_value_heads=4"]
    changes += ["log.eval_every=0", "log.sample_every=0", "checkpoint.every=0"]
    recipe = load(Recipe, ROOT / "recipes/laptop.toml", changes).value
    first = []
    hooks = {0.0: lambda loop: first.append(loop.objective.bits_per_byte()["bits_per_byte"])}
    end = train(recipe, tmp_path / "run", hooks=hooks, machine=MACHINE)
    assert end["kind"] == "end"
    assert end["bits_per_byte"] < first[0] - 0.05


def test_training_learns_from_the_demo_s_corpus(demo, tmp_path):
    folder, _, _ = demo
    changes = ["train.tokens=0", "train.steps=60", "train.seq_len=64", "train.batch=16", "train.init=normal"]
    changes += ["train.compile=off", "model.preset=nano", "model.vocab_size=4096", "model.hidden_size=64"]
    changes += ["model.intermediate_size=176", "model.num_hidden_layers=2", "model.head_dim=16"]
    command = [sys.executable, "-m", "puna", "train", str(ROOT / "recipes/laptop.toml"), *changes]
    command += [f"corpus={folder / 'corpora/demo'}", "log.every=5", "log.eval_bytes=5000", "optimizer.lr=0.01"]
    command += ["optimizer.embedding_lr=0.2", "optimizer.head_lr=0.004", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [event["loss"] for event in read_metrics(tmp_path / "run") if event["kind"] == "train"]
    assert losses[-1] < losses[0] - 1.0


def test_writes_a_report_and_keeps_the_run(demo):
    folder, result, _ = demo
    page = (folder / result["report"]).read_text(encoding="utf-8")
    assert f"{result['bits_per_byte'][0]['value']:.3f}" in page
    assert "gzip -9" in page
    assert (folder / "runs/demo/recipe.toml").is_file()
    assert (folder / "runs/demo/metrics.jsonl").is_file()


def test_three_abilities_are_measured_at_four_stages(demo):
    folder, result, _ = demo
    assert [row["ability"] for row in result["abilities"]] == ["Code", "Reasoning", "Planning"]
    for row in result["abilities"]:
        assert [stage["stage"] for stage in row["stages"]] == list(STAGES.values())
        assert all(0 <= stage["greedy"] <= 1 for stage in row["stages"])
    page = (folder / result["report"]).read_text(encoding="utf-8")
    assert "What it learned to do" in page
    assert (folder / result["model"] / "config.json").is_file()
    assert (folder / "models/demo-base/config.json").is_file()


def test_the_model_directory_opens_in_transformers_with_the_same_logits_tokens_and_ids(demo):
    transformers = pytest.importorskip("transformers")
    folder, result, _ = demo
    directory = folder / result["model"]
    engine = load_engine(directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    text = "def read(self, size=-1):\n    "
    ids = engine.tokenizer.encode(text, bos=True)
    assert tokenizer(text)["input_ids"] == ids
    with torch.no_grad():
        difference = (engine.model(torch.tensor([ids])) - theirs(torch.tensor([ids])).logits).abs().max()
    assert difference <= 1e-4
    ours = engine.generate([ids], SamplingParams(max_tokens=24, temperature=0.0))[0].ids
    generated = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
    assert ours == generated


def test_a_second_demo_keeps_the_first_run(demo):
    folder, _, _ = demo
    settings = json.loads((folder / "runs/demo/demo.json").read_text(encoding="utf-8"))["settings"]
    progress, begun = find(folder / "runs", settings)
    assert progress.run_dir.name == "demo-2"
    assert not begun


def test_promises_a_time_and_says_what_it_took(demo):
    _, result, said = demo
    assert "in all, until" in said
    assert "of the promised 1 min 0 s" in said
    assert result["promised_seconds"] == pytest.approx(60 + 0.3 * 60 + OTHER_SECONDS)


def test_the_demo_s_corpus_is_the_one_of_its_recipe_file():
    assert load(DataRecipe, ROOT / "recipes/data/stdlib.toml").value == check(DataRecipe, CORPUS_RECIPE, "demo")


def test_no_time_and_no_room_are_sentences(tmp_path):
    command = [sys.executable, "-m", "puna", "demo", "--minutes", "0", "--no-chat"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2
    assert "minutes = 0" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_machine_that_is_faster_than_predicted_gets_more_steps(monkeypatch, tmp_path) -> None:
    asked = []

    def run(recipe, *_, **__):
        asked.append(recipe.rl["train"]["steps"])
        return {"kind": "interrupted", "detail": "enough"}

    monkeypatch.setattr(tuning, "_step_seconds", lambda *_: 0.6)
    monkeypatch.setattr("puna.tune.way.run.run", run)
    for pace in (1.0, 0.5):
        with pytest.raises(PunaError, match="Enough"):
            tuning.tune_demo(tmp_path, tmp_path, seconds=240, machine=None, pace=pace)
    assert asked[1] > 1.8 * asked[0]


def test_an_unfinished_demo_is_found_again_and_what_it_did_is_kept(tmp_path) -> None:
    settings = {"minutes": 1.0, "tune_minutes": 0.3, "bodies": 4, "seed": 0}
    first, begun = find(tmp_path, settings)
    assert not begun
    first.keep("recipe", {"steps": 3})
    again, begun = find(tmp_path, settings)
    assert begun
    assert (again.run_dir, again.done) == (first.run_dir, {"recipe": {"steps": 3}})
    assert again.seconds >= first.seconds - 1
    other, begun = find(tmp_path, {**settings, "minutes": 2.0})
    assert (other.run_dir.name, begun) == ("demo-2", False)
    again.keep("end", {})
    assert find(tmp_path, settings)[0].run_dir.name == "demo-2"


def test_a_demo_that_was_killed_and_interrupted_continues_where_it_was(demo, tmp_path) -> None:
    """Kill it before its first checkpoint, then interrupt reinforcement: the same command continues each time."""
    folder, _, _ = demo
    shutil.copytree(folder / "corpora", tmp_path / "corpora")
    command = [sys.executable, "-m", "puna", "demo", "--minutes", "1", "--no-chat", "--json", "--bodies", "4"]
    command += ["--tune-minutes", "0.3"]
    run = tmp_path / "runs/demo"

    def start(stop: signal.Signals | None = None, when: Path | None = None, holds: str = "") -> tuple[int, str, str]:
        """Run the demo, and send it a signal once a file contains a text.

        Returns (exit code, stdout, stderr).
        """
        with open(tmp_path / "out", "w+") as out, open(tmp_path / "err", "w+") as err:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=err)
            while stop is not None and when is not None and process.poll() is None:
                if when.exists() and holds in when.read_text(encoding="utf-8", errors="replace"):
                    process.send_signal(stop)
                    break
                time.sleep(0.05)
            code = process.wait(timeout=900)
        return code, (tmp_path / "out").read_text(encoding="utf-8"), (tmp_path / "err").read_text(encoding="utf-8")

    def state() -> dict:
        return json.loads((run / "demo.json").read_text(encoding="utf-8"))["done"]

    code, _, said = start(signal.SIGKILL, run / "metrics.jsonl", '"kind": "train"')
    assert code == -signal.SIGKILL, said[-3000:]
    recipe = state()["recipe"]
    code, _, said = start(signal.SIGINT, run / "tune/1-rl/metrics.jsonl", '"kind": "start"')
    assert code in (2, 130), said[-3000:]
    assert f"Continuing the demo in {run.relative_to(tmp_path)}" in said
    before = state()
    assert before["recipe"] == recipe
    code, printed, said = start()
    assert code == 0, said[-3000:]
    result = json.loads(printed)
    assert result["run"] == "runs/demo"
    assert result["bits_per_byte"][0]["value"] == before["training"]["bits_per_byte"]  # not trained again
    assert "step " not in said.partition("5  Next to")[0].partition("4  Training")[2]
    assert [stage["stage"] for stage in result["abilities"][0]["stages"]] == list(STAGES.values())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["demo"]
