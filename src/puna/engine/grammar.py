"""Structured output: a JSON schema, a regular expression, a choice of strings, or a Lark grammar.

llguidance does the work: it walks the trie of the vocabulary with the grammar's parser and returns one bit per token
that may come next. A `Grammar` is independent of any model; `Grammars` compiles it for one tokenizer; a `Matcher`
follows one sequence. End tokens are allowed exactly where the text may end.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from puna.core.errors import PunaError
from puna.engine.json_schema import WHITESPACE, first_line, grammar_of
from puna.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher


class GrammarError(Exception):
    """A grammar failed in the middle of a sequence."""


class Function(NamedTuple):
    """A function that can be called. schema: of its arguments."""

    name: str
    schema: Mapping[str, Any]
    strict: bool = False


@dataclass(frozen=True)
class Grammar:
    """The form of a text, made by one of the functions below. The engine checks whether it is valid."""

    source: str
    """In llguidance's own format."""

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | bool | None = None, *, strict: bool = True) -> "Grammar":
        """JSON that matches a schema (draft 2020-12); without one, any JSON value.

        strict: raise PunaError for what llguidance cannot enforce, rather than ignore it.
        """
        if schema is None or schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise PunaError(f"A JSON schema is an object, not {json.dumps(schema)}.", "Give a JSON schema.")
        return Grammar(grammar_of(schema, strict=strict))

    @staticmethod
    def call(functions: Sequence["Function"]) -> "Grammar":
        """A call of one of these functions: {"name": …, "arguments": …}.

        Each schema is a document of its own: its references start at its own root.
        """
        if not functions:
            raise PunaError("There is no function to call.", "Give at least one.")
        any_call = " | ".join(f"call{number}" for number in range(len(functions)))
        lines, documents = [f"start: {any_call}", f"ws: /{WHITESPACE}/?"], []
        for number, (name, schema, strict) in enumerate(functions):
            parts = ['"{"', _quoted('"name"'), '":"', _quoted(json.dumps(_unicode(name), ensure_ascii=False)), '","',
                     _quoted('"arguments"'), '":"', f"@arguments{number}", '"}"']  # fmt: skip
            lines.append(f"call{number}: {' ws '.join(parts)}")
            source = json.loads(Grammar.json_schema(schema, strict=strict).source)
            documents.append({**source["grammars"][0], "name": f"arguments{number}"})
        return Grammar(json.dumps({"grammars": [{"lark_grammar": "\n".join(lines)}, *documents]}))

    @staticmethod
    def regex(pattern: str) -> "Grammar":
        """Text that a regular expression matches in full (Rust's syntax: no look-around, no back-references)."""
        from llguidance import LLMatcher

        return Grammar(LLMatcher.grammar_from_regex(_unicode(pattern)))

    @staticmethod
    def choice(options: Sequence[str]) -> "Grammar":
        """One of these strings. Raises PunaError if there are none."""
        if not options or isinstance(options, str):
            raise PunaError("There is nothing to choose from.", "Give a list of strings.")
        return Grammar.lark("start: " + " | ".join(map(_quoted, options)))

    @staticmethod
    def lark(grammar: str) -> "Grammar":
        """A context-free grammar in llguidance's dialect of Lark; <name> is the special token of that name."""
        from llguidance import LLMatcher

        return Grammar(LLMatcher.grammar_from_lark(_unicode(grammar)))


class Grammars:
    """Compiles grammars for one vocabulary. end_ids: tokens that end a text. Takes about a second for 128k tokens."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Iterable[int]) -> None:
        from llguidance import LLTokenizer
        from llguidance._tokenizer import TokenizerWrapper

        self.vocabulary = tokenizer.vocab_size
        ends = [token for token in end_ids if token < self.vocabulary]
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer)),
            n_vocab=self.vocabulary + 1,
            # One more than exist: without any end token a grammar could not signal the end of a text.
            eos_token=[*ends, self.vocabulary],
        )

    def matcher(self, grammar: Grammar) -> "Matcher":
        """A matcher at the beginning of a grammar. Raises PunaError if it is invalid or too large."""
        from llguidance import LLMatcher, LLParserLimits

        # Errors must not show the parser's input: that is a user's text.
        limits = LLParserLimits(verbose_errors=False)
        try:
            inner = LLMatcher(self._tokenizer, grammar.source, log_level=0, limits=limits)
        except (ValueError, UnicodeError) as error:
            raise PunaError(f"The grammar is not valid ({first_line(error)}).", "Fix it.") from None
        if inner.is_error():
            raise PunaError(f"The grammar is not valid ({first_line(inner.get_error())}).", "Fix it.")
        return Matcher(inner, self)

    def allowed(self, matchers: Sequence["Matcher"]) -> Tensor:
        """Which tokens may come next, bool (matchers, vocabulary), on the CPU. The row of a failed matcher has none."""
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
    """The position of one sequence in its grammar."""

    def __init__(self, inner: "LLMatcher", grammars: Grammars) -> None:
        self.inner, self.grammars = inner, grammars

    def copy(self) -> "Matcher":
        """A copy at the same position."""
        return Matcher(self.inner.deep_copy(), self.grammars)

    def accept(self, token: int) -> bool:
        """Advance by a token; True if the text must end after it. Raises GrammarError if it is not allowed."""
        if not self.inner.consume_token(token):
            raise GrammarError(self.error)
        return self.inner.is_stopped()

    @property
    def error(self) -> str:
        """Why it cannot advance."""
        return first_line(self.inner.get_error()) or "no token of this vocabulary can come next"


class _Vocabulary:
    """A tokenizer with llguidance's interface.

    Special tokens and markers (<think>, <tool_call>, …) are not text: only a grammar that names them allows them.
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
    """The text itself. Raises PunaError for an unpaired surrogate, which is not valid text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PunaError("The grammar contains an unpaired surrogate.", "Give valid Unicode.") from None
    return text


def _quoted(text: str) -> str:
    """A string of Lark's notation."""
    return json.dumps(text, ensure_ascii=False)
