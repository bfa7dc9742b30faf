"""The tokenizer in a GGUF file: tokens, merges, token types, and the name of the pre-tokenizer.

llama.cpp does not read a tokenizer's regular expression; it supports some by name. "llama-bpe" is Llama 3's: its split
pattern, tokens before merges, the begin token first. A tokenizer that differs in any of these would silently give other
ids, so it is rejected with a message that says what differs.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import tokenizers
from gguf import GGUFWriter, TokenType

from puna.core.errors import PunaError
from puna.text.bytelevel import END_OF_MESSAGE, END_OF_TEXT, END_OF_TURN, LLAMA3_PATTERN, PAD
from puna.text.tokenizer import Tokenizer


class Vocabulary(NamedTuple):
    """The parts of a tokenizer stored in GGUF. tokens, kinds: (vocab_size,) of the model."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    bos: int | None
    eos: int | None
    eot: int | None
    eom: int | None
    pad: int | None


def vocabulary(tokenizer: Tokenizer, vocab_size: int, name: str) -> Vocabulary:
    """The vocabulary for a model with `vocab_size` rows; rows beyond the tokenizer's become unused tokens.

    Raises PunaError if llama.cpp's "llama-bpe" does not reproduce the tokenizer.
    """
    spec = tokenizer.spec
    difference = _difference(spec)
    if difference:
        raise PunaError(
            f"{name}: llama.cpp cannot reproduce this tokenizer: {difference}.",
            "GGUF export supports tokenizers like Llama 3's; use the Hugging Face folder for others.",
        )
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    kinds = [int(TokenType.UNUSED)] * vocab_size
    for token, number in spec["model"]["vocab"].items():
        tokens[number], kinds[number] = token, int(TokenType.NORMAL)
    for added in spec.get("added_tokens") or []:
        # Servers hide control tokens. The markers (<think>, <tool_call>) must stay visible, hence "user defined".
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], int(kind)
    special, ends = tokenizer.special, tokenizer.eos_ids
    eos = special.get(END_OF_TEXT, ends[0] if ends else None)
    eot = special.get(END_OF_TURN, next((i for i in ends if i != eos), None))
    eom = special.get(END_OF_MESSAGE, next((i for i in ends if i not in (eos, eot)), None))
    return Vocabulary(
        tokens,
        kinds,
        spec["model"]["merges"],
        tokenizer.bos_id,
        eos,
        eot,
        eom,
        special.get(PAD),
    )


def write_vocabulary(writer: GGUFWriter, words: Vocabulary, chat_template: str | None) -> None:
    """Add the tokenizer's keys to a GGUF file."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    writer.add_token_merges(words.merges)
    for add, number in (
        (writer.add_bos_token_id, words.bos),
        (writer.add_eos_token_id, words.eos),
        (writer.add_eot_token_id, words.eot),
        (writer.add_eom_token_id, words.eom),
        (writer.add_pad_token_id, words.pad),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(words.bos is not None)
    writer.add_add_eos_token(False)
    if chat_template:
        writer.add_chat_template(chat_template)


def _difference(spec: Mapping[str, Any]) -> str:
    """How a tokenizer.json differs from "llama-bpe"; empty if it does not."""
    model = spec["model"]
    if model.get("byte_fallback") or "▁" in json.dumps(
        [spec.get("normalizer"), spec.get("decoder"), spec.get("pre_tokenizer")], ensure_ascii=False
    ):
        return "it is SentencePiece-like (as Llama 2's), and its merges alone lack what llama.cpp needs"
    if spec.get("normalizer"):
        return f"it changes text before splitting it (normalizer {spec['normalizer'].get('type')})"
    difference = _pre_tokenizer_difference(spec.get("pre_tokenizer") or {})
    if difference:
        return difference
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            return f"its {key} is {model[key]!r}, not empty"
    if any(not isinstance(merge, str) for merge in model["merges"]):
        return "a token contains a space that is not written as a byte"
    for added in spec.get("added_tokens") or []:
        for key in ("lstrip", "rstrip", "single_word"):
            if added.get(key):
                return f"its token {added['content']} is matched with {key}"
    return "" if model.get("ignore_merges") else _merge_difference(model)


def _pre_tokenizer_difference(pre: Mapping[str, Any]) -> str:
    parts = pre.get("pretokenizers") if pre.get("type") == "Sequence" else [pre]
    kinds = [part.get("type") for part in parts or []]
    if kinds != ["Split", "ByteLevel"]:
        found = " + ".join(str(kind) for kind in kinds)
        return f"it splits text by {found}, not by Split + ByteLevel with Llama 3's pattern"
    split, level = parts or []
    pattern = (split.get("pattern") or {}).get("Regex")
    if pattern != LLAMA3_PATTERN:
        return f"its split pattern is {_shortened(pattern)!r}, not Llama 3's"
    if split.get("behavior") != "Isolated" or split.get("invert"):
        return f"its pattern is applied as {split.get('behavior')}, not Isolated"
    if level.get("add_prefix_space") or level.get("use_regex", True):
        return "its ByteLevel step adds a space or splits again"
    return ""


def _merge_difference(model: Mapping[str, Any]) -> str:
    """Without ignore_merges some tokens may be unreachable by merges, but llama.cpp would use them anyway."""
    plain = {"version": "1.0", "added_tokens": [], "model": {**model, "type": "BPE"}}
    backend = tokenizers.Tokenizer.from_str(json.dumps(plain, ensure_ascii=False))
    names = list(model["vocab"])
    encodings = backend.encode_batch_fast(names, add_special_tokens=False)
    cut = [name for name, encoding in zip(names, encodings, strict=True) if len(encoding.ids) != 1]
    cut = [name for name in cut if not name.startswith("<|")]
    return f"its merges never make {len(cut):,} of its tokens ({_shortened(cut[0])!r})" if cut else ""


def _shortened(text: str | None) -> str | None:
    return text if text is None or len(text) <= 60 else text[:57] + "…"
