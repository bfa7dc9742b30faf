"""stories260K with its tokenizer as a tokenizer.json that any software can load.

It is a real model that loads in a second. The weights (MIT) are karpathy's 260K-parameter Llama, trained on
TinyStories; the shared data has them in Hugging Face layout, and its SentencePiece vocabulary as a list of pieces with
scores. A merge is any way to compose a piece of two others, in the order of the scores: SentencePiece's own rule.
"""

import json
import shutil
from pathlib import Path
from typing import Any

SPACE = "\u2581"  # how SentencePiece writes a space


def make(source: Path, out: Path) -> Path:
    """Write the model directory `out` from the folder `source`; returns it."""
    shutil.copytree(source / "hf", out)
    (out / "tokenizer.json").write_text(json.dumps(tokenizer(source / "tok512.json"), ensure_ascii=False))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (out / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names})
    )
    return out


def tokenizer(path: Path) -> dict[str, Any]:
    """The content of the tokenizer.json."""
    table = json.loads(path.read_text(encoding="utf-8"))
    texts = [piece.encode("latin-1").decode("utf-8", "replace") for piece in table["tokens"]]
    pieces = ["<unk>", "<s>", "</s>", *(text.replace(" ", SPACE) for text in texts[3:])]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    merges = [
        (-score, vocabulary[piece[:at]], [piece[:at], piece[at:]])
        for piece, score in zip(pieces, table["scores"], strict=True)
        for at in range(1, len(piece))
        if not piece.startswith("<") and piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": piece, **special} for id, piece in enumerate(pieces[:3])],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": begin,
            "pair": [*begin, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": [pair for *_, pair in sorted(merges)],
        },
    }
