"""New and resumed runs from the command line: rejected input and messages, all without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from puna.cli.main import main
from puna.core.errors import PunaError
from puna.core.files import lock_directory
from puna.core.recipe import dump, load
from puna.train.recipe import Recipe
from puna.train.run.directory import new_run, resumed_run

SMALL = 'name = "small"\ncorpus = "nowhere"\n[model]\npreset = "nano"\n[train]\nsteps = 30\nseq_len = 64\nbatch = 8\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def run_dir(tmp_path: Path, recipe: Path) -> Path:
    """A run that has reached step 20."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-20").mkdir(parents=True)
    (folder / "recipe.toml").write_text(dump(load(Recipe, recipe).value))
    return folder


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The error message of a rejected command, which exits with 2 and prints nothing on stdout."""
    assert main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_the_default_place_is_named_after_the_recipe(recipe: Path) -> None:
    assert new_run(recipe, [], None)[1] == Path("runs/small")
    assert new_run(recipe, ["name=other"], None)[1] == Path("runs/other")


def test_tokens_on_the_command_line_win_over_steps_in_the_file(recipe: Path, run_dir: Path) -> None:
    assert new_run(recipe, ["train.tokens=51200"], None)[0].total_steps == 100
    assert resumed_run(run_dir, ["train.tokens=51200"]).total_steps == 100


def test_a_directory_with_a_run_names_both_ways_out(
    recipe: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, "train", recipe, "--run-dir", run_dir)
    assert "already contains a run" in sentence
    assert f"puna train --resume {run_dir}" in sentence
    assert "--run-dir DIR" in sentence


def test_a_directory_in_use_is_refused(recipe: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock_directory(run_dir):
        assert "in use by a living process" in refused(capsys, "train", "--resume", run_dir)
        assert "in use by a living process" in refused(capsys, "train", recipe, "--run-dir", run_dir)
    resumed_run(run_dir, [])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.hidden_size=128", "model.hidden_size = 128"),
        ("train.batch=16", "train.batch = 16: the run was trained with 8"),
        ("train.seq_len=32", "train.seq_len = 32"),
        ("train.seed=1", "train.seed = 1"),
        ("train.document_mask=true", "train.document_mask = True"),
        ("optimizer.kind=adamw", "optimizer.kind = adamw"),
        ("train.precision=bf16", "train.precision = bf16"),
        ("start_from=models/x", "start_from = models/x"),
        ("train.steps=10", "already has a checkpoint of step 20"),
        ("train.stepps=40", "Did you mean 'steps'?"),
        ("model", "is not an override"),
    ],
)
def test_what_a_checkpoint_stands_on_cannot_change(
    run_dir: Path, capsys: pytest.CaptureFixture[str], override: str, words: str
) -> None:
    assert words in refused(capsys, "train", "--resume", run_dir, override)


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=60",
        "checkpoint.every=5",
        "log.every=1",
        "train.micro_batch=4",
        "layout.dp_shard=2",
        "guard.sigmas=9",
    ],
)
def test_the_rest_may_change(run_dir: Path, override: str) -> None:
    key, _, value = override.partition("=")
    section, name = key.split(".")
    assert getattr(getattr(resumed_run(run_dir, [override]), section), name) == float(value)


def test_words_of_the_command_line(
    recipe: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "No recipe was given" in refused(capsys, "train")
    assert "small.toml does not exist" in refused(capsys, "train", tmp_path / "missing" / "small.toml")
    assert "has no run to resume" in refused(capsys, "train", "--resume", tmp_path / "empty")
    assert "--resume alone" in refused(capsys, "train", "--resume", run_dir, "--run-dir", tmp_path)
    assert "not a number of processes" in refused(capsys, "train", recipe, "--nproc", 0)
    # An override after an option is also an override.
    assert "unknown key" in refused(capsys, "train", recipe, "--run-dir", tmp_path / "new", "train.stepps=1")
    assert not (tmp_path / "new").exists()


def test_only_one_of_several_processes_looks_after_the_directory(recipe: Path, run_dir: Path) -> None:
    with lock_directory(run_dir):
        assert resumed_run(run_dir, [], first=False).total_steps == 30
        assert new_run(recipe, [], run_dir, first=False)[1] == run_dir
        with pytest.raises(PunaError):
            resumed_run(run_dir, [])


def test_recipe_show_tells_where_each_value_came_from(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", str(recipe), "train.steps=50", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    fields = {field["key"]: field for field in shown["fields"]}
    assert (fields["train.steps"]["value"], fields["train.steps"]["origin"]) == ("50", "command line")
    assert fields["train.batch"]["origin"] == str(recipe)
    assert fields["model.hidden_size"]["origin"] == "preset nano"
    assert fields["train.grad_clip"]["origin"] == "default"
    assert all(field["meaning"] for field in fields.values())
    assert shown["tokens"] == 50 * 8 * 64
    # 6 per matmul parameter, and 12 (or 6) x layers x width x seq_len for attention.
    square = 12 * 2 * 64 * 64
    assert shown["flops_per_token"]["full"] - shown["flops_per_token"]["causal"] == square / 2
    assert main(["recipe", "show", str(recipe)]) == 0
    assert f"{shown['parameters']:,}" in capsys.readouterr().out


def test_recipe_show_reads_data_recipes_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.toml"
    path.write_text('[[sources]]\nname = "a"\npath = "x"\n[tokenizer]\nvocab_size = 512\n')
    assert main(["recipe", "show", str(path), "--json"]) == 0
    fields = {field["key"]: field["value"] for field in json.loads(capsys.readouterr().out)["fields"]}
    assert fields["tokenizer.vocab_size"] == "512"


def test_recipe_show_and_refusals_need_no_torch(recipe: Path, run_dir: Path) -> None:
    program = (
        "import sys; from puna.cli.main import main\n"
        f"main(['recipe', 'show', {str(recipe)!r}]); main(['train', {str(recipe)!r}, '--run-dir', {str(run_dir)!r}])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0
