"""What `config.json` means: transformers' keys, types and defaults for a dense Llama, in one table.

Checked against transformers 5.24 (`LlamaConfig`, `modeling_rope_utils`). Where transformers would fill in a shape,
choose between two contradicting values or merely warn, the file is refused by the key's name: a wrong guess gives wrong
logits.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from puna.core.errors import ModelError, nearest


class _Key(NamedTuple):
    """kind: bool, int, float or str. default: None: the file must have it. nullable: null is the same as absent."""

    kind: type
    default: Any = None
    nullable: bool = False


_SHAPES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_KEYS: dict[str, _Key] = {
    **{name: _Key(int) for name in _SHAPES},
    "num_key_value_heads": _Key(int, 0, nullable=True),  # 0: as many as query heads
    "head_dim": _Key(int, 0, nullable=True),  # 0: hidden_size / num_attention_heads
    "max_position_embeddings": _Key(int, 2048),
    "rms_norm_eps": _Key(float, 1e-6),
    "initializer_range": _Key(float, 0.02),
    "tie_word_embeddings": _Key(bool, False),
    "hidden_act": _Key(str, "silu"),
    "attention_bias": _Key(bool, False),
    "mlp_bias": _Key(bool, False),
}
_ROPE_THETA = 10_000.0
_LARGEST = 1e300
_ROPE: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def read_hf(values: Any, name: str) -> dict[str, Any]:
    """The fields of `ModelConfig` that a config.json gives. name: the file, for messages.

    Raises ModelError, naming the key, for what is missing, of a wrong type, contradictory or not a dense Llama's.
    """
    if not isinstance(values, Mapping):
        raise ModelError(f"{name} is not a JSON object.", "It is not a model's config; fetch the model again.")
    kind = values.get("model_type")
    if kind != "llama":
        raise ModelError(f"{name}: model_type is {kind!r}.", "Puna runs dense Llama models (model_type 'llama').")
    read = {key: _read(values, key, entry, name) for key, entry in _KEYS.items()}
    if read.pop("attention_bias") | read.pop("mlp_bias"):
        raise ModelError(f"{name}: the model has biases.", "Llama 2, 3, 3.1 and 3.2 have none; this one cannot be run.")
    activation = read.pop("hidden_act")
    if activation not in ("silu", "swish"):  # two names of one function
        raise ModelError(f"{name}: hidden_act is {activation!r}.", "Llama uses silu; this one cannot be run.")
    read["num_key_value_heads"] = read["num_key_value_heads"] or read["num_attention_heads"]
    theta, scaling = _rope(values, read["max_position_embeddings"], name)
    return {**read, "rope_theta": theta, "rope_scaling": scaling}


def _read(values: Mapping[str, Any], key: str, entry: _Key, name: str) -> Any:
    value = values.get(key)
    if value is None and (entry.nullable or key not in values):
        if entry.default is None:
            close = [given for given in values if given not in _KEYS]
            hint = nearest(key, close) if close else ""
            raise ModelError(f"{name} has no {key}.", f"A model's shape is never guessed. {hint}".strip())
        return entry.default
    return _typed(value, key, entry.kind, name)


def _typed(value: Any, key: str, kind: type, name: str) -> Any:
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ModelError(f"{name}: {key} is {_shown(value)}, not {_WORDS[kind]}.", "Fetch the model's config again.")
    if kind is float and isinstance(value, int | float) and not abs(value) < _LARGEST:
        raise ModelError(f"{name}: {key} is {_shown(value)}, not a finite number.", "Fetch the model's config again.")
    return value


def _rope(values: Mapping[str, Any], context: int, name: str) -> tuple[float, dict[str, Any] | None]:
    """(rope_theta, rope_scaling): of transformers 4's keys, of transformers 5's, or of both where they agree."""
    found = {}
    for key in ("rope_scaling", "rope_parameters"):
        given = values.get(key)
        if given is not None and not isinstance(given, Mapping):
            raise ModelError(f"{name}: {key} is {_shown(given)}, not an object.", "Fetch the model's config again.")
        if given:
            found[key] = _rule(values, given, context, f"{name}: {key}")
    # transformers 5 takes rope_scaling alone where there is one, and leaves a base in rope_parameters unread.
    rules = list(found.values())
    if len(rules) == 2 and rules[0] != rules[1]:
        raise ModelError(
            f"{name}: rope_scaling and rope_parameters contradict each other.",
            "Remove one of them, or write the same in both.",
        )
    if rules:
        return rules[0]
    return _base(values, {}, f"{name}: rope_theta"), None


def _rule(values: Mapping[str, Any], rope: Mapping[str, Any], context: int, where: str) -> tuple[float, Any]:
    """(base, scaling) of one object; scaling: None for plain RoPE."""
    kinds = [rope[key] for key in ("rope_type", "type") if rope.get(key) is not None]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        raise ModelError(f"{where} has rope_type {kinds[0]!r} and type {kinds[1]!r}.", "Remove one of them.")
    if not kinds and set(rope) - {"rope_theta", "rope_type", "type", "partial_rotary_factor"}:
        raise ModelError(f"{where} has no rope_type.", f"Known: {', '.join(_ROPE)}.")
    kind = kinds[0] if kinds else "default"
    if kind not in _ROPE:
        raise ModelError(f"{where}: RoPE type {_shown(kind)} is not known.", f"Known: {', '.join(_ROPE)}.")
    for place in (rope, values):
        if place.get("partial_rotary_factor") not in (None, 1):
            raise ModelError(f"{where}: partial_rotary_factor is not 1.", "Llama turns whole heads.")
    file, _, key_name = where.rpartition(": ")
    theta = _base(values, rope, where)
    if kind == "default":
        return theta, None
    scaling: dict[str, Any] = {"rope_type": kind}
    for key in _ROPE[kind]:
        value = rope.get(key)
        if key == "original_max_position_embeddings":
            # As transformers: the top level wins, and without either it is the model's context.
            value = values.get(key, context if value is None else value)
        if value is None:
            raise ModelError(f"{where} of type {kind!r} has no {key}.", "It is never guessed; see the model's card.")
        scaling[key] = _typed(value, f"{key_name}.{key}", int if "max" in key else float, file)
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ModelError(f"{where}: high_freq_factor is not above low_freq_factor.", "See the model's card.")
    return theta, scaling


def _base(values: Mapping[str, Any], rope: Mapping[str, Any], where: str) -> float:
    given = [place["rope_theta"] for place in (rope, values) if "rope_theta" in place]
    for value in given:
        _typed(value, "rope_theta", float, where.rpartition(": ")[0])
    if len(set(given)) > 1:
        raise ModelError(
            f"{where}: rope_theta is {given[0]} there and {given[1]} at the top level.", "Remove one of them."
        )
    return float(given[0]) if given else _ROPE_THETA


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
