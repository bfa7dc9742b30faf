"""Plain data as JSON with exact types: the inputs and outputs of untrusted code.

Plain data is None, bool, int, float, str, bytes, list, tuple, set, frozenset and dict, exactly these types: a subclass,
which may define its own `__eq__`, is not. Each value is written with a tag, so True and 1, 1 and 1.0, (1,) and [1] stay
different; integers are hexadecimal, which is linear in their length, and floats are C99 hexadecimal, exact to the bit.
Reading never runs code. Used on both sides of the walls, so standard library only.
"""

import json
from typing import Any

DEPTH = 100  # maximum nesting of values, which also rejects cycles


def encode(value: Any) -> str:
    """`value` as one line of ASCII. Raises TypeError if it is not plain data, ValueError beyond DEPTH."""
    return _dumps(_pack(value, 0))


def decode(text: str | bytes) -> Any:
    """The value that `encode` wrote. Raises ValueError for anything else."""
    try:
        return _unpack(_loads(text), 0)
    except (TypeError, KeyError, IndexError, RecursionError, UnicodeError, OverflowError) as error:
        raise ValueError(f"not plain data: {error}") from error


_dumps = json.JSONEncoder(ensure_ascii=True, check_circular=False, separators=(",", ":")).encode
_sequences: dict[type, str] = {list: "l", tuple: "t", set: "z", frozenset: "y"}
_constructors: dict[str, type] = {tag: kind for kind, tag in _sequences.items()}


def _loads(text: str | bytes) -> Any:
    return json.loads(text, parse_int=_refuse, parse_float=_refuse, parse_constant=_refuse)


def _refuse(text: str) -> Any:
    raise ValueError(f"a bare number {text[:20]}")


def _pack(value: Any, depth: int) -> Any:
    if depth > DEPTH:
        raise ValueError(f"nested more than {DEPTH} deep")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return ["i", hex(value)]
    if kind is float:
        return ["f", value.hex()]
    if kind is bytes:
        return ["b", value.hex()]
    if kind in _sequences:
        return [_sequences[kind], [_pack(item, depth + 1) for item in value]]
    if kind is dict:
        return ["d", [[_pack(key, depth + 1), _pack(item, depth + 1)] for key, item in value.items()]]
    raise TypeError(f"a {kind.__name__} is not plain data")


def _unpack(packed: Any, depth: int) -> Any:
    if depth > DEPTH:
        raise ValueError(f"nested more than {DEPTH} deep")
    if packed is None or type(packed) in (bool, str):
        return packed
    tag, body = packed
    if tag == "i" and type(body) is str and body.lstrip("-")[:2] == "0x":
        return int(body, 16)
    if tag == "f" and type(body) is str:
        return float.fromhex(body)
    if tag == "b" and type(body) is str:
        return bytes.fromhex(body)
    if tag in _constructors and type(body) is list:
        return _constructors[tag](_unpack(item, depth + 1) for item in body)
    if tag == "d" and type(body) is list:
        return {_unpack(key, depth + 1): _unpack(item, depth + 1) for key, item in body}
    raise ValueError(f"not plain data: {str(packed)[:40]}")
