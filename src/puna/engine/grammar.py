"""Output that obeys a grammar: a JSON schema, a regular expression, a choice of strings, or a Lark grammar.

The work is llguidance's: it walks the trie of the vocabulary with the grammar's parser and says, as one bit per token,
which tokens may come next. A `Grammar` says what is wanted and knows no model; `Grammars` compiles it for one
tokenizer; a `Matcher` follows one text. End tokens are allowed exactly where the text may end.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from puna.core.errors import PunaError
from puna.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

# Between two parts of a JSON text. Unbounded, as llguidance has it, a small model goes on with spaces for ever.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"


class GrammarError(Exception):
    """A grammar failed in the middle of a text."""


@dataclass(frozen=True)
class Grammar:
    """What a text must look like. Made by one of the functions below; an engine says whether it is a valid one."""

    source: str
    """In llguidance's own form."""

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | bool | None = None) -> "Grammar":
        """JSON that a schema (draft 2020-12, as far as llguidance knows it) describes; any JSON value without one."""
        from llguidance import LLMatcher

        if schema is None or schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise PunaError(f"A JSON schema is an object, not {json.dumps(schema)}.", "Give a JSON schema.")
        try:
            text = json.dumps(dict(schema), ensure_ascii=False)
            return Grammar(
                LLMatcher.grammar_from_json_schema(_unicode(text), defaults={"whitespace_pattern": _WHITESPACE})
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise PunaError(f"The JSON schema is not valid JSON ({_first_line(error)}).", "Mend it.") from None

    @staticmethod
    def json_object() -> "Grammar":
        """Any JSON object."""
        return Grammar.json_schema({"type": "object"})

    @staticmethod
    def regex(pattern: str) -> "Grammar":
        """A text that a regular expression matches as a whole (Rust's syntax: no look-around, no back-references)."""
        from llguidance import LLMatcher

        return Grammar(LLMatcher.grammar_from_regex(_unicode(pattern)))

    @staticmethod
    def choice(options: Sequence[str]) -> "Grammar":
        """One of these strings. Raises PunaError when there is none."""
        if not options or isinstance(options, str):
            raise PunaError("There is nothing to choose from.", "Give a list of strings.")
        return Grammar.lark("start: " + " | ".join(json.dumps(option, ensure_ascii=False) for option in options))

    @staticmethod
    def lark(grammar: str) -> "Grammar":
        """A context-free grammar in llguidance's form of Lark; <name> is a special token of that name."""
        from llguidance import LLMatcher

        return Grammar(LLMatcher.grammar_from_lark(_unicode(grammar)))


class Grammars:
    """Compiles grammars for one vocabulary. end_ids: tokens that end a text. Costs about a second for 128k tokens."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Iterable[int]) -> None:
        from llguidance import LLTokenizer
        from llguidance._tokenizer import TokenizerWrapper

        self.vocabulary = tokenizer.vocab_size
        ends = [token for token in end_ids if token < self.vocabulary]
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer)),
            n_vocab=self.vocabulary + 1,
            # One more than there are: without any end token a grammar could not say that a text is over.
            eos_token=[*ends, self.vocabulary],
        )

    def matcher(self, grammar: Grammar) -> "Matcher":
        """A matcher at the beginning. Raises PunaError for a grammar that is none, or is too large."""
        from llguidance import LLMatcher, LLParserLimits

        # Errors must not show what the parser holds: that is somebody's text.
        limits = LLParserLimits(verbose_errors=False)
        try:
            inner = LLMatcher(self._tokenizer, grammar.source, log_level=0, limits=limits)
        except (ValueError, UnicodeError) as error:
            raise PunaError(f"The grammar is not valid ({_first_line(error)}).", "Mend it.") from None
        if inner.is_error():
            raise PunaError(f"The grammar is not valid ({_first_line(inner.get_error())}).", "Mend it.")
        return Matcher(inner, self)

    def allowed(self, matchers: Sequence["Matcher"]) -> Tensor:
        """Which tokens may come next, bool (matchers, vocabulary), on the CPU. A row of a matcher that failed is
        empty."""
        import numpy as np
        from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

        words = np.zeros((len(matchers), (self.vocabulary + 32) // 32), dtype=np.int32)
        if len(matchers) == 1:
            fill_next_token_bitmask(matchers[0].inner, words)
        else:
            rows = [(matcher.inner, row) for row, matcher in enumerate(matchers)]
            fill_next_token_bitmask_par(self._executor, rows, words)
        for row, matcher in enumerate(matchers):
            if matcher.inner.is_error():
                words[row] = 0
        bits = torch.from_numpy(words)[:, :, None] >> torch.arange(32, dtype=torch.int32)
        return (bits & 1).flatten(1)[:, : self.vocabulary].bool()

    @cached_property
    def _executor(self) -> "LLExecutor":
        from llguidance import LLExecutor

        return LLExecutor()


class Matcher:
    """Where one text stands in its grammar."""

    def __init__(self, inner: "LLMatcher", grammars: Grammars) -> None:
        self.inner, self.grammars = inner, grammars

    def copy(self) -> "Matcher":
        """Another one at the same place."""
        return Matcher(self.inner.deep_copy(), self.grammars)

    def accept(self, token: int) -> bool:
        """Go on by a token; True when the text can only end after it. Raises GrammarError when it is not allowed."""
        if not self.inner.consume_token(token):
            raise GrammarError(self.error)
        return self.inner.is_stopped()

    @property
    def error(self) -> str:
        """Why it cannot go on."""
        return _first_line(self.inner.get_error()) or "no token of this vocabulary can come next"


class _Vocabulary:
    """A tokenizer as llguidance asks for one.

    Special tokens and markers (<think>, <tool_call>, …) are no text: only a grammar that names them allows them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.vocab_size
        self.bos_token_id = None
        self.special_token_ids = [*tokenizer.special.values(), self.eos_token_id]
        self.tokens = [tokenizer.shown_bytes(token) for token in range(tokenizer.vocab_size)] + [b"<|end of grammar|>"]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"))


def _unicode(text: str) -> str:
    """The text itself. Raises PunaError for half a surrogate pair, which no text can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PunaError("The grammar holds half a surrogate pair.", "Give whole characters.") from None
    return text


def _first_line(error: object) -> str:
    """What is wrong, without llguidance's pictures of the place."""
    first, *others = str(error).strip().splitlines() or [""]
    reason = next((line.strip() for line in others if line.startswith("error:")), "")
    return " ".join(filter(None, (first.strip().rstrip(".:"), reason)))
