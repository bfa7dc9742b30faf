"""`puna model inspect`, `import`, `sample` and `chat` from the command line."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from puna.cli.main import main
from puna.cli.serve_command import _load, _named
from puna.engine.generate import Engine
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import save_model
from puna.serve.settings import Settings
from puna.text.tokenizer import train_tokenizer


@pytest.fixture
def make(tmp_path: Path, random_model: Callable[..., LlamaForCausalLM]) -> Callable[[str], Path]:
    """A function that writes a tiny model of a stage."""

    def written(stage: str) -> Path:
        model = random_model(ModelConfig(preset="nano"))
        tokenizer = train_tokenizer(["def add(a, b): return a + b\n"] * 30, 320)
        path = tmp_path / stage
        save_model(path, model.config, model.state_dict(), tokenizer, dtype=torch.float32, lineage={"stage": stage})
        return path

    return written


def test_inspect_describes_a_model(make: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = make("base")
    assert main(["model", "inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    config = ModelConfig(preset="nano")
    assert facts["parameters"] == sum(row["parameters"] for row in facts["parameter_table"]) == config.num_parameters()
    assert facts["memory"]["weights"] == 4 * config.num_parameters()
    assert facts["memory"]["cache_per_token"] == 2 * 2 * 2 * 16 * 4
    assert facts["training_flops_per_token"]["full"] > facts["training_flops_per_token"]["causal"]
    assert facts["lineage"]["stage"] == "base"
    assert main(["model", "inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    for words in (f"{config.num_parameters():,}", "model.layers.*.mlp.up_proj.weight", "<|begin_of_text|>", "stage"):
        assert words in shown


def test_import_then_sample(make: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "models/copy"
    assert main(["import", str(make("base")), "-o", str(out), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["directory"] == str(out)
    assert written["parent"] == "base", "the folder's name, not its path on this machine"

    options = ["sample", str(out), "-p", "def add", "--max-tokens", "12", "--seed", "3"]
    assert main([*options, "--json"]) == 0
    completion = json.loads(capsys.readouterr().out)
    assert len(completion["ids"]) == len(completion["logprobs"]) == 12
    assert main(options) == 0
    assert capsys.readouterr().out == "def add" + completion["text"] + "\n"


def test_sample_greedy_and_stop(make: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["sample", str(make("base")), "-p", "def", "--max-tokens", "20", "--greedy", "--json"]
    main(options)
    whole = json.loads(capsys.readouterr().out)["text"]
    stop = whole[5:8]
    main([*options, "--stop", stop])
    cut = json.loads(capsys.readouterr().out)
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"


def say(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """Feed these lines, or interrupts, to input(); then the input ends."""
    coming = iter(lines)

    def read(_: str = "") -> str:
        line = next(coming, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)


def test_chat(make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(make("chat"))
    say(monkeypatch, "forgotten", "/reset", "add a", "", "and b", "/quit", "never read")
    assert main(["chat", path, "--max-tokens", "5", "--system", "be kind", "--json", "--seed", "1"]) == 0
    shown = capsys.readouterr()
    messages = json.loads(shown.out)["messages"]
    assert [(m["role"], m["content"]) for m in messages if m["role"] != "assistant"] == [
        ("system", "be kind"),
        ("user", "add a"),
        ("user", "and b"),
    ]
    assert "base model" not in shown.err


def test_chat_with_a_base_model_says_so_and_continues(
    make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(make("base"))
    say(monkeypatch, "def add")
    assert main(["chat", path, "--max-tokens", "8", "--greedy"]) == 0
    shown = capsys.readouterr()
    assert "This is a base model" in shown.err
    main(["sample", path, "-p", "def add", "--max-tokens", "8", "--greedy"])
    assert shown.out == capsys.readouterr().out


def test_an_interrupt_stops_the_answer_and_one_at_the_prompt_exits(
    make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = Engine.stream

    def interrupted(self: Engine, *details: object) -> object:
        for number, step in enumerate(stream(self, *details)):  # type: ignore[arg-type]
            if number == 3:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(Engine, "stream", interrupted)
    say(monkeypatch, "add", "more", KeyboardInterrupt, "never read")
    assert main(["chat", str(make("chat")), "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("(stopped)") == 2
    assert [m["role"] for m in json.loads(shown.out)["messages"]] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sample", "nosuch", "-p", "x"], "nosuch does not exist"),
        (["sample", "{base}", "-p", "x", "--temperature", "-1"], "temperature = -1.0"),
        (["sample", "{base}", "-p", "x", "--device", "nosuch"], "--device nosuch cannot be used"),
        (["sample", "{base}", "-p", "x " * 2000], "context holds 256"),
        (["chat", "{base}", "--system", "x"], "base model"),
        (["import", "{base}", "-o", "{base}"], "exists already"),
        (["import", "nosuch", "-o", "x"], "nosuch does not exist"),
        (["model", "inspect", "nosuch"], "nosuch does not exist"),
        (["model", "inspect", "{base}", "--seq-len", "-1"], "--seq-len -1"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    make: Callable[[str], Path], capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    base = str(make("base"))
    assert main([word.replace("{base}", base) for word in words]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err.splitlines()[-1]
    assert shown.out == ""


def test_a_model_without_a_tokenizer_is_said_to_be_one(
    tmp_path: Path, random_model: Callable[..., LlamaForCausalLM], capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(ModelConfig(preset="nano"))
    save_model(tmp_path / "bare", model.config, model.state_dict(), None, dtype=torch.float32, lineage={})
    options = {"dtype": "", "device": "cpu", "deterministic": False, "quantize": None, "max_batch": 2, "kv_tokens": 64}
    _load(_named(str(tmp_path / "bare"), "native"), argparse.Namespace(**options), Settings())
    said = " ".join(capsys.readouterr().err.split())
    assert "bare has no tokenizer: it answers only /v1/completions, with token ids for a prompt." in said
    assert main(["import", str(tmp_path / "bare"), "-o", str(tmp_path / "copy")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "The model has no tokenizer: it continues token ids" in said
    assert "Checked: its logits are those of transformers" in said
