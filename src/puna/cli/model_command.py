"""inspect a model directory

`puna model inspect` shows shape, parameters, memory, cost of a token, tokenizer and lineage. For a repository on
Hugging Face it downloads the small files only, not the weights.
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puna.model.config import ModelConfig


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="inspect")
    inspect = commands.add_parser("inspect", help="print shape, parameters, memory, FLOPs, tokenizer and lineage")
    inspect.add_argument("model", metavar="DIR|HF-ID", help="model or run directory, or org/name on Hugging Face")
    inspect.add_argument(
        "--seq-len",
        type=int,
        default=0,
        metavar="N",
        help="sequence length for FLOPs and cache (default: the model's context)",
    )
    inspect.add_argument("--json", action="store_true", help="print everything as one JSON value")


def run(args: argparse.Namespace) -> None:
    """Collect the data and print it."""
    from puna.core.console import print_json
    from puna.core.errors import PunaError
    from puna.model.hub import find_model

    directory = find_model(args.model, weights=False)
    from puna.model.store import load_config

    config = load_config(directory)
    if args.seq_len < 0:
        raise PunaError(f"--seq-len {args.seq_len} is negative.", "Use a positive number of tokens.")
    facts = describe(directory, config, args.seq_len or config.max_position_embeddings)
    if args.json:
        print_json(facts)
    else:
        _print(facts)


def describe(directory: Path, config: "ModelConfig", seq_len: int) -> dict[str, Any]:
    """Return everything that is printed, as plain values: bytes, FLOPs per token, counts."""
    import torch

    from puna.core.errors import PunaError
    from puna.core.files import read_json
    from puna.model.store import load_lineage, stored_dtype
    from puna.text.tokenizer import Tokenizer

    try:
        dtype = str(stored_dtype(directory)).removeprefix("torch.")
    except PunaError:  # only the small files were downloaded
        values = read_json(directory / "config.json")
        dtype = values.get("dtype") or values.get("torch_dtype") or "bfloat16"
    item = getattr(torch, dtype).itemsize
    count = config.num_parameters()
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * item
    tokenizer = None
    if any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        loaded = Tokenizer.load(directory)
        names = {number: name for name, number in loaded.special.items()}
        tokenizer = {
            "tokens": loaded.vocab_size,
            "begin": names.get(loaded.bos_id) if loaded.bos_id is not None else None,
            "ends": [names.get(number, str(number)) for number in loaded.eos_ids],
            "hash": loaded.hash,
        }
    return {
        "directory": str(directory),
        "shape": {
            key: value for key, value in config.to_hf().items() if key not in ("architectures", "rope_parameters")
        },
        "parameters": count,
        "parameter_table": _parameter_table(config),
        "dtype": dtype,
        "memory": {
            "weights": count * item,
            "weights_float32": count * 4,
            "cache_per_token": cache,
            "cache_at_seq_len": cache * seq_len,
        },
        "seq_len": seq_len,
        "training_flops_per_token": {
            "full": config.flops_per_token(seq_len, attention="full"),
            "causal": config.flops_per_token(seq_len, attention="causal"),
        },
        "tokenizer": tokenizer,
        "lineage": load_lineage(directory),
    }


def _parameter_table(config: "ModelConfig") -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name, shape in config.parameter_shapes().items():
        kind = re.sub(r"\.\d+\.", ".*.", name)
        row = rows.setdefault(kind, {"name": kind, "shape": list(shape), "times": 0, "parameters": 0})
        row["times"] += 1
        size = 1
        for extent in shape:
            size *= extent
        row["parameters"] += size
    return list(rows.values())


def _print(facts: dict[str, Any]) -> None:
    from puna.core.console import show_table
    from puna.core.units import format_bytes, format_count

    shape, memory, flops = facts["shape"], facts["memory"], facts["training_flops_per_token"]
    scaling = shape["rope_scaling"]
    rope = f"theta {shape['rope_theta']:g}" + (f", {scaling['rope_type']} x{scaling['factor']:g}" if scaling else "")
    heads = f"{shape['num_attention_heads']} query, {shape['num_key_value_heads']} key-value"
    at = f"at {facts['seq_len']:,} tokens"
    rows: list[tuple[str, object]] = [
        ("layers", shape["num_hidden_layers"]),
        ("width", shape["hidden_size"]),
        ("feed-forward", shape["intermediate_size"]),
        ("heads", f"{heads}, of {shape['head_dim']}"),
        ("vocabulary", f"{shape['vocab_size']:,}" + (" (head tied)" if shape["tie_word_embeddings"] else "")),
        ("context", f"{shape['max_position_embeddings']:,} tokens"),
        ("rope", rope),
        ("parameters", f"{facts['parameters']:,} ({format_count(facts['parameters'])})"),
        ("weights", f"{format_bytes(memory['weights'])} in {facts['dtype']}"),
        ("", f"{format_bytes(memory['weights_float32'])} in float32"),
        (
            "cache",
            f"{format_bytes(memory['cache_per_token'])} a token, {format_bytes(memory['cache_at_seq_len'])} {at}",
        ),
        ("training", f"{format_count(flops['full'])}FLOP a token {at}, the full attention square counted"),
        ("", f"{format_count(flops['causal'])}FLOP a token, its causal triangle counted"),
    ]
    tokenizer = facts["tokenizer"]
    if tokenizer:
        ends = ", ".join(tokenizer["ends"]) or "none"
        rows.append(("tokenizer", f"{tokenizer['tokens']:,} tokens, begins {tokenizer['begin']}, ends {ends}"))
        rows.append(("tokenizer hash", tokenizer["hash"]))
    else:
        rows.append(("tokenizer", "none in the directory"))
    rows += [(key, value) for key, value in facts["lineage"].items() if key not in ("parameters",)]
    show_table(["", facts["directory"]], [(key, str(value)) for key, value in rows])
    print()
    show_table(
        ["parameter", "shape", "times", "parameters", "share"],
        [
            (row["name"], " x ".join(map(str, row["shape"])), row["times"], row["parameters"],
             f"{100 * row['parameters'] / facts['parameters']:.1f} %")
            for row in facts["parameter_table"]
        ],
    )  # fmt: skip
