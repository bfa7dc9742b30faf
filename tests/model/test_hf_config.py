"""config.json means here what it means in transformers, or is refused by the key's name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from puna.core.errors import PunaError
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM, rotary_frequencies
from puna.model.store import load_config, load_model, save_model

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}

SAME: dict[str, dict[str, Any]] = {
    "shapes alone": {},
    "all nulls that mean nothing": dict.fromkeys(
        ("num_key_value_heads", "head_dim", "rope_scaling", "rope_parameters")
    ),
    "fewer heads": {"num_key_value_heads": 2, "head_dim": 32},
    "transformers 4": {"rope_theta": 5e5, "rope_scaling": LINEAR},
    "transformers 4 before 4.45": {"rope_theta": 500000, "rope_scaling": {"type": "linear", "factor": 2}},
    "transformers 5": {"rope_parameters": LINEAR | {"rope_theta": 3e5}},
    "a base at the top, the rule below": {"rope_theta": 3e5, "rope_parameters": LINEAR},
    "no base": {"rope_scaling": LINEAR},
    "both alike": {"rope_theta": 2e5, "rope_scaling": LINEAR, "rope_parameters": LINEAR | {"rope_theta": 2e5}},
    "plain in both": {
        "rope_theta": 2e5,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 2e5},
    },
    "empty": {"rope_scaling": {}, "rope_parameters": {}},
    "llama3": {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 1024}, "max_position_embeddings": 8192},
    "llama3 without its context": {"rope_scaling": LLAMA3, "max_position_embeddings": 512},
    "llama3 with its context at the top": {
        "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64},
        "original_max_position_embeddings": 256,
        "max_position_embeddings": 512,
    },
    "other keys": {"rms_norm_eps": 1e-3, "initializer_range": 0.5, "max_position_embeddings": 99, "use_cache": False},
    "swish": {"hidden_act": "swish"},
    "keys nobody knows": {"pretraining_tp": 2, "whatever": [1]},
}


@pytest.mark.parametrize("case", SAME)
def test_what_is_read_is_what_transformers_reads(case: str, tmp_path: Path) -> None:
    values = SHAPE | SAME[case]
    ours = ModelConfig.from_hf(json.loads(json.dumps(values)))
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    for key in ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "initializer_range"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs)
    torch.testing.assert_close(rotary_frequencies(ours), rotary.inv_freq, rtol=1e-6, atol=0)
    # And what is written says the same to both.
    (tmp_path / "config.json").write_text(json.dumps(ours.to_file()), encoding="utf-8")
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(again)
    torch.testing.assert_close(rotary_frequencies(ours), rotary.inv_freq, rtol=1e-6, atol=0)
    assert load_config(tmp_path) == ours


APART, UNKNOWN = "rope_scaling and rope_parameters contradict", ("yarn", "dynamic", "longrope", "new")
REFUSED: list[tuple[dict[str, Any], str]] = [
    *(({key: ...}, f"has no {key}. A model's shape is never guessed") for key in list(SHAPE)[1:]),
    ({"num_hidden_layers": ..., "n_layers": 2}, "has no num_hidden_layers"),
    ({"hidden_size": "64"}, "hidden_size is '64', not a whole number"),
    ({"hidden_size": 64.0}, "hidden_size is 64.0, not a whole number"),
    ({"hidden_size": True}, "hidden_size is True, not a whole number"),
    ({"hidden_size": None}, "has no hidden_size|hidden_size is None"),
    ({"hidden_size": [64]}, r"hidden_size is \[64\]"),
    ({"num_hidden_layers": -1}, "num_hidden_layers"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_key_value_heads": {}}, "num_key_value_heads is {}"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6', not a number"),
    ({"rms_norm_eps": None}, "rms_norm_eps is None"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan"),
    ({"rms_norm_eps": math.inf}, "rms_norm_eps is inf"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', not true or false"),
    ({"hidden_act": 3}, "hidden_act is 3"),
    ({"attention_bias": "no"}, "attention_bias is 'no'"),
    ({"rope_theta": "10000"}, "rope_theta is '10000'"),
    ({"rope_theta": None}, "rope_theta is None"),
    ({"rope_theta": -1.0}, "rope_theta"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear', not an object"),
    ({"rope_parameters": [LINEAR]}, "rope_parameters is"),
    ({"rope_scaling": {"factor": 4.0}}, "rope_scaling has no rope_type"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling of type 'linear' has no factor"),
    ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters of type 'linear' has no factor"),
    *(
        ({"rope_scaling": {k: v for k, v in LLAMA3.items() if k != key}}, f"rope_scaling of type 'llama3' has no {key}")
        for key in ("factor", "low_freq_factor", "high_freq_factor")
    ),
    ({"rope_scaling": LINEAR | {"factor": "4"}}, r"rope_scaling\.factor is '4'"),
    ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": "8k"}}, "original_max_position_embeddings is '8k'"),
    ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor is not above low_freq_factor"),
    ({"rope_scaling": LINEAR | {"type": "llama3"}}, "rope_type 'linear' and type 'llama3'"),
    *(({"rope_scaling": {"type": kind, "factor": 2.0}}, f"'{kind}' is not known") for kind in UNKNOWN),
    ({"rope_scaling": {"rope_type": 3}}, "RoPE type 3 is not known"),
    ({"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is not 1"),
    ({"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"factor": 2.0}}, APART),
    ({"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}}, APART),
    ({"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"rope_theta": 3.0}}, APART),
    ({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, r"is 500000\.0 there and"),
    ({"mlp_bias": True}, "the model has biases"),
    ({"model_type": ...}, "model_type is None"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_what_is_missing_wrong_or_contradictory_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    values = {key: value for key, value in (SHAPE | change).items() if value is not ...}
    with pytest.raises(PunaError, match=words) as caught:
        ModelConfig.from_hf(values, "x/config.json")
    assert str(caught.value).startswith("x/config.json")


@pytest.mark.parametrize("values", [[], "llama", None, 3])
def test_a_config_that_is_no_object_is_refused(values: Any) -> None:
    with pytest.raises(PunaError, match=r"config\.json is not a JSON object"):
        ModelConfig.from_hf(values)


def test_editing_rope_scaling_of_a_written_model_takes_effect(tmp_path: Path) -> None:
    config = ModelConfig(preset="nano")
    state = LlamaForCausalLM(config).state_dict()
    save_model(tmp_path, config, state, None, dtype=torch.float32, lineage={})
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"rope_scaling": LINEAR}))
    ours, theirs = load_config(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path)
    assert ours.rope_scaling is not None
    assert ours.rope_scaling.factor == theirs.rope_parameters["factor"] == 4.0
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        their_logits = transformers.LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits
        assert (load_model(tmp_path)(ids) - their_logits).abs().max() < 1e-5
