"""On a GPU: all attention backends agree, captured steps agree with others, and steps overlap."""

from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
import torch

from puna.engine import attention
from puna.engine.attention import PagedAttention, QuerySpan
from puna.engine.core.kv_cache import BlockPool
from puna.engine.cuda.paged_attention import BLOCK_SIZES, AttentionBackend
from puna.engine.device_copy import HostCopy, to_device
from puna.engine.generate import Engine, SamplingParams
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.torch_compat import has_compiled_flex, has_paged_attention

Maker = Callable[..., LlamaForCausalLM]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    intermediate_size=512,
    max_position_embeddings=2048,
)
PROMPTS = [[*range(i, i + 100 * i + 1)] for i in range(1, 5)]
PARAMS = SamplingParams(max_tokens=40, temperature=0, ignore_end=True)


@pytest.fixture(params=["flash", "flex", "gather"])
def backend(request: pytest.FixtureRequest) -> Iterator[AttentionBackend]:
    if request.param == "flash" and not has_paged_attention():
        pytest.skip("needs torch 2.12 and Ampere: a varlen_attn that reads blocks")
    if request.param == "flex" and not has_compiled_flex():
        pytest.skip("needs Triton, for FlexAttention")
    with patch.object(attention, "attention_backend", lambda *_: request.param):
        yield request.param


@torch.inference_mode()
def test_each_way_to_attention_gives_what_the_whole_gives(random_model: Maker, backend: AttentionBackend) -> None:
    model = random_model(CONFIG).to("cuda", torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 512, (n,), generator=generator).cuda() for n in (300, 7, 129, 600)]
    pool = BlockPool(CONFIG, 20, BLOCK_SIZES["flash"], device="cuda", dtype=torch.bfloat16)
    tables = [[3, 0], [5], [7], [9, 1, 4]]
    got: list[list[torch.Tensor]] = [[] for _ in texts]
    cuts = [[150, 1, 149], [6, 1], [128, 1], [599, 1]]
    done = [0] * len(texts)
    for part in range(3):
        rows = [i for i, cut in enumerate(cuts) if part < len(cut)]
        spans = [QuerySpan(tables[i], done[i], cuts[i][part]) for i in rows]
        ids = torch.cat([texts[i][span.start : span.end] for i, span in zip(rows, spans, strict=True)])
        positions = torch.cat([torch.arange(span.start, span.end, device="cuda") for span in spans])
        logits = model(ids[None], positions=positions[None], cache=PagedAttention.of(pool, spans))[0]
        for i, piece in zip(rows, logits.split([span.count for span in spans]), strict=True):
            got[i].append(piece)
            done[i] += len(piece)
    for text, pieces in zip(texts, got, strict=True):
        torch.testing.assert_close(torch.cat(pieces), model(text[None])[0], rtol=0.05, atol=0.2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_captured_steps_give_what_others_give(random_model: Maker, dtype: torch.dtype) -> None:
    model = random_model(CONFIG).to("cuda", dtype)
    plain = Engine(model, None, decode_buckets=False, overlap=False, max_batch=8)
    captured = Engine(model, None, max_batch=8)
    expected = plain.generate(PROMPTS, PARAMS)
    for _ in range(2):
        for ours, theirs in zip(captured.generate(PROMPTS, PARAMS), expected, strict=True):
            close(model, ours.ids, theirs.ids, ours.logprobs, theirs.logprobs)
    core = captured._core
    assert core.runner.decode_graphs is not None
    assert not core.runner.decode_graphs.failed
    assert core.runner.decode_graphs.sizes
    assert core.overlapped_steps > core.steps / 2
    core.scheduler.pool.check()
    assert core.scheduler.pool.counts()["held"] == 0


def test_new_weights_are_those_of_captured_steps(random_model: Maker) -> None:
    first, second = (random_model(CONFIG, seed).to("cuda", torch.bfloat16) for seed in (0, 1))
    engine = Engine(first, None)
    engine.generate(PROMPTS, PARAMS)
    engine.update_weights((name, parameter.detach().clone()) for name, parameter in second.named_parameters())
    theirs = Engine(second, None, decode_buckets=False, overlap=False).generate(PROMPTS, PARAMS)
    for ours, expected in zip(engine.generate(PROMPTS, PARAMS), theirs, strict=True):
        close(second, ours.ids, expected.ids, ours.logprobs, expected.logprobs)


def test_reading_a_step_does_not_wait_for_the_next_one() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    readout = HostCopy(to_device([1, 2, 3], device) * 2)
    for _ in range(50):
        matrix = matrix @ matrix
        matrix /= matrix.norm()
    later = torch.cuda.Event()
    later.record()
    assert readout.tolist() == [2, 4, 6]
    assert not later.query(), "the step submitted afterwards is still running"


def close(model: LlamaForCausalLM, ours: list[int], theirs: list[int], our: list[float], their: list[float]) -> None:
    """Assert equal tokens; where they diverge, both tokens must have nearly the same probability."""
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(ours))
    atol = 0.15 if model.head_weight.dtype == torch.bfloat16 else 1e-3
    assert our[:same] == pytest.approx(their[:same], abs=atol)
    if same < len(ours):
        assert our[same] == pytest.approx(their[same], abs=atol)
