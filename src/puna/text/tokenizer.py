"""Byte-level BPE: text to token ids and back. The only place where either is made.

Tokenizers are trained on exactly Llama 3's split pattern with `ignore_merges`, so that every runtime that knows Llama 3
(transformers, vLLM, llama.cpp's "llama-bpe") splits our text the same way. Files of others are read as they are:
`tokenizer.json`, and tiktoken's format, whose ranks are turned into merges. The work is done by the `tokenizers`
library; this module gives it the right parts and keeps specials apart from text.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from puna.core.errors import PunaError
from puna.core.files import write_json, write_text

# Llama 3's pattern, as in its reference tokenizer; GPT-2's, as in tiktoken.
LLAMA3_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

BEGIN_OF_TEXT, END_OF_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
START_HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
END_OF_TURN, END_OF_MESSAGE, PYTHON_TAG = "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"
PAD = "<|finetune_right_pad_id|>"
THINK, END_THINK = "<think>", "</think>"
TOOL_CALL, END_TOOL_CALL = "<tool_call>", "</tool_call>"
SPECIAL_TOKENS = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    START_HEADER,
    END_HEADER,
    END_OF_TURN,
    END_OF_MESSAGE,
    PYTHON_TAG,
    PAD,
    THINK,
    END_THINK,
    TOOL_CALL,
    END_TOOL_CALL,
)
RESERVED_SLOTS = 16


class Tokenizer:
    """A byte-level BPE tokenizer. Special tokens in a text are text unless `special=True` says otherwise."""

    def __init__(self, inner: tokenizers.Tokenizer, *, name: str = "tokenizer") -> None:
        self._inner = inner
        table = json.loads(inner.to_str())
        if table["model"]["type"] != "BPE":
            raise PunaError(f"{name} is a {table['model']['type']} tokenizer.", "Puna reads byte-level BPE tokenizers.")
        self.special: dict[str, int] = {t["content"]: t["id"] for t in table["added_tokens"] if t["special"]}
        self.hash: str = hashlib.sha256(json.dumps(table, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
        # The library finds added tokens in any text; a copy without them sees text as text.
        self._plain = tokenizers.Tokenizer.from_str(json.dumps({**table, "added_tokens": [], "post_processor": None}))

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a folder with tokenizer.json or tokenizer.model, or either file, or a .tiktoken file.

        Raises PunaError when there is none or it is damaged.
        """
        path = Path(path)
        if path.is_dir():
            found = next((path / n for n in ("tokenizer.json", "tokenizer.model") if (path / n).is_file()), None)
            if found is None:
                raise PunaError(f"{path} holds no tokenizer.json or tokenizer.model.", "Check the path.")
            path = found
        if not path.is_file():
            raise PunaError(f"{path} does not exist.", "Give a folder or file with a tokenizer.")
        if path.suffix != ".json":
            return cls(_from_ranks(_read_ranks(path), str(path)), name=str(path))
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise PunaError(f"{path} is not a tokenizer ({error}).", "It may be truncated; get it again.") from None
        return cls(inner, name=str(path))

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """Token ids of `text`. bos: begin-of-text first. special: names of special tokens in the text become them."""
        inner = self._inner if special else self._plain
        return self._begin(bos) + list(inner.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: list[str], *, bos: bool = False) -> list[list[int]]:
        """`encode` of many texts at once, on all cores."""
        first = self._begin(bos)
        return [first + list(done.ids) for done in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, special tokens their names or nothing."""
        names = {} if skip_special else {i: name.encode() for name, i in self.special.items()}
        return b"".join(names.get(i) or self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`; special tokens stand for none."""
        return b"".join(self.token_bytes(i) for i in ids)

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for; b"" for special tokens."""
        return self._bytes[token]

    @cached_property
    def _bytes(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        special = set(self.special.values())
        to_byte = _char_to_byte()
        for text, i in self._inner.get_vocab(with_added_tokens=True).items():
            if i not in special:
                known = all(c in to_byte for c in text)
                table[i] = bytes(to_byte[c] for c in text) if known else text.encode()
        return table

    @property
    def vocab_size(self) -> int:
        """Largest id plus one, specials included."""
        return max(self._inner.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def bos_id(self) -> int | None:
        """Begin of text; None when the tokenizer has none."""
        return next((self.special[n] for n in (BEGIN_OF_TEXT, "<s>", "<|endoftext|>") if n in self.special), None)

    @property
    def eos_ids(self) -> list[int]:
        """What ends a generation: end of text, then end of turn."""
        names = (END_OF_TEXT, END_OF_TURN, "</s>", "<|endoftext|>")
        return [self.special[name] for name in names if name in self.special]

    def bytes_per_token(self, texts: Iterable[str]) -> float:
        """UTF-8 bytes for each token over `texts`."""
        size = tokens = 0
        for text in texts:
            size += len(text.encode())
            tokens += len(self.encode(text))
        return size / max(1, tokens)

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.

        In the form that transformers 4 and 5 both read.
        """
        from puna.text.chat import CHAT_TEMPLATE

        write_text(directory / "tokenizer.json", self._inner.to_str(pretty=True))
        names = {"bos_token": BEGIN_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD}
        present = {key: name for key, name in names.items() if name in self.special}
        chat = {"chat_template": CHAT_TEMPLATE} if START_HEADER in self.special else {}
        write_json(
            directory / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_input_names": ["input_ids", "attention_mask"],
                "clean_up_tokenization_spaces": False,
                **present,
                **chat,
            },
        )
        write_json(directory / "special_tokens_map.json", present)
        if chat:
            write_text(directory / "chat_template.jinja", CHAT_TEMPLATE)

    def _begin(self, bos: bool) -> list[int]:
        if not bos:
            return []
        if self.bos_id is None:
            raise PunaError("This tokenizer has no begin-of-text token.", "Encode without it.")
        return [self.bos_id]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train on `texts`: vocab_size tokens, specials and reserved slots included, which come last.

    The same texts in the same order give the same tokenizer. Raises PunaError when vocab_size leaves no room for the
    256 bytes and the specials, or there is no text.
    """
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(RESERVED_SLOTS)]
    specials = [*SPECIAL_TOKENS, *reserved]
    least = 256 + len(specials)
    if vocab_size < least:
        raise PunaError(f"A tokenizer of {vocab_size} tokens is too small.", f"Ask for at least {least}.")
    inner = _byte_level(models.BPE(ignore_merges=True), LLAMA3_PATTERN)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    seen = False

    def watched() -> Iterable[str]:
        nonlocal seen
        for text in texts:
            seen = seen or bool(text)
            yield text

    inner.train_from_iterator(watched(), trainer)
    if not seen:
        raise PunaError("There is no text to train a tokenizer on.", "Check the sources and filters.")
    return Tokenizer(_with_specials(inner, specials))


def _byte_level(model: models.BPE, pattern: str) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def _with_specials(inner: tokenizers.Tokenizer, names: Sequence[str]) -> tokenizers.Tokenizer:
    inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if BEGIN_OF_TEXT in names:
        bos = (BEGIN_OF_TEXT, inner.token_to_id(BEGIN_OF_TEXT))
        inner.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{BEGIN_OF_TEXT} $A",
                    pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT}:1 $B:1",
                    special_tokens=[bos],
                ),
            ]
        )
    return inner


def _read_ranks(path: Path) -> dict[bytes, int]:
    """A tiktoken file: lines of base64 bytes and rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise PunaError(
                f"{path}, line {number} is not 'base64 rank'.", "Give tokenizer.json, or a tiktoken-format file."
            ) from None
    if not ranks or sorted(ranks.values()) != list(range(len(ranks))):
        raise PunaError(f"{path}: the ranks are not 0 to {len(ranks) - 1}.", "The file may be truncated.")
    return ranks


