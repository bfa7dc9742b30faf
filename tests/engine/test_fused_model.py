"""A model laid out for generation on a CPU: equal up to rounding, and the error of quantization."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from puna.core.errors import PunaError
from puna.engine.cpu.fused_model import fuse, packed_matrices, weight_shapes
from puna.engine.cpu.kernels import kernels
from puna.engine.cpu.panels import PanelMatrix
from puna.engine.cpu.weight_layouts import pack
from puna.engine.generate import Engine, SamplingParams, load_engine
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import save_model
from puna.model.torch_compat import multiplies_bfloat16

Maker = Callable[..., LlamaForCausalLM]
CONFIG = ModelConfig(
    hidden_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=320,
    vocab_size=320,
    max_position_embeddings=128,
)
TIED = CONFIG.model_copy(update={"tie_word_embeddings": True})
PROMPTS = [[5, 6, 7], [9] * 20, list(range(40))]
SCORE = SamplingParams(max_tokens=8, temperature=0, prompt_logprobs=0)


def logprobs(engine: Engine) -> torch.Tensor:
    done = engine.generate(PROMPTS, SCORE)
    return torch.tensor([row[0].logprob for one in done for row in one.prompt_logprobs[1:]])


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("dtype", "quantize", "mean", "most"),
    [
        (torch.float32, None, 1e-5, 1e-4),
        (torch.bfloat16, None, 0.018, 0.08),  # torch: mean error 0.009 to 0.014, maximum 0.03 to 0.05
        (torch.bfloat16, "int8", 0.04, 0.15),
        (torch.bfloat16, "int4", 0.3, 1.3),
        (torch.float32, "int8", 0.04, 0.15),
    ],
)
def test_a_fused_model_is_the_model(
    random_model: Maker, config: ModelConfig, dtype: torch.dtype, quantize: str | None, mean: float, most: float
) -> None:
    plain = Engine(random_model(config), None)
    fused = Engine(fuse(random_model(config).to(dtype), quantize), None)
    off = (logprobs(fused) - logprobs(plain)).abs()
    assert off.mean() < mean
    assert off.max() < most
    if dtype == torch.float32 and quantize is None:
        greedy = SamplingParams(max_tokens=30, temperature=0)
        assert [d.ids for d in fused.generate(PROMPTS, greedy)] == [d.ids for d in plain.generate(PROMPTS, greedy)]
        assert torch.allclose(fused.embed(PROMPTS), plain.embed(PROMPTS), atol=1e-4)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_new_weights_reach_a_fused_model(random_model: Maker, quantize: str | None) -> None:
    torch.manual_seed(1)
    other = random_model(TIED)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.25).add_(0.01 * torch.randn_like(parameter))
    wanted = Engine(fuse(random_model(TIED).to(torch.bfloat16), quantize), None)
    assert weight_shapes(wanted.model) == {name: tuple(p.shape) for name, p in other.named_parameters()}
    wanted.update_weights((name, parameter.detach()) for name, parameter in other.named_parameters())
    made_so = Engine(fuse(other.to(torch.bfloat16), quantize), None)
    assert torch.equal(logprobs(wanted), logprobs(made_so))
    with pytest.raises(PunaError, match=r"layers\.0\.mlp\.up_proj\.weight is \(3, 3\)"):
        wanted.update_weights([("model.layers.0.mlp.up_proj.weight", torch.zeros(3, 3))])
    with pytest.raises(PunaError, match="no weight"):
        wanted.update_weights([("model.layers.0.mlp.up_prj.weight", torch.zeros(3, 3))])


@pytest.mark.parametrize(("kind", "bound"), [(None, 0.0), ("int8", 0.01), ("int4", 0.09)])
def test_what_a_matrix_multiplies_with(kind: str | None, bound: float) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(192, 256) * 0.02).to(torch.bfloat16)
    matrix = pack(weight, kind)
    dense = matrix.dense().float()
    assert (dense - weight.float()).norm() <= bound * weight.float().norm()
    x = torch.randn(40, 256).to(torch.bfloat16)
    expected = x.float() @ dense.t()
    for rows in (1, 2, 3, 4, 7, 40):
        assert (matrix(x[:rows]).float() - expected[:rows]).abs().max() < 0.02, "with few rows and with many"
    x[0, 9] = float("nan")
    assert matrix(x[:1]).isnan().all(), "non-finite values stay non-finite"
    assert matrix(x[:0]).shape == (0, 192), "a step that ends no prompt needs no logits"
    before = dense.clone()
    new = (torch.randn(64, 256) * 0.03).to(torch.bfloat16)
    for row in (64, 100):  # full blocks of the packing, and partial ones
        matrix.assign(row, new)
        assert (matrix.dense()[row : row + 64].float() - new.float()).norm() <= max(bound, 1e-6) * new.float().norm()
    assert torch.equal(matrix.dense()[:64].float(), before[:64]) or kind == "int4", "others stay"


def test_what_int4_cannot_hold_becomes_int8(random_model: Maker) -> None:
    odd = CONFIG.model_copy(update={"intermediate_size": 336})  # not divisible into groups of 32
    kinds = [matrix.kind for matrix in packed_matrices(fuse(random_model(odd).to(torch.bfloat16), "int4"))]
    assert kinds[3:12:4] == ["int8"] * 3, "matrices that read the feed-forward's width"
    assert kinds[0] == kinds[-1] == "int4"


def test_load_engine_says_what_it_chose(random_model: Maker, tmp_path: Path) -> None:
    save_model(tmp_path / "m", CONFIG, random_model(CONFIG).state_dict(), None, dtype=torch.float32, lineage={})
    plain, fast, small = (load_engine(tmp_path / "m", **o) for o in ({}, {"fast": True}, {"quantize": "int4"}))
    assert "as stored" in plain.describe()[0]
    assert ("bfloat16" in fast.describe()[0]) == multiplies_bfloat16()
    assert "int4" in small.describe()[1]
    assert (logprobs(fast) - logprobs(plain)).abs().max() < 0.05
    assert load_engine(tmp_path / "m", fast=True, dtype=torch.float32).model.head_weight.dtype == torch.float32
    for wrong in ("int5", "int8"):
        with pytest.raises(PunaError, match="cannot be int"):
            load_engine(tmp_path / "m", quantize=wrong, device="cpu" if wrong == "int5" else "cuda")


@pytest.mark.parametrize(
    ("dtype", "quantize", "bound"),
    [(torch.float32, None, 1e-4), (torch.bfloat16, None, 0.05), (torch.bfloat16, "int8", 0.1)],
)
def test_a_step_in_one_call_computes_what_torch_does(
    random_model: Maker, dtype: torch.dtype, quantize: str | None, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Engine(fuse(random_model(CONFIG).to(dtype), quantize), None)
    assert (whole._core.runner.native_step is not None) == (kernels() is not None)
    score = SamplingParams(max_tokens=40, temperature=0.7, seed=4)
    done = whole.generate(PROMPTS * 4, score)  # 12 sequences with prompts, then fewer
    monkeypatch.setattr("puna.engine.cpu.native_step.kernels", lambda: None)
    monkeypatch.setattr("puna.engine.cpu.weight_layouts.kernels", lambda: None)
    without = Engine(fuse(random_model(CONFIG).to(dtype), quantize), None)
    assert without._core.runner.native_step is None
    for prompt, one in zip(PROMPTS * 4, done, strict=True):
        [scored] = without.generate([prompt + one.ids], SamplingParams(max_tokens=0, prompt_logprobs=0))
        again = torch.tensor([row[0].logprob for row in scored.prompt_logprobs[len(prompt) :]])
        assert (again - torch.tensor(one.logprobs)).abs().max() < bound


@pytest.mark.skipif(kernels() is None, reason="no C compiler made the kernels here")
@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "int8"), (torch.bfloat16, "int4")],
)
def test_a_step_in_one_call_does_not_depend_on_company(
    random_model: Maker, dtype: torch.dtype, quantize: str | None
) -> None:
    """Bit-equal alone, in a batch, in chunks, and with another number of threads."""
    engine = Engine(fuse(random_model(CONFIG).to(dtype), quantize), None, prefix_cache=False)
    together = engine.generate(PROMPTS * 3, SCORE)
    pieces = Engine(engine.model, None, prefix_cache=False, step_tokens=7, max_batch=2).generate(PROMPTS * 3, SCORE)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        alone = [engine.generate([prompt], SCORE)[0] for prompt in PROMPTS * 3]
    finally:
        torch.set_num_threads(threads)
    assert together == alone == pieces


@pytest.mark.skipif(kernels() is None, reason="no C compiler made the kernels here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_others_left_in_pages_reaches_nobody(random_model: Maker, dtype: torch.dtype) -> None:
    clean, left = (Engine(fuse(random_model(CONFIG).to(dtype)), None) for _ in range(2))
    left._core.scheduler.pool.store.fill_(float("nan"))
    assert left.generate(PROMPTS, SCORE) == clean.generate(PROMPTS, SCORE)


@pytest.mark.parametrize("config", [CONFIG, ModelConfig(preset="nano", head_dim=24)], ids=["panels", "no panels"])
def test_pages_of_any_size(random_model: Maker, config: ModelConfig) -> None:
    """Block sizes that the kernels do not support fall back to torch with the same results."""
    expected = Engine(random_model(config), None).generate(PROMPTS, SCORE)
    for size in (5, 16, 32):
        engine = Engine(fuse(random_model(config)), None, block_size=size)
        for one, other in zip(engine.generate(PROMPTS, SCORE), expected, strict=True):
            assert one.ids == other.ids
            assert torch.allclose(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4)


@pytest.mark.skipif(kernels() is None, reason="no C compiler made the kernels here")
@pytest.mark.parametrize("columns", [128, 200, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_in_panels_of_any_size(columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(70, columns).to(dtype)
    matrix = pack(weight, None)
    assert isinstance(matrix, PanelMatrix)
    assert torch.equal(matrix.dense(), weight)
    x = torch.randn(20, columns).to(dtype)
    expected = x.double() @ weight.double().t()
    for rows in range(1, 21):
        error = (matrix(x[:rows]).double() - expected[:rows]).abs().max()
        assert error < (0.3 if dtype == torch.bfloat16 else 1e-4)


def test_kernels_leave_small_numbers_alone() -> None:
    kernels()
    assert 5e-324 > 0
    assert torch.tensor(1e-310, dtype=torch.float64).mul(1) > 0
