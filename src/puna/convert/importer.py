"""Import a third-party model into our layout, and verify the result.

Weights are rewritten as our shards, the tokenizer's files and the licence are copied unchanged, and the end tokens and
sampling defaults of generation_config.json are kept. The written directory is read back and compared.
"""

from pathlib import Path
from typing import Any

import torch

from puna.core.errors import PunaError
from puna.core.files import read_json
from puna.engine.generate import load_engine
from puna.model.llama import LlamaForCausalLM
from puna.model.store import load_lineage, load_stage, load_weights, save_model

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
)
_GENERATION_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k")


def import_model(source: Path, out: Path, *, origin: str) -> dict[str, Any]:
    """Copy the model in `source` to the new directory `out`; origin: the name of the source in the lineage.

    Returns the lineage. Raises PunaError if the source is damaged, its logits are not finite, or `out` exists.
    """
    if out.exists():
        raise PunaError(f"{out} exists already.", "Choose another name or remove it first.")
    engine = load_engine(source)
    model = engine.model
    logits = _probe(model, str(source))
    lineage = {**load_lineage(source), "stage": load_stage(source), "parent": origin}
    copied = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    has_json = (source / "tokenizer.json").is_file()
    copied = copied if has_json else []
    licences = sorted(p for p in source.glob("*") if p.is_file() and p.name.upper().startswith(("LICENSE", "NOTICE")))
    save_model(
        out,
        model.config,
        model.state_dict(),
        None if has_json else engine.tokenizer,
        dtype=model.head_weight.dtype,
        lineage=lineage,
        generation=_generation(source),
        files=[*copied, *licences],
        replace=False,
    )
    load_weights(out, model)
    if not torch.equal(_probe(model, str(out)), logits):
        raise PunaError(f"{out} does not give the logits of {source}.", "The disk may be failing; import it again.")
    return load_lineage(out)


@torch.inference_mode()
def _probe(model: LlamaForCausalLM, name: str) -> torch.Tensor:
    """The logits of a few tokens. Raises PunaError, naming the first bad tensor, if weights or logits are not
    finite."""
    for key, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise PunaError(f"{name}: tensor {key} contains values that are not finite.", "The weights are damaged.")
    config = model.config
    count = min(16, config.max_position_embeddings)
    logits = model(torch.linspace(0, config.vocab_size - 1, count).long()[None])
    if not torch.isfinite(logits).all():
        raise PunaError(
            f"{name}: the logits are not finite in {str(logits.dtype).removeprefix('torch.')}.",
            "The weights are damaged, or need a higher precision.",
        )
    return logits


def _generation(source: Path) -> dict[str, Any]:
    config, path = read_json(source / "config.json"), source / "generation_config.json"
    values = {**config, **(read_json(path) if path.is_file() else {})}
    return {key: values[key] for key in _GENERATION_KEYS if values.get(key) is not None}
