"""Shapes and counts, compared with published numbers and with the networks themselves."""

import pytest
import torch
import transformers

from puna.core.errors import PunaError
from puna.model.config import PRESETS, ModelConfig
from puna.model.llama import LlamaForCausalLM

# Parameters as the model pages on Hugging Face count them.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
}


@pytest.mark.parametrize(("preset", "count"), PUBLISHED.items())
def test_published_parameter_counts(preset: str, count: int) -> None:
    assert ModelConfig(preset=preset).num_parameters() == count


@pytest.mark.parametrize("preset", PRESETS)
def test_counts_and_names_are_those_of_the_networks(preset: str) -> None:
    config = ModelConfig(preset=preset)
    with torch.device("meta"):
        ours = LlamaForCausalLM(config)
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_hf()))
    shapes = {name: tuple(p.shape) for name, p in ours.named_parameters()}
    assert shapes == config.parameter_shapes()
    assert shapes == {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    assert sum(p.numel() for p in ours.parameters()) == config.num_parameters()


def test_flops_conventions_differ_by_the_published_share() -> None:
    config = ModelConfig(preset="llama3-8b")
    full, causal = (config.flops_per_token(8192, attention=kind) for kind in ("full", "causal"))
    assert full == 6 * config.matmul_parameters() + 12 * 32 * 32 * 128 * 8192
    assert full / causal == pytest.approx(1.125, abs=0.002)


def test_old_and_new_rope_keys_read_the_same() -> None:
    config = ModelConfig(preset="llama3.2-1b")
    new = config.to_hf()
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    old["rope_scaling"] = {"type" if k == "rope_type" else k: v for k, v in new["rope_scaling"].items()}
    only_new = {key: value for key, value in new.items() if key not in ("rope_scaling", "rope_theta")}
    assert ModelConfig.from_hf(new) == ModelConfig.from_hf(old) == ModelConfig.from_hf(only_new)
    assert ModelConfig.from_hf(new).rope_theta == 500_000
    assert ModelConfig.from_hf(new).rope_scaling == config.rope_scaling


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mistral"}, "mistral"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"num_key_value_heads": 3}, "not divisible"),
    ],
)
def test_what_is_not_a_dense_llama_is_refused(change: dict, words: str) -> None:
    with pytest.raises(PunaError, match=words):
        ModelConfig.from_hf(ModelConfig(preset="nano").to_hf() | change)
