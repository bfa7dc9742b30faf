"""The model card: a short README.md that describes a model directory and its origin."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from puna.model.config import ModelConfig
from puna.version import __version__


def model_card(name: str, config: ModelConfig, lineage: Mapping[str, Any], dtype: str) -> str:
    """README.md of a model directory.

    lineage: entries of puna.json; dtype: precision of the weights, as text.
    """
    name = public_name(name)
    shape = (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {config.num_attention_heads} query and "
        f"{config.num_key_value_heads} key-value heads, feed-forward {config.intermediate_size}"
    )
    facts = [
        ("Architecture", "dense Llama (`LlamaForCausalLM`)"),
        ("Parameters", f"{config.num_parameters():,} ({dtype})"),
        ("Shape", shape),
        ("Vocabulary", f"{config.vocab_size:,} tokens"),
        ("Context", f"{config.max_position_embeddings:,} tokens"),
    ]
    facts += [(key.replace("_", " ").capitalize(), f"`{value}`") for key, value in _plain(lineage)]
    table = "\n".join(f"| {key} | {value} |" for key, value in facts)
    front = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- puna\n---\n"
    use = 'from transformers import pipeline\npipeline("text-generation", "path/to/this/folder")("Once")'
    return (
        f"{front}\n# {name}\n\n| | |\n|---|---|\n{table}\n\n"
        f"Written by Puna {__version__}; `puna.json` has the full lineage.\n\n```python\n{use}\n```\n"
    )


def public_name(name: str) -> str:
    """Return the public name of a model.

    It is the folder's name, with a prefix if it starts with "Llama". Names that start with "Llama" are reserved for
    models built with Meta's weights (Llama Community License, 1.b).
    """
    return f"puna-{name}" if name.lower().startswith("llama") else name


def _plain(lineage: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in lineage.items():
        if isinstance(value, str | int | float | bool) and value != "":
            yield key, str(value).replace("|", "\\|").replace("\n", " ")
        elif value:
            yield key, json.dumps(value, ensure_ascii=False, default=str).replace("|", "\\|")[:200]
