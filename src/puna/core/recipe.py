"""The one recipe reader: TOML files, dotted overrides from the command line, and where each value came from.

A schema is a tree of frozen pydantic models (`Config`) whose fields all carry a description. Reading gives the checked
value plus a map from dotted key to its origin (default, file, preset, command line); `describe` turns both into the
rows that `puna recipe show` prints, and `dump` into the fully resolved TOML that a run directory keeps.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from puna.core.errors import PunaError, RecipeError, nearest


class Config(BaseModel):
    """Base of every recipe section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)
    renamed: ClassVar[Mapping[str, str]] = {}
    """Old key -> new key. An old key is still read; both together are an error."""

    @model_validator(mode="before")
    @classmethod
    def _read_old_keys(cls, values: Any) -> Any:
        return _with_new_keys(cls, values) if cls.renamed and isinstance(values, Mapping) else values


C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Loaded(Generic[C]):
    """A checked recipe and, for each dotted key that was set, where the value came from."""

    value: C
    origin: dict[str, str]


def load(schema: type[C], path: Path | None, overrides: Sequence[str] = ()) -> Loaded[C]:
    """Read `path` (TOML), apply overrides such as "train.steps=500", and check the result against `schema`.

    path: None means defaults alone. An override's value is read as TOML, or as a plain string when it is not TOML.
    Raises RecipeError with the file, the key and the nearest known key for anything that does not fit.
    """
    name = str(path) if path else "recipe"
    tree: dict[str, Any] = _rename_keys(schema, read_toml(path)) if path else {}
    origin = dict.fromkeys(_leaves(tree), name)
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"'{text}' is not an override.", "Write it as key=value, for example train.steps=500.")
        key = _new_key(schema, key.strip())
        value = _value(schema, key.split("."), raw.strip())
        _set(tree, key.split("."), value, text)
        origin = {k: v for k, v in origin.items() if k != key and not k.startswith(key + ".")}
        origin |= dict.fromkeys(_leaves({key: value}), "command line")
    return Loaded(check(schema, tree, name), origin)


def check(schema: type[C], tree: Mapping[str, Any], name: str) -> C:
    """Validate a tree of plain values. Raises RecipeError, one sentence, naming `name` and the first wrong key."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_sentence(schema, error, name)) from None
    except PunaError as error:  # a validator's own sentence, which does not know the file
        raise RecipeError(f"{name}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises RecipeError when it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise RecipeError(f"{path} does not exist.", nearest(path.name, near)) from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder, not a recipe.", "Give a .toml file.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}).", "Check the path and its permissions.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}.", "Fix that line.") from None


def dump(config: Config) -> str:
    """The fully resolved recipe as TOML. Keys that are None are left out, as TOML has no null."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def describe(loaded: Loaded[Any]) -> list[tuple[str, str, str, str]]:
    """Rows (dotted key, value, where it came from, what it means), every field, in the schema's order."""
    return list(_rows(loaded.value, loaded.origin, ""))


def _rows(config: BaseModel, origin: Mapping[str, str], prefix: str) -> Any:
    for name, field in type(config).model_fields.items():
        value, key = getattr(config, name), prefix + name
        if isinstance(value, BaseModel):
            yield from _rows(value, origin, key + ".")
        else:
            where = origin.get(key)
            if where is None and f"{prefix}preset" in origin and value != field.default:
                where = f"preset {getattr(config, 'preset', '')}"
            where = where or next((v for k, v in origin.items() if k.startswith(key + ".")), "default")
            yield key, _shown(value), where, field.description or ""


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shown(item) for item in value)}]"
    if isinstance(value, BaseModel):
        return str({k: v for k, v in value.model_dump(mode="json").items() if v is not None})
    return "none" if value is None else str(value)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _set(tree: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"'{text}': '{key}' is a value, not a section.", "See `puna recipe show` for the keys.")
    tree[keys[-1]] = value


def _value(schema: type[BaseModel], keys: Sequence[str], raw: str) -> Any:
    """An override's value. For a field that is text, `name=5` and `name=2024-01-01` are text without being quoted."""
    try:
        value = tomllib.loads(f"x = {raw}")["x"]
    except tomllib.TOMLDecodeError:
        return raw
    section: Any = schema
    for key in keys[:-1]:
        section = _config_in(section.model_fields[key].annotation) if key in section.model_fields else None
        if section is None:
            return value
    field = section.model_fields.get(keys[-1])
    return raw if field and field.annotation is str and not isinstance(value, str) else value


def _with_new_keys(schema: type[Config], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of one section with old ones renamed. Raises ValueError where old and new are both there."""
    for old, new in schema.renamed.items():
        if old in tree and new in tree:
            raise ValueError(f"'{old}' is the old name of '{new}', and both are given. Keep '{new}'")
    return {schema.renamed.get(key, key): value for key, value in tree.items()}


def _rename_keys(schema: Any, tree: Mapping[str, Any]) -> dict[str, Any]:
    """A file's tree with the old keys of every section renamed, as far as it has the schema's sections."""
    fields = getattr(schema, "model_fields", {})
    renamed: Mapping[str, str] = getattr(schema, "renamed", {})
    result = {}
    for key, value in tree.items():
        new = renamed.get(key, key)
        new = key if new in tree else new  # both: left to `check`, which names the file
        section = _config_in(fields[new].annotation) if new in fields else None
        result[new] = _rename_keys(section, value) if section and isinstance(value, Mapping) else value
    return result


def _new_key(schema: Any, key: str) -> str:
    """A dotted key with its old parts renamed."""
    parts = []
    for part in key.split("."):
        new = getattr(schema, "renamed", {}).get(part, part)
        field = getattr(schema, "model_fields", {}).get(new)
        schema = _config_in(field.annotation) if field else None
        parts.append(new)
    return ".".join(parts)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def _sentence(schema: type[BaseModel], error: ValidationError, name: str) -> str:
    errors = error.errors(include_url=False)
    # A misspelt key is also a missing one; the misspelling is what helps.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        hint = nearest(str(first["loc"][-1]), _known_keys(schema, first["loc"][:-1]))
        return f"{name}: unknown key '{key}'. {hint}".strip()
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    if first["type"] == "missing":
        return f"{name}: '{key}' is missing. Add it to the recipe."
    if first["type"] in ("value_error", "assertion_error"):
        return f"{name}: {message}."
    found = repr(first["input"])
    return f"{name}: {key} = {found if len(found) <= 80 else found[:77] + '...'}: {message}."


def _known_keys(schema: Any, loc: Sequence[Any]) -> list[str]:
    """Field names of the section at `loc`, found by walking the schema's annotations."""
    for part in loc:
        if isinstance(part, int) or not hasattr(schema, "model_fields"):
            continue
        annotation = schema.model_fields[part].annotation if part in schema.model_fields else None
        schema = _config_in(annotation) or schema
    return list(getattr(schema, "model_fields", {}))


def _config_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _config_in(argument)
        if found:
            return found
    return None
