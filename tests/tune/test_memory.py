"""Memory of a tuning stage: only adapters have states, and on-policy stages have a generator."""

import pytest
import torch

from puna.core.errors import PunaError
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.train.measure.machine import Machine
from puna.train.planning.memory import check_fits
from puna.train.run_state import trainable
from puna.tune.lora import adapt
from puna.tune.memory import _StagePrediction, advice_on_memory, predict_stage_memory
from puna.tune.recipe import LoRAConfig
from puna.tune.rl.recipe import RLRecipe
from puna.tune.sft.recipe import SFTRecipe

GIB = 2**30
LLAMA_8B = ModelConfig.model_validate({"preset": "llama3-8b"})


def sft(seq_len: int = 1024, **sections) -> SFTRecipe:
    data = {"tasks": [{"name": "planning.grid", "levels": [1], "count": 1}]}
    train = {"batch": 8, "micro_batch": 1, "seq_len": seq_len, "precision": "bf16", "recompute": "full"}
    return SFTRecipe.model_validate({"model": "m", "data": data, "train": train, **sections})


def rl(**sections) -> RLRecipe:
    tasks, train = [{"name": "planning.grid", "levels": [1]}], {"seq_len": 128}
    return RLRecipe.model_validate({"model": "m", "tasks": tasks, "train": train, **sections})


def card(gibibytes: int) -> Machine:
    return Machine("cuda", "a card", 8, gibibytes * GIB, {"fp32": 1e12, "bf16": 1e14}, True)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], LoRAConfig().targets])
def test_adapters_are_counted_as_they_are(config, targets) -> None:
    lora = LoRAConfig(rank=4, targets=tuple(targets))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    adapt(model, lora)
    prediction = _StagePrediction(sft(128, lora=lora.model_dump()), config, "cuda", 1, 0)
    assert prediction.trained() == sum(parameter.numel() for parameter in trainable(model).values())


def test_adapters_of_a_large_model_fit_a_card_that_all_its_weights_do_not() -> None:
    whole, adapters = sft(), sft(lora={"rank": 16})
    for stage, fits in ((adapters, True), (whole, False)):
        estimate = predict_stage_memory(stage, LLAMA_8B, device_type="cuda")
        assert estimate.parts["weights"] == 2 * LLAMA_8B.num_parameters()
        if fits:
            check_fits(stage.as_training(LLAMA_8B), estimate, card(24))
        else:
            with pytest.raises(PunaError, match=r"GiB are free\. Less is needed with lora\.rank = 16"):
                check_fits(stage.as_training(LLAMA_8B), estimate, card(24), advice_on_memory(stage))


def test_answers_of_its_own_take_a_generator_and_divergence_a_reference(config) -> None:
    plain = predict_stage_memory(rl(), config, device_type="cuda").parts
    assert plain["generator"] == 2 * config.num_parameters()
    cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    recipe = rl()
    length = min(recipe.train.seq_len, config.max_position_embeddings)
    assert plain["its cache"] == cache * recipe.rollout.max_batch * length
    assert "reference" not in plain
    held = predict_stage_memory(rl(policy={"kl": 0.1}), config, device_type="cuda").parts
    assert held["reference"] == 4 * config.num_parameters()
    assert "generator" not in predict_stage_memory(sft(128), config, device_type="cuda").parts


def test_what_the_process_has_already_is_needed_and_there(config) -> None:
    recipe = sft(train={"batch": 1, "seq_len": 64, "precision": "fp32", "compile": "off"})
    usual = predict_stage_memory(recipe, config, device_type="cpu")
    more = predict_stage_memory(recipe, config, device_type="cpu", held=GIB)
    assert more.total - usual.total == GIB - usual.held
    little = Machine("cpu", "a machine", 2, more.total - GIB, {"fp32": 1e11, "bf16": 1e11}, False)
    check_fits(recipe.as_training(config), more, little)
