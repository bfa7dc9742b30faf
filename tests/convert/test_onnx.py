"""ONNX by onnxruntime-genai's builder: the same tokens as the model, or a sentence saying what to install."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from puna.cli.main import main
from puna.convert import onnx
from puna.model.store import load_model


def test_without_the_builder_a_sentence_says_what_to_install(
    make: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "NEEDED", ("nosuch_package", "torch"))
    assert main(["export", str(make()), "--to", "onnx"]) == 2
    assert "Writing ONNX needs nosuch-package, which is not installed." in capsys.readouterr().err


def test_greedy_tokens_are_the_models(make: Callable[..., Path], tmp_path: Path) -> None:
    if onnx.missing_packages():
        pytest.skip(f"needs {', '.join(onnx.missing_packages())}: pip install 'puna[onnx]'")
    import onnxruntime_genai as genai

    directory, out = make(), tmp_path / "out"
    assert main(["export", str(directory), "--to", "onnx", "-o", str(out)]) == 0
    network = genai.Model(str(out))
    params = genai.GeneratorParams(network)
    params.set_search_options(max_length=26, do_sample=False)
    generator = genai.Generator(network, params)
    ids = list(range(5, 11))
    generator.append_tokens(ids)
    model = load_model(directory)
    with torch.no_grad():
        while not generator.is_done():
            generator.generate_next_token()
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert list(generator.get_sequence(0)) == ids
