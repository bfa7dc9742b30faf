"""The Ollama folder: a Modelfile as it was looked at once, beside a GGUF file that is whole."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader

from puna.cli.main import main
from puna.convert.ollama import GO_TEMPLATE
from puna.engine.generate import load_engine
from puna.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden" / "Modelfile"


def test_modelfile_of_a_chat_model(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make(stage="chat")
    (directory / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9, "eos_token_id": [1]}')
    assert main(["export", str(directory), "--to", "ollama", "--quantize", "q8_0"]) == 0
    folder = tmp_path / "demo-ollama"
    assert capsys.readouterr().out == f"ollama create demo -f {folder / 'Modelfile'}\n"
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "demo-Q8_0.gguf"]
    assert (folder / "Modelfile").read_text() == GOLDEN.read_text()


def test_modelfile_of_a_base_model(make: Callable[..., Path], tmp_path: Path) -> None:
    assert main(["export", str(make()), "--to", "ollama", "-o", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/Modelfile").read_text()
    assert 'TEMPLATE "{{ .Prompt }}"' in text
    assert "start_header" not in text


def test_another_chat_template_is_left_to_ollama(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make(stage="chat")
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert main(["export", str(directory), "--to", "ollama", "-o", str(tmp_path / "out")]) == 0
    assert "TEMPLATE" not in (tmp_path / "out/Modelfile").read_text()
    assert "has no TEMPLATE" in " ".join(capsys.readouterr().err.split())


def test_one_list_of_ends_reaches_every_export(make: Callable[..., Path], tmp_path: Path) -> None:
    directory = make(stage="chat")
    special = Tokenizer.load(directory).special
    names = ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|reserved_special_token_1|>")
    ends = [special[name] for name in names]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert Tokenizer.load(directory).eos_ids == ends
    assert load_engine(directory).end_ids == set(ends)
    assert main(["export", str(directory), "--to", "ollama", "-o", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out/Modelfile").read_text().splitlines()
    assert [line for line in lines if "stop" in line] == [f'PARAMETER stop "{name}"' for name in names]
    fields = GGUFReader(tmp_path / "out/demo-F32.gguf").fields
    found = [int(fields[f"tokenizer.ggml.{key}_token_id"].parts[-1][0]) for key in ("eos", "eot", "eom")]
    assert found == ends[:3]


def test_the_go_template_closes_what_it_opens() -> None:
    opened = sum(GO_TEMPLATE.count("{{" + dash + word) for dash in (" ", "- ") for word in ("if ", "range "))
    assert opened == GO_TEMPLATE.count(" end }}")
    assert '"""' not in GO_TEMPLATE
