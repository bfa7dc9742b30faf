"""The tokenizer: text to token ids and back, training, and the files that other software reads.

`Tokenizer` wraps the `tokenizers` library for one tokenizer.json. By default it encodes plain text: the name of a
special token in a document or in a user's message stays text. Only the chat renderer, and callers with `special=True`,
create control tokens.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from puna.core.errors import DataError, ModelError
from puna.core.files import read_json, write_json, write_text
from puna.text.bytelevel import (
    END_OF_TEXT,
    END_OF_TURN,
    GPT2_END,
    LLAMA3_PATTERN,
    PAD,
    START_HEADER,
    bpe_spec,
    byte_alphabet,
    pre_tokenizer,
    spec_from_ranks,
    special_names,
)
from puna.text.control import begin_and_ends, declared_ends
from puna.text.templates import CHAT_TEMPLATE, RESPONSE_TEMPLATE
from puna.text.tokenizer_json import (
    decoder_kind,
    looks_like_control,
    merges_as_text,
    numbered,
    sentencepiece_bytes,
    template_in,
    token_to_bytes,
    without_control,
)

T = TypeVar("T")

# Names of the padding token in common models, in order of preference.
_PAD = (PAD, "<pad>", END_OF_TEXT, "</s>", "<|endoftext|>")


class Tokenizer:
    """A byte-level BPE tokenizer, or a SentencePiece-like one in a tokenizer.json.

    spec: the content of a tokenizer.json. config: that of tokenizer_config.json (names of the begin and end tokens).
    ends: further end tokens, as a model's generation_config.json names them (`control.declared_ends`).
    chat_template: its own Jinja template; None: it is saved with Puna's template if it has chat tokens.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        config: Mapping[str, Any] | None = None,
        ends: Sequence[int] = (),
        chat_template: str | None = None,
        place: str = "tokenizer",
    ) -> None:
        spec, config = dict(spec), config or {}
        # A tokenizer.json may set truncation or padding for encoding: a corpus needs neither.
        spec |= {"truncation": None, "padding": None}
        model = spec.get("model") or {}
        if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
            raise ModelError(f"{place} is a tokenizer of type {model.get('type')}, not BPE.", "Give a BPE tokenizer.")
        spec["model"] = model | {"merges": merges_as_text(model.get("merges") or [])}
        spec["added_tokens"] = numbered(spec.get("added_tokens") or [], model["vocab"])
        added = {token["content"]: token for token in spec["added_tokens"]}
        ids = model["vocab"] | {name: token["id"] for name, token in added.items()}

        self.special: dict[str, int] = {n: t["id"] for n, t in added.items() if t["special"] or looks_like_control(n)}
        self.vocab_size: int = max(ids.values(), default=-1) + 1
        chosen = begin_and_ends(spec, config, ids, list(ends))
        self.bos_id: int | None = None if chosen.begin is None else ids[chosen.begin]
        self.eos_ids: list[int] = chosen.ends
        """The first ends a document; generation, exports and other servers stop at each."""
        # The end token named in the files is kept; generation stops at all of `eos_ids` anyway.
        self._bos_token, self._eos_token = chosen.begin, chosen.declared
        self.chat_template = chat_template

        self._hidden = {token["id"] for token in added.values() if token["special"]}
        # As text: for Llama 3 the parsed form takes ten times the memory, and it is needed again only for saving.
        self._json = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
        self._byte_level, self._drops_first_space = decoder_kind(spec, place)
        self._plain = _backend(json.dumps(without_control(spec, set(self.special)), ensure_ascii=False), place)
        self._place = place

    @staticmethod
    def load(path: Path) -> "Tokenizer":
        """Read a directory with tokenizer.json or tokenizer.model, or one of these files, or a .tiktoken file.

        tokenizer.model is read in tiktoken's format (Llama 3); the number of ranks determines the split pattern
        and the special tokens. Raises PunaError if there is no tokenizer or it is damaged.
        """
        folder = path if path.is_dir() else path.parent
        if path.is_dir():
            file = next(
                (path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()), None
            )
            if file is None:
                raise ModelError(
                    f"{path} holds neither tokenizer.json nor tokenizer.model.", "Give a folder or a file that is one."
                )
        elif path.is_file():
            file = path
        else:
            raise ModelError(f"There is no tokenizer at {path}.", "Check the path.")
        if file.suffix != ".json":
            spec = spec_from_ranks(file)
            # GPT-2's only special token begins a text and ends it.
            config = {"bos_token": GPT2_END, "eos_token": GPT2_END} if len(spec["added_tokens"]) == 1 else {}
            return Tokenizer(spec, config=config, ends=declared_ends(folder), place=str(file))
        spec = read_json(file)
        if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
            raise ModelError(f"{file} is not a tokenizer.json: it has no 'model'.", "Fetch or train it again.")
        config, template_file = _config(folder), folder / "chat_template.jinja"
        template = template_file.read_text(encoding="utf-8") if template_file.is_file() else template_in(config)
        try:
            return Tokenizer(spec, config=config, ends=declared_ends(folder), chat_template=template, place=str(file))
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ModelError(f"{file} is not a valid tokenizer.json.", "Fetch or train it again.") from None

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """Token ids of `text`.

        bos: prepend the begin-of-text token, if the tokenizer has one. special: parse names of special tokens as these
        tokens; only for text from trusted code. Unpaired surrogates, which UTF-8 cannot represent, become U+FFFD.
        """
        backend = self._parsing if special else self._plain
        try:
            ids = backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            ids = backend.encode(_without_surrogates(text), add_special_tokens=False).ids
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def encode_batch(self, texts: list[str], *, bos: bool = False) -> list[list[int]]:
        """`encode` for many texts, as plain text and on all cores."""
        try:
            encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            encodings = self._plain.encode_batch_fast(
                [_without_surrogates(text) for text in texts], add_special_tokens=False
            )
        first = [self.bos_id] if bos and self.bos_id is not None else []
        return [first + encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD.

        skip_special: omit special tokens. The markers (<think>, <tool_call>, …) are text and stay.
        """
        text = b"".join(self.shown_bytes(i, skip_special=skip_special) for i in ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self._drops_first_space else text

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids` without special tokens: exactly those that were encoded."""
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, id: int) -> bytes:
        """Bytes of one token: b"" for special tokens (not for markers) and for ids the vocabulary does not have."""
        return self.shown_bytes(id, skip_special=True)

    def shown_bytes(self, id: int, *, skip_special: bool = False) -> bytes:
        """Bytes of one token as `decode` shows them: a special token as its name, unless skip_special."""
        if skip_special and id in self._hidden:
            return b""
        return self._bytes[id] if 0 <= id < len(self._bytes) else b""

    @property
    def choices(self) -> str:
        """The begin and end tokens in words, for whoever brings a tokenizer."""
        named = [f"{self.shown_bytes(id).decode('utf-8', 'replace')} ({id})" for id in self.eos_ids]
        begin = "no token" if self.bos_id is None else f"{self._bos_token} ({self.bos_id})"
        if not named:
            return f"{begin} begins a text, and no token ends one: it declares none"
        further = f", and generation also stops at {', '.join(named[1:])}" if named[1:] else ""
        return f"{begin} begins a text, {named[0]} ends a document{further}"

    @property
    def drops_first_space(self) -> bool:
        """Whether decoding removes one leading space (SentencePiece-like tokenizers add it)."""
        return self._drops_first_space

    @property
    def spec(self) -> dict[str, Any]:
        """The content of the tokenizer.json, as a new object."""
        return dict(json.loads(self._json))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the tokenizer.json with sorted keys and no white space: the tokenizer's identity."""
        text = json.dumps(json.loads(self._json), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def bytes_per_token(self, texts: Iterable[str]) -> float:
        """UTF-8 bytes of all `texts` per token. Raises PunaError when there is no text."""
        size = tokens = 0
        for batch in batches(texts):
            size += sum(len(text.encode("utf-8", "surrogatepass")) for text in batch)
            tokens += sum(map(len, self.encode_batch(batch)))
        if not tokens:
            raise DataError("There is no text to measure the tokenizer on.", "Give files that contain some.")
        return size / tokens

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.

        transformers 4 and 5 both read them: the class is PreTrainedTokenizerFast, which 5 keeps as an alias, and the
        template is both in the configuration (4.x) and in its own file (5.x). Each file is replaced atomically.
        """
        spec = json.loads(self._json)
        tokens = {
            "bos_token": self._bos_token,
            "eos_token": self._eos_token,
            "pad_token": _first(_PAD, self.special),
        }
        named = {key: name for key, name in tokens.items() if name}
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **tokens,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                for token in spec.get("added_tokens") or []
            },
        }
        write_json(directory / "tokenizer.json", spec)
        write_json(directory / "special_tokens_map.json", named)
        template = self.chat_template
        if template is None and START_HEADER in self.special and END_OF_TURN in self.special:
            template = CHAT_TEMPLATE
        if template is not None:
            write_text(directory / "chat_template.jinja", template)
            config["chat_template"] = template
        if template == CHAT_TEMPLATE:
            config["response_template"] = RESPONSE_TEMPLATE
        write_json(directory / "tokenizer_config.json", config)

    @cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """The backend that parses special tokens in text; rarely needed, so created on first use."""
        return _backend(self._json, self._place)

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes of each id, including the names of added tokens."""
        spec = json.loads(self._json)
        table = [b""] * self.vocab_size
        back = {ord(char): chr(byte) for byte, char in byte_alphabet().items()}
        for token, id in spec["model"]["vocab"].items():
            table[id] = token_to_bytes(token, back) if self._byte_level else sentencepiece_bytes(token)
        # The library sends added tokens through the decoder too: a byte-level one takes é for the byte E9.
        for token in spec.get("added_tokens") or []:
            content = token["content"]
            table[token["id"]] = token_to_bytes(content, back) if self._byte_level else sentencepiece_bytes(content)
        return table


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, reserved: int = 16) -> Tokenizer:
    """Train byte-level BPE on `texts` with Llama 3's split pattern. The same text gives the same tokenizer.

    vocab_size counts everything: 256 bytes, merges, and the special tokens with their `reserved` empty slots, which
    take the last ids. A text too small for that many merges (a pair must occur twice) gives a smaller vocabulary.
    Raises PunaError if vocab_size leaves no room for merges or there is no text.
    """
    names = special_names(reserved)
    if vocab_size < 256 + len(names):
        raise ModelError(
            f"A vocabulary of {vocab_size} is too small: 256 bytes and {len(names)} special tokens come first.",
            f"Ask for at least {256 + len(names)}.",
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = _pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    seen = [0]

    def counted() -> Iterator[list[str]]:
        for batch in batches(texts):
            seen[0] += sum(map(len, batch))
            yield [_without_surrogates(text) for text in batch]

    backend.train_from_iterator(
        counted(),
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(names),
            min_frequency=2,
            initial_alphabet=sorted(byte_alphabet().values()),
            show_progress=False,
        ),
    )
    if not seen[0]:
        raise DataError("There is no text to train a tokenizer on.", "Give a source that holds some.")
    model = json.loads(backend.to_str())["model"]
    specials = {name: len(model["vocab"]) + i for i, name in enumerate(names)}
    merges = merges_as_text(model["merges"])
    return Tokenizer(bpe_spec(model["vocab"], merges, pattern=LLAMA3_PATTERN, specials=specials, bos=names[0]))


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """The library's object for the description by `bytelevel.pre_tokenizer`."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    return tokenizers.Tokenizer.from_str(
        json.dumps(
            {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer(LLAMA3_PATTERN), "model": empty}
        )
    ).pre_tokenizer


def _backend(text: str, place: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception:  # the library raises bare Exception, with the names of its own types as text
        raise ModelError(f"{place} is not a valid tokenizer.json.", "Fetch or train it again.") from None


def _config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and what special_tokens_map.json names besides."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        values = read_json(path) if path.is_file() else {}
        if not isinstance(values, dict):
            raise ModelError(f"{path} is not a JSON object.", "Fetch it again, or remove it.")
        config |= values
    return config


def _first(names: Sequence[str], known: Mapping[str, int]) -> str | None:
    return next((name for name in names if name in known), None)


def _without_surrogates(text: str) -> str:
    """Surrogate pairs joined, lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def batches(items: Iterable[T], size: int = 256) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one shorter."""
    waiting = iter(items)
    while batch := list(itertools.islice(waiting, size)):
        yield batch
