"""Byte-level BPE as a tokenizer.json: alphabet, split patterns, special tokens, tiktoken's rank files.

GPT-2 introduced this form of BPE (Radford et al. 2019): a regular expression splits text into pieces, and pairs of
bytes are merged within each piece. Llama 3 keeps it, with tiktoken's pattern for cl100k. Everything here builds plain
dicts in the format of the `tokenizers` library; `tokenizer` makes an encoder of them.
"""

import binascii
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError

# The pattern of Meta's Llama 3 tokenizer. It must not change: llama.cpp identifies it by name ("llama-bpe").
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

BEGIN_OF_TEXT, END_OF_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
START_HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
END_OF_TURN, END_OF_MESSAGE, PYTHON_TAG = "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"
PAD = "<|finetune_right_pad_id|>"
GPT2_END = "<|endoftext|>"
THINK, END_THINK = "<think>", "</think>"
TOOL_CALL, END_TOOL_CALL = "<tool_call>", "</tool_call>"
LLAMA3_SPECIALS = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    START_HEADER,
    END_HEADER,
    END_OF_TURN,
    END_OF_MESSAGE,
    PYTHON_TAG,
    PAD,
)
# Control tokens whose text stays visible when special tokens are hidden ("special": false in tokenizer.json, as in
# Qwen's and Hermes' tokenizers): servers find reasoning and tool calls by these tags in the decoded text.
MARKERS = (THINK, END_THINK, TOOL_CALL, END_TOOL_CALL)

_LLAMA3_RANKS, _LLAMA3_SLOTS, _GPT2_RANKS = 128_000, 256, 50_256


@cache
def byte_alphabet() -> Mapping[int, str]:
    """GPT-2's printable character for each byte: printable Latin-1 maps to itself, the rest to U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def special_names(reserved: int) -> list[str]:
    """Special tokens of a tokenizer trained here: Llama 3's names, the markers, and `reserved` empty slots."""
    return [*LLAMA3_SPECIALS, *MARKERS, *(f"<|reserved_special_token_{i}|>" for i in range(reserved))]


def pre_tokenizer(pattern: str) -> dict[str, Any]:
    """Split by `pattern`, then write bytes in the alphabet of `byte_alphabet`."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(add_prefix_space=False)]}


def bpe_spec(
    vocab: Mapping[str, int], merges: Sequence[str], *, pattern: str, specials: Mapping[str, int], bos: str | None
) -> dict[str, Any]:
    """The content of a tokenizer.json.

    vocab: token in the byte alphabet -> id, without the special tokens. merges: "left right", highest priority first.
    specials: name -> id. bos: name of the token that transformers puts in front of a text, or None.
    `ignore_merges` is set: a piece that is a token becomes that token whatever its merges, as in tiktoken and
    llama.cpp.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(name, number) for name, number in specials.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer(pattern),
        "post_processor": _post_processor(bos, specials),
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": dict(vocab),
            "merges": list(merges),
        },
    }


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read tiktoken's format, one line "<token in base64> <rank>" per token. Raises PunaError for any other."""
    ranks: dict[bytes, int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                token, rank = line.split()
                ranks[binascii.a2b_base64(token, strict_mode=True)] = int(rank)
            except (ValueError, binascii.Error):
                if not ranks:
                    raise PunaError(
                        f"{path} is not a tokenizer in tiktoken's format.",
                        "Give a tokenizer.json instead (a SentencePiece tokenizer.model must be converted to one).",
                    ) from None
                raise PunaError(
                    f"{path} line {number} is not '<base64> <rank>'.", "The file is damaged; fetch it again."
                ) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise PunaError(
            f"{path} is damaged: its {len(ranks)} ranks are not 0, 1, 2, … with a token for each byte.",
            "Fetch it again.",
        )
    return ranks


def spec_from_ranks(path: Path) -> dict[str, Any]:
    """The tokenizer.json of a rank file: Llama 3's (128,000 ranks) or GPT-2's (50,256), identified by size.

    Raises PunaError for any other number of ranks, because the file contains neither its pattern nor its special
    tokens.
    """
    ranks = read_ranks(path)
    if len(ranks) == _LLAMA3_RANKS:
        pattern, names, bos = LLAMA3_PATTERN, llama3_names(), BEGIN_OF_TEXT
    elif len(ranks) == _GPT2_RANKS:
        pattern, names, bos = GPT2_PATTERN, [GPT2_END], None
    else:
        raise PunaError(
            f"{path} holds {len(ranks):,} ranks; only those of Llama 3 (128,000) and GPT-2 (50,256) are supported.",
            "If the file is damaged, fetch it again; for another tokenizer give its tokenizer.json.",
        )
    alphabet = byte_alphabet()
    vocab = {
        token.decode("latin-1").translate(alphabet): ranks[token] for token in sorted(ranks, key=ranks.__getitem__)
    }
    return bpe_spec(
        vocab,
        _merges(vocab),
        pattern=pattern,
        specials={name: len(ranks) + i for i, name in enumerate(names)},
        bos=bos,
    )


def llama3_names() -> list[str]:
    """The 256 special tokens of Llama 3.1 to 3.3 in the order of their ids from 128,000 on, as Meta published them.

    Llama 3.0 has reserved slots where 3.1 put <|finetune_right_pad_id|>, <|eom_id|> and <|python_tag|>.
    """
    placed = {0: BEGIN_OF_TEXT, 1: END_OF_TEXT, 4: PAD, 6: START_HEADER, 7: END_HEADER}
    placed |= {8: END_OF_MESSAGE, 9: END_OF_TURN, 10: PYTHON_TAG}
    empty = iter(range(_LLAMA3_SLOTS))
    return [placed.get(i) or f"<|reserved_special_token_{next(empty)}|>" for i in range(_LLAMA3_SLOTS)]


def _merges(vocab: Mapping[str, int]) -> list[str]:
    """Every "left right" that joins to a token of `vocab` (in the order of its ranks), the lowest joined rank first.

    tiktoken joins whichever neighbours make the lowest-ranked token, so all splits of a token are merges, not only the
    one found in training; searching for that one would also cost far more than these look-ups.
    """
    merges = []
    for token in vocab:
        pairs = [
            (vocab[left], vocab[right], f"{left} {right}")
            for i in range(1, len(token))
            if (left := token[:i]) in vocab and (right := token[i:]) in vocab
        ]
        if len(pairs) > 1:
            pairs.sort()
        merges += [text for _, _, text in pairs]
    return merges


def _added_token(name: str, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": name not in MARKERS,
    }


def _byte_level(*, add_prefix_space: bool = True) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": False}


def _post_processor(bos: str | None, specials: Mapping[str, int]) -> dict[str, Any]:
    offsets = _byte_level() | {"trim_offsets": False}
    if bos is None:
        return offsets
    first, second = ({"SpecialToken": {"id": bos, "type_id": i}} for i in (0, 1))
    template = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, second, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [specials[bos]], "tokens": [bos]}},
    }
    return {"type": "Sequence", "processors": [offsets, template]}
