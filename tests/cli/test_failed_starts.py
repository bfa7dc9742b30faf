"""Commands that cannot start say so before torch is loaded, and leave nothing behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.cli.main import main
from puna.train.run.metrics import read_metrics

COMMANDS = [
    "sample nosuch -p x",
    "chat nosuch",
    "serve nosuch",
    "serve a=model b=nosuch",
    "serve model x=model model",
    "eval nosuch --suite code",
    "eval model --suite nosuch",
    "eval model --suite code --against nosuch",
    "eval model --suite code --corpus nosuch -o out/results",
    "eval nosuch --lm-eval arc_easy",
    "eval bpb nosuch nosuch",
    "eval bpb model nosuch",
    "export nosuch --to gguf -o out/x.gguf",
    "export model --to ollama -o model",
    "eval model --suite code --data nosuch",
    "import nosuch -o models/x",
    "import model -o model",
    "model inspect nosuch",
    "plan nosuch",
    "tokenizer eval nosuch --on nosuch",
    "tokenizer train nosuch --vocab-size 512 -o out/tokenizer",
    "report nosuch",
    "recipe show nosuch.toml",
    "data build nosuch.toml -o corpora/x",
    "data build data.toml -o corpora/x",
    "data inspect nosuch",
    "train nosuch.toml",
    "train train.toml",
    "train train.toml corpus=nosuch",
    "train train.toml corpus=nosuch.toml",
    "train train.toml start_from=nosuch",
    "train --resume nosuch",
    "verify-resume train.toml corpus=nosuch",
    "tune sft nosuch.toml",
    "tune sft sft.toml",
    "tune sft sft.toml nosuch",
    "tune sft sft.toml model",
    "tune dpo dpo.toml model",
    "tune rejection rejection.toml model reward_model=nosuch",
    "tune rejection rejection.toml model",
    "tune distill distill.toml model",
    "tune average average.toml",
    "tune extend extend.toml model",
    "tune all all.toml model",
    "tune sft --resume nosuch",
]
FILES = {
    "data.toml": '[[sources]]\nname = "x"\npath = "nosuch/*.txt"\nlicence = "x"\n[tokenizer]\nvocab_size = 512\n',
    "train.toml": 'name = "small"\n[model]\npreset = "nano"\n[train]\nsteps = 3\nseq_len = 16\n',
    "sft.toml": 'stage = "sft"\n[data]\nfiles = [{ path = "nosuch.jsonl" }]\n',
    "dpo.toml": 'stage = "dpo"\n[data]\nfiles = ["nosuch.jsonl"]\n',
    "rejection.toml": 'stage = "rejection"\npick = "reward"\nreward_model = "model"\nfiles = ["nosuch.jsonl"]\n',
    "distill.toml": 'stage = "distill"\nteacher = "nosuch"\ntasks = [{ name = "arithmetic.addition" }]\n',
    "average.toml": 'stage = "average"\nmodels = [{ path = "model" }, { path = "nosuch" }]\n',
    "extend.toml": 'stage = "extend"\ncorpus = "nosuch"\n',
    "all.toml": 'stage = "all"\n[measure]\ntasks = [{ name = "arithmetic.addition" }]\n'
    '[sft.data]\nfiles = [{ path = "nosuch.jsonl" }]\n',
}
RUN_ALL = """
import contextlib, io, json, os, sys
from puna.cli.main import main
from puna.train.run.metrics import read_metrics
found = []
for command in json.load(sys.stdin):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = main(command.split())
    found.append([command, code, err.getvalue(), "torch" in sys.modules, sorted(os.listdir())])
json.dump(found, sys.stdout)
"""


@pytest.fixture
def place(tmp_path: Path, chat_model: Path) -> Path:
    """A folder with a model and recipes that name what is not there."""
    (tmp_path / "model").symlink_to(chat_model)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_paths_are_checked_before_torch_is_loaded_and_nothing_is_left(place: Path) -> None:
    there = sorted(os.listdir(place))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps(COMMANDS),
        capture_output=True,
        text=True,
        cwd=place,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for command, code, err, torch, left in json.loads(done.stdout):
        assert code == 2, (command, err)
        assert err.count("\n") == 1, (command, err)
        assert "model" in err or "nosuch" in err or "corpus" in err, (command, err)
        assert not torch, f"{command}: torch was loaded"
        assert left == there, f"{command} left {set(left) - set(there)}"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        # All of these are found out only when torch, the model or the data have been read.
        ("tune sft sft.toml model", "not JSON"),
        ("tune sft sft.toml model train.seq_len=4096", "longer than the context"),
        ("tune sft good.toml model log.wandb=x", "wandb"),
        ("sample model -p x --device nosuch", "--device nosuch"),
    ],
)
def test_a_start_that_fails_late_leaves_no_folder(
    place: Path, words: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, "wandb", None)
    (place / "nosuch.jsonl").write_text("{broken\n")
    (place / "rows.jsonl").write_text('{"prompt": "harbour", "response": "ships"}\n' * 4)
    (place / "good.toml").write_text(
        'stage = "sft"\n[train]\nsteps = 1\nbatch = 1\nseq_len = 32\n[data]\nfiles = [{ path = "rows.jsonl" }]\n'
    )
    there = sorted(os.listdir(place))
    assert main(words.split()) == 2
    assert sentence in capsys.readouterr().err
    assert sorted(os.listdir(place)) == there


def test_resuming_a_finished_run_says_so_without_torch(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished: Callable[[str], Path]
) -> None:
    run = finished("sft")
    words = ["tune", "sft", "--resume", str(run)]
    assert main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    assert "is finished, at step 1" in " ".join(shown.err.split())
    assert json.loads(shown.out)["kind"] == "end"
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps([" ".join(words), " ".join([*words, "train.steps=1"]), " ".join([*words, "log.every=5"])]),
        capture_output=True,
        text=True,
        check=True,
    )
    for _, code, err, torch, _ in json.loads(done.stdout):
        assert (code, torch) == (0, False)
        assert "is finished" in err
        assert "train.steps=N" in err
    # More steps are a longer run.
    assert main([*words, "train.steps=2"]) == 0
    starts = [event for event in read_metrics(run) if event["kind"] == "start"]
    assert [event["resumed_from"] for event in starts] == [None, 1]


@pytest.fixture
def finished(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Path]:
    """A function that makes a finished run of a stage of one step."""

    def made(stage: str) -> Path:
        monkeypatch.chdir(place)
        (place / "rows.jsonl").write_text('{"prompt": "harbour", "response": "ships"}\n' * 4)
        (place / "good.toml").write_text(
            f'stage = "{stage}"\nmodel = "model"\nname = "run"\n[train]\nsteps = 1\nbatch = 1\nseq_len = 32\n'
            '[data]\nfiles = [{ path = "rows.jsonl" }]\n'
        )
        assert main(["tune", stage, "good.toml"]) == 0
        capsys.readouterr()
        return place / "runs" / "run"

    return made
