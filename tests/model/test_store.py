"""Model directories: compatibility with transformers, shards, and every way in which a directory can be wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from puna.core.errors import PunaError
from puna.model import store
from puna.model.config import ModelConfig, RopeScaling
from puna.model.llama import LlamaForCausalLM
from puna.model.store import load_config, load_lineage, load_model, load_weights, save_model

Maker = Callable[..., LlamaForCausalLM]
IDS = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(0))


class Tokenizer:
    """Replaces puna.text's tokenizer, which this package does not import."""

    def __init__(self, vocab_size: int = 300) -> None:
        self.vocab_size, self.bos_id, self.eos_ids = vocab_size, 0, [1, 4]

    def save(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}")


def save(model: LlamaForCausalLM, directory: Path, dtype: torch.dtype = torch.float32, **more: object) -> None:
    values = {"tokenizer": Tokenizer(), "lineage": {"stage": "base"}, **more}
    save_model(directory, model.config, model.state_dict(), dtype=dtype, **values)  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path, random_model: Maker) -> Path:
    """A tied nano model in a directory."""
    save(random_model(ModelConfig(preset="nano", tie_word_embeddings=True)), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaling", [None, RopeScaling(original_max_position_embeddings=32)])
@torch.no_grad()
def test_transformers_opens_what_we_save(
    tmp_path: Path, random_model: Maker, tied: bool, scaling: RopeScaling | None
) -> None:
    model = random_model(ModelConfig(preset="nano", tie_word_embeddings=tied, rope_scaling=scaling))
    save(model, tmp_path / "m", max_shard_bytes=100_000)
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 1
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.float32
    assert theirs.generation_config.eos_token_id == [1, 4]
    assert (theirs(IDS).logits - model(IDS)).abs().max() <= 1e-5

    ours = load_model(tmp_path / "m")
    assert ours.config.to_hf() == model.config.to_hf()
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name

    greedy = theirs.generate(IDS[:1], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    ids = IDS[:1]
    for _ in range(20):
        ids = torch.cat((ids, ours(ids)[:, -1:].argmax(-1)), 1)
    assert torch.equal(greedy, ids)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_we_open_what_transformers_saved(tmp_path: Path, tied: bool) -> None:
    config = transformers.LlamaConfig(**ModelConfig(preset="nano", tie_word_embeddings=tied).to_hf())
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "m", max_shard_size="60KB")
    assert (load_model(tmp_path / "m")(IDS) - theirs(IDS).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharded", [False, True])
@torch.no_grad()
def test_a_stored_head_is_tied_only_where_it_is_the_embedding(
    tmp_path: Path, dtype: torch.dtype, sharded: bool
) -> None:
    config = transformers.LlamaConfig(**ModelConfig(preset="nano", tie_word_embeddings=False).to_hf())
    theirs = transformers.LlamaForCausalLM(config).to(dtype)
    for own in (True, False):
        folder = tmp_path / str(own)
        if not own:
            theirs.lm_head.weight.copy_(theirs.model.embed_tokens.weight)
        theirs.save_pretrained(folder, max_shard_size="60KB" if sharded else "5GB")
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": True}))
        loaded = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ours = load_model(folder, dtype=torch.float32)
        assert ours.config.tie_word_embeddings is not own
        assert (ours(IDS) - loaded(IDS).logits).abs().max() <= 1e-5
        save(ours, tmp_path / f"{own} again")
        assert load_config(tmp_path / f"{own} again").tie_word_embeddings is not own


@torch.no_grad()
def test_one_row_makes_a_head_of_its_own_and_a_wrong_shape_is_named(tmp_path: Path, random_model: Maker) -> None:
    model = random_model(ModelConfig(preset="nano", tie_word_embeddings=True))
    save(model, tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1, -1] += 1
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "m/model.safetensors")
    assert not load_config(tmp_path / "m").tie_word_embeddings
    save_file(tensors | {"lm_head.weight": head[:-1]}, tmp_path / "m/model.safetensors")
    with pytest.raises(PunaError, match=r"lm_head\.weight is \[511, 64\], not \[512, 64\]"):
        load_model(tmp_path / "m")
    (tmp_path / "m/model.safetensors").unlink()
    assert load_config(tmp_path / "m").tie_word_embeddings, "without weights the file is all there is"


def test_shards_hold_everything_once_and_no_more_than_asked(tmp_path: Path, random_model: Maker) -> None:
    model = random_model(ModelConfig(preset="nano"))
    save(model, tmp_path / "m", max_shard_bytes=150_000)
    index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == model.config.num_parameters() * 4
    found: list[str] = []
    for file in sorted((tmp_path / "m").glob("*.safetensors")):
        tensors = load_file(file)
        assert {index["weight_map"][name] for name in tensors} == {file.name}
        assert sum(t.nbytes for t in tensors.values()) <= 150_000
        found += tensors
    assert sorted(found) == sorted(model.config.parameter_shapes())


def test_files_of_a_directory(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    ours = {"tokenizer.json", "puna.json", "README.md"}
    assert names == {"config.json", "generation_config.json", "model.safetensors"} | ours
    assert "lm_head.weight" not in load_file(saved / "model.safetensors"), "tied: the embedding is the head"
    config = json.loads((saved / "config.json").read_text())
    assert config["eos_token_id"] == [1, 4]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert load_lineage(saved)["stage"] == "base"
    assert f"\n# {saved.parent.name}\n" in (saved / "README.md").read_text()


def test_the_card_of_our_own_model_does_not_call_itself_llama(tmp_path: Path, random_model: Maker) -> None:
    save(random_model(ModelConfig(preset="nano")), tmp_path / "llama-mine")
    assert "\n# puna-llama-mine\n" in (tmp_path / "llama-mine/README.md").read_text()


def test_precision_is_kept_or_changed_as_asked(tmp_path: Path, random_model: Maker) -> None:
    model = random_model(ModelConfig(preset="nano"))
    save(model, tmp_path / "m", torch.bfloat16)
    assert load_model(tmp_path / "m").model.norm.weight.dtype == torch.bfloat16
    wide = load_model(tmp_path / "m", dtype=torch.float32)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(wide.model.layers[0].mlp.up_proj.weight, weight.bfloat16().float())


def test_saving_again_replaces_the_model_and_leaves_nothing_behind(tmp_path: Path, random_model: Maker) -> None:
    save(random_model(ModelConfig(preset="nano"), 0), tmp_path / "m", max_shard_bytes=100_000)
    second = random_model(ModelConfig(preset="nano"), 1)
    save(second, tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert [p.name for p in (tmp_path / "m").glob("*.safetensors*")] == ["model.safetensors"]
    assert torch.equal(load_model(tmp_path / "m").lm_head.weight, second.lm_head.weight)


def test_a_failed_save_leaves_the_model_that_was_there(
    saved: Path, random_model: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_: object, **__: object) -> None:
        from safetensors import SafetensorError

        raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')  # fmt: skip

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(PunaError, match="No space left"):
        save(random_model(ModelConfig(preset="nano")), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path: Path, random_model: Maker) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear.txt").write_text("kept")
    with pytest.raises(PunaError, match="not a model directory"):
        save(random_model(ModelConfig(preset="nano")), tmp_path / "letters")
    assert (tmp_path / "letters/dear.txt").read_text() == "kept"


def test_weights_go_into_a_model_of_other_precision(saved: Path, random_model: Maker) -> None:
    model = random_model(load_config(saved), 5).to(torch.bfloat16)
    load_weights(saved, model)
    assert torch.equal(model.model.norm.weight, load_model(saved).model.norm.weight.bfloat16())


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


NORM = "model.norm.weight"
DAMAGE = {
    "folder missing": (lambda d: shutil.rmtree(d), "not a folder"),
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json"),
    "config cut short": (lambda d: cut(d / "config.json"), "not valid JSON"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "not a JSON object"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
    "pickle only": (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "only pickled weights"),
    "weights cut short": (lambda d: cut(d / "model.safetensors"), r"model.safetensors is damaged or truncated"),
    "weights empty": (lambda d: (d / "model.safetensors").write_bytes(b""), r"model.safetensors is damaged"),
    "tensor missing": (lambda d: edit_weights(d / "model.safetensors", lambda t: t.pop(NORM)), f"1 missing .{NORM}"),
    "tensor extra": (
        lambda d: edit_weights(d / "model.safetensors", lambda t: t.update({"vision.weight": torch.ones(2)})),
        "does not have .vision.weight",
    ),
    "tensor misshaped": (
        lambda d: edit_weights(d / "model.safetensors", lambda t: t.update({NORM: torch.ones(63)})),
        r"model.norm.weight is \[63\], not \[64\]",
    ),
    "other shape": (lambda d: edit_json(d / "config.json", hidden_size=32), "of a different shape"),
    "untied without head": (
        lambda d: edit_json(d / "config.json", tie_word_embeddings=False),
        "1 missing .lm_head.weight",
    ),
    "integers": (
        lambda d: edit_weights(d / "model.safetensors", lambda t: t.update({NORM: torch.ones(64, dtype=torch.int8)})),
        "stored as I8",
    ),
    "quantized": (lambda d: edit_json(d / "config.json", quantization_config={"bits": 4}), "quantized"),
    "shard missing": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
        r"model-1.safetensors",
    ),
    "index escapes": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model/config.json"}}'),
        "missing",
    ),
    "index empty": (lambda d: (d / "model.safetensors.index.json").write_text("{}"), "no weight_map"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_in_a_sentence(saved: Path, kind: str) -> None:
    break_it, words = DAMAGE[kind]
    break_it(saved)
    with pytest.raises(PunaError, match=words):
        load_model(saved)


def test_rotary_tables_and_a_double_head_in_old_checkpoints_are_passed_over(saved: Path) -> None:
    reference = load_model(saved).state_dict()
    extra = {"lm_head.weight": torch.ones(512, 64), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    edit_weights(saved / "model.safetensors", lambda t: t.update(extra))
    assert torch.equal(load_model(saved).model.embed_tokens.weight, reference["model.embed_tokens.weight"])


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path, random_model: Maker) -> None:
    with pytest.raises(PunaError, match="513 tokens but the model's vocab_size is 512"):
        save(random_model(ModelConfig(preset="nano")), tmp_path / "m", tokenizer=Tokenizer(513))
    assert not (tmp_path / "m").exists()


def test_a_state_dict_that_does_not_fit_is_refused(tmp_path: Path, random_model: Maker) -> None:
    model = random_model(ModelConfig(preset="nano"))
    with pytest.raises(PunaError, match="missing"):
        save_model(
            tmp_path / "m",
            ModelConfig(preset="nano", num_hidden_layers=3),
            model.state_dict(),
            None,
            dtype=torch.float32,
            lineage={},
        )
    assert not (tmp_path / "m").exists()


def test_too_big_for_memory_is_said_before_anything_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Little:
        available = 100_000

    monkeypatch.setattr(store.psutil, "virtual_memory", Little)
    with pytest.raises(PunaError, match=r"KiB free\. The largest that fits has about 25k parameters"):
        load_model(saved)
