"""Which tokens begin and end a text: only what a tokenizer or a model directory declares.

An ordinary token may spell `</s>` or `<|endoftext|>`, as in Qwen's vocabulary. So a likely name counts only where it is
an added token that is marked special; any other end has to be named in the files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from puna.core.errors import ModelError
from puna.core.files import read_json
from puna.text.bytelevel import BEGIN_OF_TEXT, END_OF_TEXT, END_OF_TURN
from puna.text.tokenizer_json import token_name

# Names of these tokens in common models, in order of preference. GPT-2's <|endoftext|> begins a text only where its
# files say so: in Qwen's it does not.
_BEGIN = (BEGIN_OF_TEXT, "<s>", "<bos>")
_END_OF_TEXT = (END_OF_TEXT, "</s>", "<eos>", "<|endoftext|>")
_END_OF_TURN = (END_OF_TURN, "<|im_end|>", "<end_of_turn>")


class Ends(NamedTuple):
    """begin, declared: names of tokens, or None. ends: ids; the first ends a document, generation stops at each."""

    begin: str | None
    declared: str | None
    ends: list[int]


def begin_and_ends(spec: Mapping[str, Any], config: Mapping[str, Any], ids: Mapping[str, int], more: list[int]) -> Ends:
    """The begin and end tokens of a tokenizer.json.

    config: tokenizer_config.json, whose bos_token and eos_token win; ids: name -> id of the vocabulary with the added
    tokens; more: further ends, from `declared_ends`. The first end is that of a text, not of a turn, where both are
    known.
    """
    special = [token["content"] for token in spec.get("added_tokens") or [] if token["special"]]
    begin = (
        token_name(config["bos_token"]) if "bos_token" in config else _template_begin(spec) or _first(_BEGIN, special)
    )
    declared = token_name(config.get("eos_token"))
    declared = declared if declared in ids else None
    text, turn = _first(_END_OF_TEXT, special), _first(_END_OF_TURN, special)
    if declared in _END_OF_TEXT:
        text = declared
    names = [name for name in (text, turn, declared) if name is not None]
    ends = [*(ids[name] for name in names), *(id for id in more if id < max(ids.values(), default=-1) + 1)]
    return Ends(begin if begin in ids else None, declared or next(iter(names), None), list(dict.fromkeys(ends)))


def declared_ends(folder: Path) -> list[int]:
    """eos_token_id of generation_config.json, or without that file of config.json; empty without either.

    Raises PunaError for one that is not an id or a list of ids.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            values = read_json(path)
            given = values.get("eos_token_id") if isinstance(values, dict) else None
            ends = given if isinstance(given, list) else [] if given is None else [given]
            if any(not isinstance(id, int) or isinstance(id, bool) or id < 0 for id in ends):
                raise ModelError(f"{path}: eos_token_id is {given!r}.", "It must be a token id or a list of them.")
            return ends
    return []


def _template_begin(spec: Mapping[str, Any]) -> str | None:
    """The token that the tokenizer.json itself puts in front of a text."""
    processor = spec.get("post_processor") or {}
    for part in processor.get("processors") or [processor]:
        pieces = part.get("single") or [] if part.get("type") == "TemplateProcessing" else []
        if pieces and "SpecialToken" in pieces[0]:
            return str(pieces[0]["SpecialToken"]["id"])
    return None


def _first(names: tuple[str, ...], known: list[str]) -> str | None:
    return next((name for name in names if name in known), None)
