"""Which tokens are of control: what the files declare, and nothing that merely looks like it. The library judges."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from puna.core.errors import PunaError
from puna.engine.generate import load_engine
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import save_model
from puna.text.tokenizer import Tokenizer

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
SPECIAL = PLAIN | {"special": True}


def foreign(trained: Tokenizer, added: list[dict[str, Any]], ordinary: tuple[str, ...] = ()) -> dict[str, Any]:
    """A byte-level tokenizer.json with these added tokens, and ordinary tokens that spell something else."""
    spec = trained.spec
    spec["post_processor"] = None
    vocab = spec["model"]["vocab"]
    for name in ordinary:
        vocab[name] = len(vocab)
    spec["added_tokens"] = [token | {"id": len(vocab) + i} for i, token in enumerate(added)]
    return spec


def write(folder: Path, spec: dict[str, Any], **files: Any) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


QWEN = [SPECIAL | {"content": name} for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]


def test_ordinary_tokens_never_end_a_text(trained: Tokenizer, tmp_path: Path) -> None:
    """Qwen3's vocabulary has an ordinary token `</s>`."""
    spec = foreign(trained, QWEN, ("</s>", "<s>", "<eos>", "<end_of_turn>"))
    end, _, turn = (token["id"] for token in spec["added_tokens"])
    for files in ({}, {"tokenizer_config": {"eos_token": "<|im_end|>", "bos_token": None}}):
        tokenizer = Tokenizer.load(write(tmp_path, spec, **files))
        assert (tokenizer.bos_id, tokenizer.eos_ids) == (None, [end, turn])
        assert tokenizer.choices == (
            f"no token begins a text, <|endoftext|> ({end}) ends a document, "
            f"and generation also stops at <|im_end|> ({turn})"
        )


def test_added_tokens_that_are_not_special_end_nothing(trained: Tokenizer, tmp_path: Path) -> None:
    spec = foreign(trained, [PLAIN | {"content": "</s>"}, SPECIAL | {"content": "[STOP]"}])
    tokenizer = Tokenizer.load(write(tmp_path, spec))
    assert tokenizer.eos_ids == []
    assert tokenizer.choices == "no token begins a text, and no token ends one: it declares none"
    declared = Tokenizer.load(write(tmp_path, spec, tokenizer_config={"eos_token": {"content": "[STOP]"}}))
    assert declared.eos_ids == [spec["added_tokens"][1]["id"]]


@pytest.mark.parametrize("name", ["<|end|>", "</s>", "a"])
def test_a_declared_end_is_one_wherever_it_stands(name: str, trained: Tokenizer, tmp_path: Path) -> None:
    spec = foreign(trained, [SPECIAL | {"content": "<|end|>"}], ("</s>",))
    ids = spec["model"]["vocab"] | {token["content"]: token["id"] for token in spec["added_tokens"]}
    for file in ("tokenizer_config", "special_tokens_map"):
        folder = tmp_path / file
        folder.mkdir()
        assert Tokenizer.load(write(folder, spec, **{file: {"eos_token": name}})).eos_ids == [ids[name]]


def test_a_declared_end_of_text_comes_before_one_found_by_name(trained: Tokenizer, tmp_path: Path) -> None:
    spec = foreign(trained, [SPECIAL | {"content": name} for name in ("</s>", "<|endoftext|>")])
    tokenizer = Tokenizer.load(write(tmp_path, spec, tokenizer_config={"eos_token": "<|endoftext|>"}))
    assert tokenizer.eos_ids == [spec["added_tokens"][1]["id"]]


def test_the_begin_token_is_the_template_s(trained: Tokenizer, tmp_path: Path) -> None:
    spec = foreign(trained, [SPECIAL | {"content": name} for name in ("<s>", "[BEGIN]")])
    number = spec["added_tokens"][1]["id"]
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[BEGIN]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"[BEGIN]": {"id": "[BEGIN]", "ids": [number], "tokens": ["[BEGIN]"]}},
    }
    assert Tokenizer.load(write(tmp_path, spec)).bos_id == number
    assert Tokenizer.load(write(tmp_path, spec, tokenizer_config={"bos_token": "<s>"})).bos_id == number - 1


