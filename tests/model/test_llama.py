"""The network compared with transformers; its masks, paths without a cache and initial weights."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import transformers
from torch.nn import functional as F

from puna.model.config import PRESETS, ModelConfig, RopeScaling
from puna.model.llama import DocumentMask, LlamaForCausalLM
from puna.model.torch_compat import has_varlen_attention


def shrunk(preset: str) -> ModelConfig:
    """The preset with the same ratio of heads, tying and rope, but 2 layers and a width that is fast to test."""
    big = ModelConfig(preset=preset)
    ratio = big.num_attention_heads // big.num_key_value_heads
    heads = max(4, ratio)
    values = big.model_dump(exclude={"preset"}) | {
        "vocab_size": 320,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // ratio,
        "head_dim": 16,
        "hidden_size": 16 * heads,
        "intermediate_size": 2 * round(8 * heads * big.intermediate_size / big.hidden_size),
    }
    return ModelConfig(**values)


def transformers_twin(model: LlamaForCausalLM) -> transformers.LlamaForCausalLM:
    twin = transformers.LlamaForCausalLM(transformers.LlamaConfig(**model.config.to_hf())).eval()
    missing = twin.load_state_dict(model.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert missing.missing_keys == (["lm_head.weight"] if model.config.tie_word_embeddings else [])
    return twin


def parted(rows: int, seq: int, seed: int = 0) -> torch.Tensor:
    """Document ids (rows, seq) with documents of irregular length."""
    starts = torch.rand(rows, seq, generator=torch.Generator().manual_seed(seed)) < 0.1
    return starts.cumsum(1).int()


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_logits_equal_transformers(preset: str, random_model: Callable[..., LlamaForCausalLM]) -> None:
    model = random_model(shrunk(preset))
    twin = transformers_twin(model)
    ids = torch.randint(0, 320, (2, 96), generator=torch.Generator().manual_seed(1))
    assert (model(ids) - twin(ids).logits).abs().max() <= 1e-5
    # Around and beyond the pretraining context (8192 for the scaled ones), where a wrong scaling would show.
    longest = model.config.max_position_embeddings
    for start in (longest // 2, longest - 96):
        positions = torch.arange(start, start + 96)
        theirs = twin(ids, position_ids=positions.expand(2, -1)).logits
        assert (model(ids, positions=positions) - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "scaling", [None, RopeScaling(rope_type="linear", factor=4.0), RopeScaling(original_max_position_embeddings=64)]
)
@torch.no_grad()
def test_logits_equal_transformers_for_every_rope_and_tying(
    tied: bool, scaling: RopeScaling | None, random_model: Callable[..., LlamaForCausalLM]
) -> None:
    config = ModelConfig(preset="nano", rope_scaling=scaling, tie_word_embeddings=tied, max_position_embeddings=1024)
    model = random_model(config)
    ids = torch.randint(0, 512, (1, 300), generator=torch.Generator().manual_seed(2))
    assert (model(ids) - transformers_twin(model)(ids).logits).abs().max() <= 1e-5


def test_gradients_equal_transformers(random_model: Callable[..., LlamaForCausalLM]) -> None:
    model = random_model(ModelConfig(preset="nano", tie_word_embeddings=True))
    twin = transformers_twin(model)
    ids = torch.randint(0, 512, (2, 48), generator=torch.Generator().manual_seed(3))
    F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    F.cross_entropy(twin(ids).logits.flatten(0, 1), ids.flatten()).backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_dense_document_mask_is_each_document_alone(random_model: Callable[..., LlamaForCausalLM]) -> None:
    model = random_model(ModelConfig(preset="nano"))
    ids = torch.randint(0, 512, (3, 80), generator=torch.Generator().manual_seed(4))
    documents = parted(3, 80)
    masked = model(ids, mask=DocumentMask.build(documents, "cpu"))
    for row in range(3):
        start = 0
        for length in documents[row].unique_consecutive(return_counts=True)[1].tolist():
            alone = model(ids[row : row + 1, start : start + length])[0]
            torch.testing.assert_close(masked[row, start : start + length], alone, rtol=0, atol=2e-5)
            start += length


def test_cu_seqlens_name_the_starts_of_all_documents() -> None:
    ids = torch.tensor([[0, 0, 1, 1, 1], [1, 2, 2, 2, 2]])
    mask = DocumentMask.build(ids, "cpu", dense=False)
    assert mask.cu_seqlens is not None
    assert mask.cu_seqlens.tolist()[:5] == [0, 2, 5, 6, 10]
    assert set(mask.cu_seqlens.tolist()[4:]) == {10}, "empty documents pad the rest"
    assert mask.max_seqlen == 5
    assert mask.dense is None


@pytest.mark.skipif(not has_varlen_attention(), reason="needs CUDA and torch with causal grouped varlen_attn")
def test_varlen_attention_equals_the_dense_mask(random_model: Callable[..., LlamaForCausalLM]) -> None:
    model = random_model(ModelConfig(preset="nano", head_dim=32)).to("cuda", torch.bfloat16)
    ids = torch.randint(0, 512, (3, 160), device="cuda")
    documents = parted(3, 160)
    results = []
    for dense in (False, True):
        model.zero_grad()
        logits = model(ids, mask=DocumentMask.build(documents, "cuda", dense=dense))
        F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten()).backward()
        results.append((logits.float(), model.model.embed_tokens.weight.grad.float()))
    for varlen, dense_one in zip(*results, strict=True):
        torch.testing.assert_close(varlen, dense_one, rtol=5e-2, atol=5e-2)


def test_the_head_runs_inside_forward(random_model: Callable[..., LlamaForCausalLM]) -> None:
    for tied in (False, True):
        model = random_model(ModelConfig(preset="nano", tie_word_embeddings=tied))
        ids = torch.arange(6)[None]
        hidden, weight = model(ids, head=lambda hidden, weight: (hidden, weight))
        assert hidden.shape == (1, 6, 64)
        assert weight is (model.model.embed_tokens.weight if tied else model.lm_head.weight)
        torch.testing.assert_close(F.linear(hidden, weight), model(ids))


def test_meta_device_and_bf16_leave_the_rotary_angles_alone(random_model: Callable[..., LlamaForCausalLM]) -> None:
    config = ModelConfig(preset="nano", rope_scaling=RopeScaling(original_max_position_embeddings=32))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu").float()
    source = random_model(config)
    model.load_state_dict(source.state_dict())
    ids = torch.randint(0, 512, (1, 64), generator=torch.Generator().manual_seed(5))
    assert torch.equal(model(ids), source(ids))


@torch.no_grad()
def test_bf16_and_autocast_stay_near_fp32(random_model: Callable[..., LlamaForCausalLM]) -> None:
    model = random_model(ModelConfig(preset="nano"))
    ids = torch.randint(0, 512, (2, 64), generator=torch.Generator().manual_seed(6))
    exact = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(ids)
    pure = model.to(torch.bfloat16)(ids)
    assert mixed.dtype == pure.dtype == torch.bfloat16
    for rough in (mixed, pure):
        assert (rough.float() - exact).norm() / exact.norm() < 0.02


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = ModelConfig(preset="nano")
    ours = LlamaForCausalLM(config)
    ours.init_weights(7)
    with torch.device("meta"):
        meta = LlamaForCausalLM(config)
    meta.to_empty(device="cpu")
    torch.manual_seed(123)
    meta.init_weights(7)
    for (name, a), b in zip(ours.named_parameters(), meta.parameters(), strict=True):
        assert torch.equal(a, b), name
    meta.init_weights(8)
    assert not torch.equal(ours.model.embed_tokens.weight, meta.model.embed_tokens.weight)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_a_fresh_model_knows_nothing(tied: bool) -> None:
    model = LlamaForCausalLM(ModelConfig(preset="mini", num_hidden_layers=2, tie_word_embeddings=tied))
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    ids, targets = (torch.randint(0, 4096, (2, 64), generator=generator) for _ in range(2))
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(torch.tensor(4096.0).log().item(), abs=0.1)


def test_blocks_compile_as_one_graph_each_kind(tmp_path: object) -> None:
    """Runs in a separate process, because compilation leaves state behind; the eager backend needs no compiler."""
    code = """
import torch
from puna.model.config import ModelConfig
from puna.model.llama import DocumentMask, LlamaForCausalLM
model = LlamaForCausalLM(ModelConfig(preset="nano", num_hidden_layers=6))
model.init_weights(0)
ids = torch.randint(0, 512, (2, 32))
masks = [DocumentMask.build(torch.randint(0, 2, (2, 32)), "cpu") for _ in range(3)]
expected = [model(ids), *(model(ids, mask=mask) for mask in masks)]
for block in model.model.layers:
    block.compile(fullgraph=True, backend="eager")
got = [model(ids), *(model(ids, mask=mask) for mask in masks)]
assert all(torch.equal(a, b) for a, b in zip(expected, got))
got[-1].sum().backward()
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2", "one graph without and one with a document mask, shared by all blocks"
