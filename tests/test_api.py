"""The public Python API: nothing is loaded too early, names and types agree, mistakes have the right class."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import puna
from puna.api import sampling_params
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import save_model
from puna.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., LlamaForCausalLM]) -> Path:
    tokenizer = train_tokenizer(["The harbour was quiet, and the ships of the harbour ran out."] * 4, 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    directory = tmp_path_factory.mktemp("models") / "base"
    state = random_model(config).state_dict()
    save_model(directory, config, state, tokenizer, dtype=torch.float32, lineage={"stage": "base"})
    return directory


def test_importing_puna_loads_nothing() -> None:
    source = (
        "import sys; before = set(sys.modules); import puna; dir(puna); puna.__version__\n"
        "print(sorted(set(sys.modules) - before))\n"
        "puna.Task, puna.PunaError, puna.include; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, encoding="utf-8", check=True)
    loaded, torch_is_loaded = done.stdout.splitlines()
    outside = {name.partition(".")[0] for name in ast.literal_eval(loaded)} - sys.stdlib_module_names
    assert outside == {"puna"}
    assert "typing" not in ast.literal_eval(loaded)
    assert torch_is_loaded == "False"


def test_every_public_name_is_there_and_unknown_ones_are_attribute_errors() -> None:
    for name in puna.__all__:
        assert getattr(puna, name) is not None
        assert name in dir(puna)
    assert sorted(puna._WHERE) == sorted(set(puna.__all__) - {"__version__"})
    with pytest.raises(AttributeError, match="module 'puna' has no attribute 'load'"):
        puna.load  # noqa: B018


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse(Path(puna.__file__).read_text(encoding="utf-8"))
    imports = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module not in ("typing", "puna.version")
    ]
    assert {alias.name: node.module for node in imports for alias in node.names} == puna._WHERE


def test_no_function_hides_behind_a_package_of_its_name() -> None:
    packages = {path.parent.name for path in Path(puna.__file__).parent.glob("*/__init__.py")}
    assert not packages & set(puna.__all__)


def test_a_model_generates_as_its_engine_does(base_model: Path) -> None:
    with puna.load_model(base_model, deterministic=True) as model:
        assert not model.is_chat
        ids = model.tokenizer.encode("The harbour", bos=True)
        [expected] = model.engine.generate([ids], puna.SamplingParams(max_tokens=8, temperature=0))
        one = model.generate("The harbour", max_tokens=8, temperature=0)
        assert (one.ids, one.text) == (expected.ids, expected.text)
        pair = model.generate(["The harbour", "ships"], max_tokens=8, temperature=0, n=2)
        assert [entry.ids for entry in pair][:2] == [one.ids, one.ids]
        assert len(pair) == 4
        assert "".join(model.stream("The harbour", max_tokens=8, temperature=0)) == one.text
        assert model.generate([]) == []


def test_scores_are_the_log_probabilities_of_the_continuation(base_model: Path) -> None:
    with puna.load_model(base_model, deterministic=True) as model:
        first, second = model.score("The harbour", [" was", " was quiet"])
        context = model.tokenizer.encode("The harbour", bos=True)
        ids = model.tokenizer.encode("The harbour was", bos=True)
        with torch.no_grad():
            logprobs = torch.log_softmax(model.engine.model(torch.tensor([ids])).float(), -1)[0]
        expected = sum(float(logprobs[at - 1, ids[at]]) for at in range(len(context), len(ids)))
        assert first.logprob == pytest.approx(expected, abs=1e-4)
        assert first.tokens == len(ids) - len(context)
        assert second.tokens > first.tokens


def test_mistakes_have_the_class_that_a_caller_can_catch(base_model: Path, tmp_path: Path) -> None:
    with puna.load_model(base_model) as model:
        with pytest.raises(puna.ModelError, match=r"is a base model.*Use generate"):
            model.chat([{"role": "user", "content": "Hello"}])
        with pytest.raises(puna.RecipeError, match=r"no sampling option 'temprature'. Did you mean 'temperature'\?"):
            model.generate("x", temprature=0)
        with pytest.raises(puna.PunaError, match="64"):
            model.generate("harbour " * 100)
    (tmp_path / "empty").mkdir()
    with pytest.raises(puna.ModelError, match="is not a model directory"):
        puna.load_model(tmp_path / "empty")
    with pytest.raises(puna.RecipeError, match="dtype = 'float8' is not known"):
        puna.load_model(base_model, dtype="float8")
    with pytest.raises(puna.RecipeError, match=r"unknown key 'train.stepps'. Did you mean 'steps'"):
        puna.train_model({"train": {"stepps": 3}}, run_dir=tmp_path / "run")
    with pytest.raises(puna.RecipeError, match="not a recipe"):
        puna.train_model({}, resume=True)
    with pytest.raises(puna.PunaError, match="stage"):
        puna.tune_model({"stage": "sftt"}, base_model)
    with pytest.raises(puna.RecipeError, match="samples = -1 is below 0"):
        puna.evaluate_model(base_model, "arithmetic.addition", samples=-1, limit=1)
    with pytest.raises(puna.RecipeError, match="2 kinds of accelerators"):
        puna.plan_run("llama3-8b", fleet="8xh100+8xa100")
    with pytest.raises(puna.MissingFiles):
        puna.evaluate_model(base_model, "gsm8k", data=tmp_path)


def test_too_little_memory_is_an_error_of_its_own(base_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("puna.engine.generate.load_engine", too_large)
    with pytest.raises(puna.OutOfMemoryError, match=r"There is not enough memory for .*base. Use a smaller max_batch"):
        puna.load_model(base_model)


def test_stop_may_be_one_text() -> None:
    assert sampling_params({"stop": "end"}).stop == ("end",)
    assert sampling_params({"stop": ["a", "b"]}).stop == ("a", "b")