def test_one_list_of_ends_for_generation_and_the_tokenizer(trained: Tokenizer, tmp_path: Path) -> None:
    spec = foreign(trained, [*QWEN, SPECIAL | {"content": "<|call|>"}])
    numbers = [token["id"] for token in spec["added_tokens"]]
    config = ModelConfig(preset="nano", vocab_size=1100)
    model = LlamaForCausalLM(config)
    save_model(tmp_path, config, model.state_dict(), None, dtype=model.head_weight.dtype, lineage={})
    write(tmp_path, spec, generation_config={"eos_token_id": [numbers[3], numbers[0], 1099]})
    engine = load_engine(tmp_path)
    assert engine.tokenizer is not None
    assert engine.tokenizer.eos_ids == [numbers[0], numbers[2], numbers[3]], "1099 is no token of this tokenizer"
    assert engine.end_ids == {*engine.tokenizer.eos_ids, 1099}
    for wrong in ("2", 1.5, [True], [-1]):
        write(tmp_path, spec, generation_config={"eos_token_id": wrong})
        with pytest.raises(PunaError, match=r"generation_config\.json: eos_token_id is"):
            Tokenizer.load(tmp_path)


NAMES = ["<date>", "é", "<naïve>", "日本", " lead", "Ġx", "a b", "▁x", "Ċ", "hello", "</s>", "<tool_response>"]


@pytest.mark.parametrize("seed", range(12))
def test_added_tokens_are_read_and_written_as_the_library_does(seed: int, trained: Tokenizer) -> None:
    dice = random.Random(seed)
    names = dice.sample(NAMES, 7)  # of which those that are special are not in the vocabulary as well
    added = [PLAIN | {"content": name, "special": name[0] in "<日" and dice.random() < 0.5} for name in names]
    for number, token in enumerate(added):
        token["normalized"] = not token["special"]
        token["lstrip"], token["single_word"] = number == 1, number == 2
    spec = foreign(trained, added)
    for token in spec["added_tokens"]:
        token["id"] = dice.randrange(2000)  # the library numbers them itself
    theirs, ours = tokenizers.Tokenizer.from_str(json.dumps(spec)), Tokenizer(spec)
    special = {token["content"] for token in added if token["special"]}
    texts = ["".join(dice.choices([*NAMES, " ", "x", "say "], k=9)) for _ in range(60)]
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, special=True) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)
        if not any(name in text for name in special):
            assert ours.encode(text) == ids, "added tokens that are not special are ordinary text"


def test_sentencepiece_added_tokens_are_written_as_the_library_does() -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁ab"]
    spec = {
        "version": "1.0",
        "added_tokens": [SPECIAL | {"id": id, "content": pieces[id]} for id in range(3)]
        + [PLAIN | {"id": 0, "content": name} for name in ("<date>", "▁x", "日本", "é")],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
        | {"vocab": {piece: id for id, piece in enumerate(pieces)}, "merges": ["▁ a", "▁a b"]},
    }
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    dice = random.Random(0)
    for steps in ([replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip], [metaspace]):
        spec["decoder"] = {"type": "Sequence", "decoders": steps}
        theirs, ours = tokenizers.Tokenizer.from_str(json.dumps(spec)), Tokenizer(spec)
        for _ in range(200):
            ids = [dice.choice([1, 2, *range(260, len(pieces) + 4)]) for _ in range(dice.randint(1, 5))]
            for skip in (False, True):
                assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip), ids


def test_a_special_token_within_merges_is_out_of_reach(trained: Tokenizer) -> None:
    spec = trained.spec
    merge = spec["model"]["merges"][0]
    spec["added_tokens"].append(SPECIAL | {"id": 0, "content": merge.replace(" ", "")})
    tokenizer = Tokenizer(spec)
    number = spec["model"]["vocab"][merge.replace(" ", "")]
    text = tokenizer.decode([number]) * 3
    assert number not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_damage_is_said_without_the_library_s_words(trained: Tokenizer, tmp_path: Path) -> None:
    for change in ({"decoder": {"type": "ByteLevel", "more": {}}}, {"model": {"type": "BPE", "vocab": {"a": 0}}}):
        spec = trained.spec | change | {"normalizer": {"type": "Nothing"}}
        with pytest.raises(PunaError, match=r"tokenizer\.json is not a valid tokenizer\.json") as caught:
            Tokenizer.load(write(tmp_path, spec))
        assert not {"enum", "Wrapper", "Error", "variant"} & set(str(caught.value).replace(".", " ").split())
