"""Import a third-party model into our layout, and verify the result.

Weights are rewritten as our shards, the tokenizer's files and the licence are copied unchanged, and the end tokens and
sampling defaults of generation_config.json are kept. The written directory is read back, and its logits are compared
with those that transformers computes from the source, where transformers is installed and there is memory for it.
"""

from pathlib import Path
from typing import Any

import psutil
import torch

from puna.core.console import say
from puna.core.errors import PunaError
from puna.core.files import read_json
from puna.engine.generate import load_engine
from puna.model.llama import LlamaForCausalLM
from puna.model.store import load_config, load_lineage, load_model, load_stage, load_weights, save_model

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
)
_TOLERANCE = 1e-3  # of the largest logit, in float32; a wrong epsilon or base of RoPE exceeds it
_GENERATION_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k")


def import_model(source: Path, out: Path, *, origin: str) -> dict[str, Any]:
    """Copy the model in `source` to the new directory `out`; origin: the name of the source in the lineage.

    Returns the lineage, and says which end tokens were chosen and what the copy was compared with. Raises PunaError if
    the source is damaged, its logits are not finite or not those of transformers, or `out` exists.
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
    tokenizer = engine.tokenizer
    if tokenizer is None:
        say("The model has no tokenizer: it continues token ids, but nobody can chat with it or give it text.")
    else:
        say(f"Tokenizer: {tokenizer.choices}.")
    del engine, model
    say(_compared(source, out))
    return load_lineage(out)


def _compared(source: Path, out: Path) -> str:
    """Compare with transformers, and say it. Raises PunaError where the logits differ."""
    config = load_config(out)
    if 4.4 * config.num_parameters() > psutil.virtual_memory().available:
        return "Read back unchanged; there is too little memory to compare it with transformers."
    try:
        import transformers
    except ImportError:
        return "Read back unchanged; transformers is not installed, so it was not compared with it."
    name = f"transformers {transformers.__version__}"
    count = min(16, config.max_position_embeddings)
    ids = torch.linspace(0, config.vocab_size - 1, count).long()[None]
    positions = torch.linspace(0, config.max_position_embeddings - 1, count).long()[None]
    theirs = _transformers_logits(source, ids, positions)
    if theirs is None:
        return f"Read back unchanged; {name} does not load the source, so it was not compared with it."
    with torch.inference_mode():
        ours = load_model(out, dtype=torch.float32)(ids, positions=positions)
    difference, scale = float((ours - theirs).abs().max()), max(1.0, float(theirs.abs().max()))
    if not difference <= _TOLERANCE * scale:
        raise PunaError(
            f"{source}: the logits differ from those of {name} by {difference:.3g} (the largest is {scale:.3g}).",
            f"Do not use {out}. Report the model's config.json as a fault of Puna.",
        )
    return f"Checked: its logits are those of {name} (difference at most {difference:.1g})."


def _transformers_logits(source: Path, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
    """(1, tokens, vocab) in float32; None where transformers refuses the directory."""
    import transformers

    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = transformers.LlamaForCausalLM.from_pretrained(
            source, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
        ).eval()
        with torch.inference_mode():
            # With a mask: without one, positions with gaps would be taken for several texts in a row.
            return model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    except Exception:  # it refuses a directory with errors of many kinds, which share no base class
        return None
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


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