def _from_ranks(ranks: dict[bytes, int], name: str) -> tokenizers.Tokenizer:
    """A tokenizer from tiktoken ranks, with the specials that belong to its size: Llama 3's or GPT-2's."""
    to_char = {b: c for c, b in _char_to_byte().items()}

    def text(token: bytes) -> str:
        return "".join(to_char[b] for b in token)

    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            parts = _parts(token, rank, ranks)
            if len(parts) == 2:  # else no merge leads to it, and only a piece that is the token as a whole gives it
                merges.append((text(parts[0]), text(parts[1])))
    vocab: Any = {text(token): rank for token, rank in ranks.items()}
    llama3 = len(ranks) == 128_000
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=llama3)
    inner = _byte_level(model, LLAMA3_PATTERN if llama3 else GPT2_PATTERN)
    if llama3:
        return _with_specials(inner, _llama3_specials())
    if len(ranks) == 50_256:
        return _with_specials(inner, ["<|endoftext|>"])
    raise PunaError(
        f"{name} has {len(ranks)} ranks; which specials and split pattern belong to it is not known.",
        "Known: 128,000 (Llama 3) and 50,256 (GPT-2). Give tokenizer.json instead.",
    )


def _parts(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """The merge that made a token: apply all earlier merges to its bytes; two parts are left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [(ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1)]
        best, at = min(found)
        if best >= rank:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _llama3_specials() -> list[str]:
    """Llama 3.1's names of its 256 special tokens, in order (the reference tokenizer and the published config)."""
    names = [BEGIN_OF_TEXT, END_OF_TEXT, "<|reserved_special_token_0|>", "<|reserved_special_token_1|>", PAD]
    names += ["<|reserved_special_token_2|>", START_HEADER, END_HEADER, END_OF_MESSAGE, END_OF_TURN, PYTHON_TAG]
    return names + [f"<|reserved_special_token_{i}|>" for i in range(3, 3 + 256 - len(names))]


def _char_to_byte() -> dict[str, int]:
    """GPT-2's table: each byte as a printable character (its own where it has one, else from U+0100 on)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(b): b for b in printable}
    for offset, b in enumerate(b for b in range(256) if b not in printable):
        table[chr(256 + offset)] = b
    return table
