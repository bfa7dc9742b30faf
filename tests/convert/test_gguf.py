"""GGUF files: read back with the gguf package, run with transformers, refused where they would be wrong."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, TokenType

import puna.convert.gguf as room
from puna.cli.main import main
from puna.convert.gguf import SCHEMES, export_gguf, tensor_type
from puna.core.errors import PunaError
from puna.model.llama import rotary_frequencies
from puna.model.store import load_config, load_model, save_model
from puna.text.bytelevel import END_OF_TURN, GPT2_PATTERN, bpe_spec
from puna.text.templates import CHAT_TEMPLATE
from puna.text.tokenizer import Tokenizer

LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "all heads": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 32},
    "llama3 rope": {"rope_scaling": LLAMA3_ROPE},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tensors_are_the_models(make: Callable[..., Path], tmp_path: Path, shape: dict[str, Any]) -> None:
    directory = make(**shape)
    export_gguf(directory, tmp_path / "x.gguf", "f32")
    model, reader = load_model(directory), GGUFReader(tmp_path / "x.gguf")
    config = model.config
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert ("output.weight" in found) == (not config.tie_word_embeddings)
    assert np.array_equal(found["token_embd.weight"], model.model.embed_tokens.weight.detach())
    block, attention = model.model.layers[1], model.model.layers[1].self_attn
    for name, weight in {
        "ffn_down": block.mlp.down_proj.weight,
        "attn_v": attention.v_proj.weight,
        "attn_norm": block.input_layernorm.weight,
        "ffn_norm": block.post_attention_layernorm.weight,
    }.items():
        assert np.array_equal(found[f"blk.1.{name}.weight"], weight.detach())
    # llama.cpp turns rows 2i and 2i + 1 of a head together, transformers i and i + half.
    half = config.head_dim // 2
    for name, weight in {"attn_q": attention.q_proj.weight, "attn_k": attention.k_proj.weight}.items():
        ours = weight.detach().unflatten(0, (-1, config.head_dim))
        theirs = found[f"blk.1.{name}.weight"].reshape(ours.shape)
        assert np.array_equal(theirs[:, 0::2], ours[:, :half])
        assert np.array_equal(theirs[:, 1::2], ours[:, half:])
    if config.rope_scaling and config.rope_scaling.rope_type == "llama3":
        plain = rotary_frequencies(config.model_copy(update={"rope_scaling": None}))
        assert np.allclose(plain / found["rope_freqs.weight"], rotary_frequencies(config), rtol=1e-6)
        assert found["rope_freqs.weight"].max() == pytest.approx(8)
    else:
        assert "rope_freqs.weight" not in found
    keys = fields(tmp_path / "x.gguf")
    assert keys["llama.attention.key_length"] == keys["llama.rope.dimension_count"] == config.head_dim
    assert keys["llama.attention.head_count_kv"] == config.num_key_value_heads
    assert keys.get("llama.rope.scaling.factor") == (4.0 if "linear" in str(shape) else None)


@pytest.mark.parametrize("shape", ["plain", "tied", "all heads"])
def test_transformers_computes_the_same_from_the_file(make: Callable[..., Path], tmp_path: Path, shape: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only")
    directory = make(**SHAPES[shape])
    export_gguf(directory, tmp_path / "x.gguf", "f32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="x.gguf")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, load_model(directory)(ids), atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_reads_back(make: Callable[..., Path], tmp_path: Path, scheme: str) -> None:
    directory = make(hidden_size=256, num_attention_heads=8, intermediate_size=160, head_dim=32)
    written = export_gguf(directory, tmp_path / "x.gguf", scheme)
    assert written.verified
    assert written.bytes == (tmp_path / "x.gguf").stat().st_size
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "x.gguf").tensors}
    assert kinds["output_norm.weight"] == "F32"
    expected = {"q4_0": ("Q4_0", "Q4_0", "Q6_K"), "q4_k_m": ("Q4_K", "Q8_0", "Q6_K")}.get(scheme, (scheme.upper(),) * 3)
    assert tuple(kinds[n] for n in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight")) == expected
    assert fields(tmp_path / "x.gguf")["general.file_type"] == SCHEMES[scheme][1]
    assert bool(written.fallbacks) == (scheme == "q4_k_m")


def test_the_mix_of_q4_k_m_is_the_published_one() -> None:
    from puna.model.config import ModelConfig

    config = ModelConfig(preset="llama3-8b")  # 32 layers
    types = {name: tensor_type(name, shape, "q4_k_m", config).name for name, shape in config.parameter_shapes().items()}
    more = [i for i in range(32) if types[f"model.layers.{i}.mlp.down_proj.weight"] == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [i for i in range(32) if types[f"model.layers.{i}.self_attn.v_proj.weight"] == "Q6_K"] == more
    assert types["lm_head.weight"] == "Q6_K"
    assert types["model.embed_tokens.weight"] == types["model.layers.0.self_attn.q_proj.weight"] == "Q4_K"
    large = ModelConfig(preset="llama3-70b")
    name = "model.layers.{}.self_attn.v_proj.weight"
    shape = large.parameter_shapes()[name.format(10)]
    assert tensor_type(name.format(10), shape, "q4_k_m", large).name == "Q5_K"


def test_vocabulary_and_metadata(make: Callable[..., Path], tmp_path: Path, tokenizer: Tokenizer) -> None:
    directory = make(stage="chat", dtype=torch.bfloat16)
    (directory / "generation_config.json").write_text('{"temperature": 0.5, "top_k": 7}')
    out = tmp_path / "x.gguf"
    assert main(["export", str(directory), "--to", "gguf", "-o", str(out)]) == 0
    keys = fields(out)
    assert keys["general.file_type"] == SCHEMES["bf16"][1], "as it is stored"
    assert keys["general.name"] == "demo"
    assert keys["general.license"] == "CC-BY-4.0"
    assert keys["general.base_model.0.name"] == "first", "and not where it lay"
    assert keys["general.sampling.temp"] == 0.5
    assert keys["general.sampling.top_k"] == 7
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "llama-bpe")
    assert keys["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert keys["tokenizer.ggml.bos_token_id"] == tokenizer.bos_id
    assert keys["tokenizer.ggml.eos_token_id"] == tokenizer.eos_ids[0]
    assert keys["tokenizer.ggml.eot_token_id"] == tokenizer.special[END_OF_TURN]
    assert keys["tokenizer.ggml.add_bos_token"] is True
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == 340
    spec = tokenizer.spec
    assert all(tokens[number] == token for token, number in spec["model"]["vocab"].items())
    assert keys["tokenizer.ggml.merges"] == spec["model"]["merges"]
    assert kinds[tokenizer.special[END_OF_TURN]] == TokenType.CONTROL
    assert kinds[tokenizer.special["<think>"]] == TokenType.USER_DEFINED
    assert kinds[tokenizer.vocab_size :] == [TokenType.UNUSED] * (340 - tokenizer.vocab_size)


def changed(tokenizer: Tokenizer, **model: Any) -> Tokenizer:
    spec = tokenizer.spec
    spec["model"] |= model
    return Tokenizer(spec)


def test_other_tokenizers_are_refused(make: Callable[..., Path], tmp_path: Path, tokenizer: Tokenizer) -> None:
    spec = tokenizer.spec
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    gpt2 = Tokenizer(bpe_spec(vocab, merges, pattern=GPT2_PATTERN, specials=tokenizer.special, bos=None))
    normalized = Tokenizer({**spec, "normalizer": {"type": "NFC"}})
    unreachable = changed(tokenizer, ignore_merges=False, merges=merges[1:])
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    llama2 = Tokenizer({**spec, "pre_tokenizer": metaspace, "decoder": metaspace})
    for words, reason in (
        (gpt2, "its split pattern is"),
        (normalized, "normalizer NFC"),
        (unreachable, "its merges never make"),
        (llama2, "SentencePiece-like"),
    ):
        with pytest.raises(PunaError, match=reason):
            export_gguf(make(words=words), tmp_path / "x.gguf", "f32")
        assert not list(tmp_path.glob("*.gguf*"))
    export_gguf(make(words=changed(tokenizer, ignore_merges=False)), tmp_path / "x.gguf", "f32")


def test_nothing_is_left_of_an_export_that_ends_early(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make()
    stored, calls = room._stored, [0]

    def stops(error: BaseException) -> Any:
        def part(*details: Any) -> Any:
            calls[0] += 1
            if calls[0] % 5 == 0:
                raise error
            return stored(*details)

        return part

    for error, seen in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "full"), PunaError)):
        monkeypatch.setattr(room, "_stored", stops(error))
        with pytest.raises(seen):
            export_gguf(directory, tmp_path / "out/x.gguf", "f32")
        assert not list((tmp_path / "out").iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(PunaError, match=r"x\.gguf needs .* free"):
        export_gguf(directory, tmp_path / "out/x.gguf", "f32")


def test_a_file_that_reads_back_differently_is_not_kept(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, write = make(), room._write

    def damaged(writer: Any, path: Path, *rest: Any) -> None:
        write(writer, path, *rest)
        with open(path, "r+b") as file:
            file.seek(-2000, 2)
            file.write(b"\x00" * 64)

    monkeypatch.setattr(room, "_write", damaged)
    for scheme in ("f32", "q8_0"):
        with pytest.raises(PunaError, match="was read back and"):
            export_gguf(directory, tmp_path / "x.gguf", scheme)
        assert not list(tmp_path.glob("*x.gguf*"))
    export_gguf(directory, tmp_path / "x.gguf", "f32", verify=False)


def test_weights_that_cannot_be_written(make: Callable[..., Path], tmp_path: Path, tokenizer: Tokenizer) -> None:
    directory = make()
    state = load_model(directory).state_dict()
    for value, scheme, reason in ((1e6, "f16", "beyond float16"), (float("nan"), "f32", "not finite")):
        state["model.layers.0.mlp.up_proj.weight"][0, 0] = value
        save_model(directory, load_config(directory), state, tokenizer, dtype=torch.float32, lineage={})
        with pytest.raises(PunaError, match=reason):
            export_gguf(directory, tmp_path / "x.gguf", scheme)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{demo}", "--to", "gguf", "--quantize", "q4_k"], "Did you mean 'q4_k_m'?"),
        (["{demo}", "--to", "gguf", "--dtype", "int3"], "--dtype int3 is not known"),
        (["{demo}", "--to", "gguf", "--dtype", "f16", "--quantize", "q8_0"], "were both given"),
        (["{demo}", "--to", "ggml"], "--to ggml is not a format. Known: gguf"),
        (["{demo}", "--to", "gguf", "-o", "{demo}/config.json"], "exists already"),
        (["{demo}", "--to", "ollama", "-o", "{demo}"], "exists already"),
        (["{demo}/..", "--to", "gguf"], "is not a model directory"),
        (["nosuch", "--to", "gguf"], "nosuch does not exist"),
        (["{demo}", "--to", "onnx", "--quantize", "q8_0"], "supports only f32"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    make: Callable[..., Path], capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    demo = str(make())
    assert main(["export", *(word.replace("{demo}", demo) for word in words)]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err.splitlines()[-1]
    assert shown.out == ""
