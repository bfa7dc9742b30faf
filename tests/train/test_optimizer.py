"""The optimizer: AdamW compared with torch's, Muon with singular values, skipping, schedules."""

import pytest
import torch
from torch import nn

from puna.train.optimizer import Optimizer, orthogonalize
from puna.train.recipe import OptimizerConfig, ScheduleConfig
from puna.train.schedule import lr_factor


def _parameters(seed: int = 0) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (11, 8),
        "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.layers.0.mlp.up_proj.weight": (24, 8),
        "model.layers.1.mlp.up_proj.weight": (24, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (11, 8),
    }
    return [(name, nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in shapes.items()]


def _give_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 64, 16), (2, 16, 64), (1, 48, 130)])
def test_orthogonalized_matrices_keep_singular_vectors_and_have_singular_values_near_one(shape, bf16):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    done = orthogonalize(matrices, 5, bf16=bf16)
    values = torch.linalg.svdvals(done)
    assert values.min() > 0.6
    assert values.max() < 1.4
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    exact = u @ vh
    cosine = (done * exact).sum((1, 2)) / done.norm(dim=(1, 2)) / exact.norm(dim=(1, 2))
    assert (cosine > 0.97).all()


def test_adamw_equals_torch():
    ours, theirs = _parameters(), _parameters()
    config = OptimizerConfig(kind="adamw", lr=0.01, weight_decay=0.1, eps=1e-8)
    optimizer = Optimizer(ours, config)
    matrices = [p for _, p in theirs if p.ndim == 2]
    vectors = [p for _, p in theirs if p.ndim == 1]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        betas=config.betas,
        eps=1e-8,
    )
    for step in range(5):
        _give_gradients(ours, step)
        _give_gradients(theirs, step)
        optimizer.step(1.0)
        reference.step()
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_skipped_step_changes_neither_weights_nor_state(kind, value):
    parameters = _parameters()
    optimizer = Optimizer(parameters, OptimizerConfig(kind=kind))
    _give_gradients(parameters, 0)
    optimizer.step(1.0, torch.zeros(()))
    weights = [p.detach().clone() for _, p in parameters]
    state = {n: {k: t.clone() for k, t in s.items()} for n, s in optimizer.state_dict().items()}
    for _, parameter in parameters:
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step(1.0, torch.ones(()))
    for (_, parameter), before in zip(parameters, weights, strict=True):
        assert torch.equal(parameter, before)
    for name, tensors in optimizer.state_dict().items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, state[name][key]), (name, key)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    parameters = _parameters()
    state = Optimizer(parameters, OptimizerConfig()).state_dict()
    muon = {name for name, tensors in state.items() if "momentum" in tensors}
    assert muon == {name for name, p in parameters if ".layers." in name and p.ndim == 2}


def test_schedules_warm_up_hold_and_fall_in_tokens():
    wsd = ScheduleConfig(kind="wsd", warmup=0.1, decay=0.5, final=0.1)
    assert lr_factor(wsd, 0.05) == pytest.approx(0.5)
    assert lr_factor(wsd, 0.3) == 1.0
    assert lr_factor(wsd, 0.75) == pytest.approx(0.55)
    assert lr_factor(wsd, 1.0) == pytest.approx(0.1)
    cosine = ScheduleConfig(kind="cosine", warmup=0.0)
    assert [round(lr_factor(cosine, t / 100), 6) for t in (0, 50, 100)] == [1.0, 0.5, 0.0]
    assert lr_factor(wsd, 0.0) > 0
