"""puna eval bpb, from a folder of files to a number."""

import json
import math
import shutil

import pytest
import torch

from puna.cli.main import main
from puna.data.build import build_corpus
from puna.data.corpus import Corpus
from puna.data.recipe import DataRecipe
from puna.evals.compressors import compressors
from puna.model.config import ModelConfig
from puna.model.store import save_model
from puna.train.measure.evaluate import bits_per_byte


@pytest.fixture(scope="module")
def place(tmp_path_factory, random_model):
    """A corpus of two sources and a random model with its tokenizer."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "code").mkdir()
    (folder / "more").mkdir()
    for index in range(40):
        lines = [f"def function_{index}_{line}(value):\n    return value * {index + line}\n" for line in range(6)]
        (folder / "code" / f"{index}.py").write_text("\n".join(lines))
        (folder / "more" / f"{index}.txt").write_text(f"Text {index}, only to have more than one source. " * 3)
    recipe = DataRecipe.model_validate(
        {
            "sources": [{"name": name, "path": str(folder / name)} for name in ("code", "more")],
            "heldout": {"share": 0.3},
            "dedup": {"minhash": False},
            "tokenizer": {"vocab_size": 400},
        }
    )
    build_corpus(recipe, folder / "corpus")
    corpus = Corpus.open(folder / "corpus")
    config = ModelConfig(preset="nano", vocab_size=400, max_position_embeddings=64)
    model = random_model(config)
    lineage = {"stage": "base", "recipe": {"train": {"seq_len": 32}}}
    save_model(folder / "model", config, model.state_dict(), corpus.tokenizer, dtype=torch.float32, lineage=lineage)
    return folder


def command(place, *more):
    return main(["eval", "bpb", str(place / "model"), str(place / "corpus"), "--device", "cpu", *more])


def test_prints_value_interval_window_and_stride(place, capsys):
    assert command(place) == 0
    text = capsys.readouterr().out
    assert "bits per byte ± " in text
    assert "window 32, stride 16" in text  # the rows it was trained on, half of them
    assert "code: " in text
    assert "more: " in text


def test_json_agrees_with_the_function_and_counts_every_token(place, capsys):
    assert command(place, "--window", "64", "--stride", "64", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    corpus = Corpus.open(place / "corpus")
    assert result["bytes"] == corpus.num_bytes("heldout")
    assert result["tokens"] == corpus.num_tokens("heldout") - corpus.num_documents("heldout")
    assert result["documents"] == corpus.num_documents("heldout")
    from puna.model.store import load_model

    again = bits_per_byte(load_model(place / "model"), corpus, window=64, stride=64, batch=1)
    assert result["bits_per_byte"] == pytest.approx(again["bits_per_byte"], rel=1e-6)
    assert result["interval"][0] < result["bits_per_byte"] < result["interval"][1]
    assert result["loss"] * result["tokens"] / math.log(2) == pytest.approx(result["bits_per_byte"] * result["bytes"])


def test_max_bytes_is_the_same_text_for_model_and_compressors(place, capsys):
    assert command(place, "--max-bytes", "1k", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert 1000 <= result["bytes"] < 1100
    rows = compressors(Corpus.open(place / "corpus"), max_bytes=1000)
    assert rows[0]["name"] == "gzip -9"
    assert 0 < rows[0]["value"] < 8


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--window", "65"], "longer than the model's context of 64"),
        (["--window", "8", "--stride", "9"], "cannot have a stride of 9"),
        (["--split", "test"], "no split 'test'"),
        (["--max-bytes", "many"], "'many' is not a count"),
        (["--batch", "0"], "not a number of windows"),
    ],
)
def test_bad_options_are_one_sentence(place, capsys, more, sentence):
    assert command(place, *more) == 2
    err = capsys.readouterr().err.strip()
    assert sentence in err.splitlines()[-1]


def test_a_model_with_another_tokenizer_is_refused(place, capsys, tmp_path):
    shutil.copytree(place / "model", tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    value = json.loads(file.read_text())
    value["model"]["merges"].pop()
    file.write_text(json.dumps(value))
    assert main(["eval", "bpb", str(tmp_path / "model"), str(place / "corpus")]) == 2
    err = capsys.readouterr().err
    assert "another tokenizer" in err
    assert len(err.splitlines()) == 1
    assert main(["eval", "bpb", str(tmp_path / "nothing"), str(place / "corpus")]) == 2
