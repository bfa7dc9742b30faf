"""Interpret a third-party tokenizer.json: its control tokens and the bytes of each token.

The format is that of the `tokenizers` library. Two families are supported: byte-level (GPT-2, Llama 3, Qwen) and
SentencePiece-like (Llama 2), where U+2581 stands for a space and <0x0A> for a byte.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from puna.core.errors import PunaError
from puna.text.bytelevel import MARKERS


def without_control(spec: Mapping[str, Any], control: set[str]) -> dict[str, Any]:
    """The same tokenizer.json without control tokens, so that no text can become one.

    Other added tokens (runs of spaces in some tokenizers) keep working: they are moved to the vocabulary with their
    ids, because the library numbers added tokens by their order.
    """
    model = dict(spec["model"])
    kept = [token for token in spec.get("added_tokens") or [] if token["content"] not in control]
    vocab = model["vocab"]
    within = {name for name in control if name in vocab and name != model.get("unk_token")}
    if within:
        vocab = {name: id for name, id in vocab.items() if name not in within}
        model["merges"] = [merge for merge in model["merges"] if within.isdisjoint(_tokens_of(merge))]
    model["vocab"] = vocab | {token["content"]: token["id"] for token in kept}
    return dict(spec) | {"added_tokens": kept, "model": model, "post_processor": None}


def numbered(added: Sequence[Mapping[str, Any]], vocab: Mapping[str, int]) -> list[dict[str, Any]]:
    """Added tokens with the ids that the library gives them: those of the vocabulary, else the next ones in order."""
    ids: dict[str, int] = {}
    for token in added:
        last = max(ids.values(), default=-1)
        ids.setdefault(token["content"], vocab.get(token["content"], max(last + 1, len(vocab))))
    return [{**token, "id": ids[token["content"]]} for token in added]


def looks_like_control(name: str) -> bool:
    """Whether an added token not marked special is one of control all the same: <think>, <|fim_prefix|>, [INST].

    The library reads these in any text. Here they are made by the chat renderer alone, so that nobody's text can open
    a turn, a thought or a call of a tool. All other added tokens, <date> for one, are text as in the library.
    """
    return name in MARKERS or re.fullmatch(r"<\|\S+\|>|\[/?[A-Z_]+\]", name) is not None


def decoder_kind(spec: Mapping[str, Any], place: str) -> tuple[bool, bool]:
    """(whether it is byte-level, whether decoding drops a leading space), from the decoder's description."""
    text = json.dumps([spec.get("decoder"), spec.get("pre_tokenizer"), spec.get("normalizer")], ensure_ascii=False)
    if '"ByteLevel"' in text:
        return True, False
    if '"Metaspace"' in text or "▁" in text:
        decoder = json.dumps(spec.get("decoder"), ensure_ascii=False)
        # Metaspace removes the space it added unless set to "never"; Llama 2's files use Strip for this.
        never = '"prepend_scheme": "never"' in decoder or '"add_prefix_space": false' in decoder
        return False, '"Strip"' in decoder or ('"Metaspace"' in decoder and not never)
    raise PunaError(f"{place} is neither a byte-level nor a SentencePiece-like BPE tokenizer.", "Give one that is.")


def token_to_bytes(token: str, back: Mapping[int, str]) -> bytes:
    try:
        return token.translate(back).encode("latin-1")
    except UnicodeEncodeError:  # a token added to the vocabulary unchanged, outside the alphabet
        return token.encode("utf-8", "replace")


def sentencepiece_bytes(token: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode("utf-8", "replace")


def merges_as_text(merges: Sequence[Any]) -> list[Any]:
    """Merges as "left right", which all readers support; as pairs only if a token itself contains a space."""
    if any(not isinstance(merge, str) and any(" " in part for part in merge) for merge in merges):
        return [list(merge) for merge in merges]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _tokens_of(merge: Any) -> tuple[str, str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right


def token_name(token: Any) -> str | None:
    """The name in a tokenizer_config entry, which is a string or an object with "content"."""
    return token.get("content") if isinstance(token, dict) else token


def template_in(config: Mapping[str, Any]) -> str | None:
    """The chat template in a tokenizer_config.json: a string, or a list of named ones with a "default"."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
