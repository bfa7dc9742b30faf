"""JSON schemas as llguidance takes them: what it cannot enforce is left out, or refused by name.

JSON Schema 2020-12 has more than a grammar can express. A schema that is `strict` must be enforced whole, so whatever
would be lost is an error that names it. Any other schema is best effort: llguidance's lenient mode skips the keywords
it does not implement, and what it cannot compile at all (a pattern with look-around, bounds beyond 64 bits) is removed
here. `format` is an annotation in both: those that llguidance knows are enforced, the others say nothing.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from puna.core.errors import PunaError

# One space or line break at most where JSON allows white space: with more, a small model generates it until max_tokens.
WHITESPACE = r"[\x20\x0A]"

_OPTIONS = {"whitespace_pattern": WHITESPACE, "lenient": True}
_MEANING = {"oneOf not fully": "oneOf whose alternatives may overlap"}

_ANNOTATIONS = {"$anchor", "$comment", "$defs", "$id", "definitions", "id", "title", "description", "default",
                "readOnly", "writeOnly", "examples", "contentMediaType", "contentEncoding"}  # fmt: skip
_ASSERTIONS = {"additionalItems", "additionalProperties", "allOf", "anyOf", "const", "enum", "exclusiveMaximum",
               "exclusiveMinimum", "format", "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems",
               "minLength", "minProperties", "minimum", "multipleOf", "oneOf", "pattern", "patternProperties",
               "prefixItems", "properties", "required", "type"}  # fmt: skip
_NOT_ENFORCED = {"$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas",
                 "else", "if", "maxContains", "minContains", "not", "propertyNames", "then", "unevaluatedItems",
                 "unevaluatedProperties", "uniqueItems"}  # fmt: skip
_KEYWORDS = _ASSERTIONS | _NOT_ENFORCED
_DATA = {"const", "enum", "default", "examples"}
_BY_NAME = {"$defs", "definitions", "properties", "patternProperties", "dependentSchemas"}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def grammar_of(schema: Mapping[str, Any], *, strict: bool) -> str:
    """llguidance's grammar of the JSON that a schema describes. Raises PunaError for an invalid schema."""
    try:
        text = json.dumps(dict(schema), ensure_ascii=False)
        text.encode()
        return _grammar_of(text, strict)
    except UnicodeEncodeError:
        raise PunaError("The JSON schema contains an unpaired surrogate.", "Give valid Unicode.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise PunaError(f"The JSON schema is not valid JSON ({first_line(error)}).", "Fix it.") from None


def first_line(error: object) -> str:
    """The reason of an error, without llguidance's excerpt of the source."""
    first, *others = str(error).strip().splitlines() or [""]
    reason = next((line.strip() for line in others if line.startswith("error:")), "")
    return " ".join(filter(None, (first.strip().rstrip(".:"), reason)))


@lru_cache(maxsize=64)
def _grammar_of(text: str, strict: bool) -> str:
    schema = json.loads(text)
    error, lost = _compile(schema)
    if error is not None:
        for relaxed in (_Relaxed(), _Relaxed(bare_references=True)):
            kept = relaxed.schema(schema)
            still, lost = _compile(kept)
            if still is None:
                schema, lost = kept, [*relaxed.removed, *lost]
                break
        else:
            raise PunaError(f"The JSON schema is not valid ({error}).", "Fix it.")
    if strict and lost:
        names = "; ".join(dict.fromkeys(lost))
        raise PunaError(
            f"strict cannot be promised for this JSON schema ({names}).", "Leave that out, or do not ask for strict."
        )
    return _source(schema)


def _source(schema: Any) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(json.dumps(schema, ensure_ascii=False), defaults=_OPTIONS)  # type: ignore[arg-type]


def _compile(schema: Any) -> tuple[str | None, list[str]]:
    """llguidance's error, if any, and what it does not enforce. An unknown format is not a loss."""
    from llguidance import LLMatcher

    failed, messages = LLMatcher.validate_grammar_with_warnings(_source(schema))
    if failed:
        return first_line(messages[0]), []
    return None, [_loss(one) for one in messages if not one.startswith("Unknown format")]


def _loss(warning: str) -> str:
    return next((shown for start, shown in _MEANING.items() if warning.startswith(start)), first_line(warning))


class _Relaxed:
    """Copies schemas without what llguidance cannot compile.

    bare_references: also remove what is next to a $ref, which llguidance refuses where the $ref is circular.
    removed: what was removed.
    """

    def __init__(self, *, bare_references: bool = False) -> None:
        self._bare_references = bare_references
        self.removed: list[str] = []

    def schema(self, value: Any) -> Any:
        """The same schema without it."""
        if isinstance(value, list):
            return [self.schema(item) for item in value]
        if not isinstance(value, dict):
            return value
        kept = {key: item for key, item in value.items() if self._compiles(value, key, item)}
        if self._bare_references and isinstance(value.get("$ref"), str):
            kept = {key: item for key, item in kept.items() if key == "$ref" or key in _ANNOTATIONS}
            self.removed += [f"{key} next to a circular $ref" for key in value if key in _KEYWORDS]
        self._open_patterns(value, kept)
        copy: dict[str, Any] = {}
        for key, item in kept.items():
            if key in _BY_NAME and isinstance(item, dict):
                copy[key] = {name: self.schema(one) for name, one in item.items()}
            else:
                copy[key] = item if key in _DATA else self.schema(item)
        return copy

    def _compiles(self, schema: dict[str, Any], key: str, item: Any) -> bool:
        """Whether a keyword can stay."""
        if key == "$ref" or isinstance(item, dict | list):
            return True  # looked at by itself
        if key == "pattern" and isinstance(item, str):
            return self._stays({"type": "string", key: item}, f"pattern {item}")
        if key in _BOUNDS and isinstance(item, int | float):
            kinds = schema.get("type")
            kind = "integer" if kinds == "integer" or (isinstance(kinds, list) and "integer" in kinds) else "number"
            return self._stays({"type": kind, key: item}, f"{key} {item}")
        if key == "$schema":
            return self._stays({key: item, "type": "object"}, f"{key} {item}")
        return key in _ANNOTATIONS or key in _KEYWORDS  # an unknown keyword says nothing

    def _open_patterns(self, schema: dict[str, Any], kept: dict[str, Any]) -> None:
        """Allow any name where patternProperties cannot be compiled."""
        patterns = schema.get("patternProperties")
        if isinstance(patterns, dict) and not self._stays(
            {"type": "object", "patternProperties": dict.fromkeys(patterns, True)},
            f"patternProperties {', '.join(patterns)}",
        ):
            del kept["patternProperties"]
            if schema.get("additionalProperties") is False:
                kept["additionalProperties"] = {"anyOf": list(patterns.values())}

    def _stays(self, schema: dict[str, Any], name: str) -> bool:
        error, _ = _compile(schema)
        if error is not None:
            self.removed.append(name)
        return error is None
