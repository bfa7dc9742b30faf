"""Predicted memory: activations as counted by autograd, sharding by arithmetic, refusal with one message."""

from typing import Any

import pytest

from puna.core.errors import PunaError
from puna.core.recipe import check
from puna.train.measure.machine import Machine
from puna.train.planning.memory import MemoryPrediction, check_fits, largest_preset_that_fits, predict_memory
from puna.train.recipe import Recipe

MODEL = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 344, "num_attention_heads": 4}
GIB = 2**30


def recipe(**sections: Any) -> Recipe:
    train = {"steps": 10, "precision": "fp32", "compile": "off"} | sections.pop("train", {})
    return check(Recipe, {"train": train, **sections}, "test")


def saved_bytes(layers: int, precision: str, recompute: str, rows: int, seq: int) -> int:
    """Bytes of all distinct tensors that autograd keeps after a forward pass, except the weights."""
    import torch

    from puna.model.config import ModelConfig
    from puna.model.llama import LlamaForCausalLM
    from puna.train.parallel import apply_to_blocks

    config = ModelConfig.model_validate({**MODEL, "num_key_value_heads": 2, "num_hidden_layers": layers})
    model = LlamaForCausalLM(config)
    model.init_weights(0)
    if precision == "bf16":
        model.to(torch.bfloat16)
    apply_to_blocks(model, recompute=recompute, compiled=False)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(config.vocab_size, (rows, seq))
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed")
    with mixed, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model(ids, head=lambda hidden, _: hidden)
    del hidden
    return sum(kept.values())


@pytest.mark.parametrize(
    ("precision", "recompute"), [("fp32", "none"), ("mixed", "none"), ("bf16", "none"), ("fp32", "full")]
)
def test_a_block_keeps_what_autograd_says_it_keeps(precision: str, recompute: str) -> None:
    rows, seq = 2, 64
    measured = saved_bytes(3, precision, recompute, rows, seq) - saved_bytes(1, precision, recompute, rows, seq)
    value = recipe(
        model={**MODEL, "num_key_value_heads": 2, "num_hidden_layers": 2},
        train={"precision": precision, "seq_len": seq, "batch": rows, "recompute": recompute},
    )
    prediction = MemoryPrediction(value, "cpu", 1)
    expected = prediction.block_bytes_per_token(recompute) * rows * seq * 2
    if prediction.casts:
        expected += 2 * 2 * value.model.block_parameters()  # autocast's bf16 copies of two blocks' weights
    assert measured == pytest.approx(expected, rel=0.01)


def test_states_are_sixteen_bytes_a_parameter_with_adamw_and_divide_over_shards() -> None:
    value = recipe(model={"preset": "llama3.2-1b"}, optimizer={"kind": "adamw"}, train={"batch": 8, "seq_len": 64})
    parameters = value.model.num_parameters()
    alone = predict_memory(value, device_type="cuda").parts
    eight = predict_memory(value, device_type="cuda", world_size=8).parts
    assert alone["weights"] + alone["optimizer state"] == 12 * parameters
    assert eight["optimizer state"] == pytest.approx(parameters)  # 8 bytes over 8 processes


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ({"recompute": "full"}, {"recompute": "selective"}),
        ({"recompute": "selective"}, {"recompute": "none"}),
        ({"micro_batch": 4}, {"micro_batch": 16}),
        ({"seq_len": 256}, {"seq_len": 512}),
        ({"loss_chunk": 512}, {"loss_chunk": 0}),
        ({"document_mask": False}, {"document_mask": True}),
    ],
)
def test_what_should_save_memory_does(smaller: dict[str, Any], larger: dict[str, Any]) -> None:
    shape = {"preset": "mini", "vocab_size": 32768}
    less = recipe(model=shape, train={"batch": 16, "compile": "on", **smaller})
    more = recipe(model=shape, train={"batch": 16, "compile": "on", **larger})
    # Loss chunks matter where logits are the peak; the mask only on CPUs.
    assert predict_memory(less, device_type="cpu").total < predict_memory(more, device_type="cpu").total


def test_a_model_too_big_is_refused_with_the_largest_that_fits() -> None:
    value = recipe(model={"preset": "llama3-8b"}, train={"batch": 1, "seq_len": 256})
    machine = Machine("cpu", "", 2, 16 * GIB, {"fp32": 1e11, "bf16": 1e9}, False)
    with pytest.raises(PunaError, match=r"8\.03B parameters") as refused:
        check_fits(value, predict_memory(value, device_type="cpu"), machine)
    fitting = largest_preset_that_fits(value, 16 * GIB, device_type="cpu")
    assert fitting is not None
    assert f"model.preset = '{fitting}'" in str(refused.value)
    assert "16" in str(refused.value)
    small = recipe(model={"preset": fitting, "vocab_size": value.model.vocab_size}, train={"batch": 1, "seq_len": 256})
    check_fits(small, predict_memory(small, device_type="cpu"), machine)


def test_nothing_fits_into_no_memory() -> None:
    value = recipe(model={"preset": "mini"}, train={"batch": 1})
    assert largest_preset_that_fits(value, 2**20, device_type="cpu") is None
