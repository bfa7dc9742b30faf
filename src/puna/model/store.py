"""Read and write model directories: Hugging Face layout, safetensors only.

The layout is the native format, not an export: `config.json`, `model.safetensors` (or shards with an index), the
tokenizer's files, `generation_config.json`, a model card, and `puna.json` with the lineage. Pickled weights (.bin, .pt)
are never opened, because opening one runs any code inside it. A directory is written atomically.
"""

import contextlib
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from puna.core.errors import ModelError, reason_of
from puna.core.files import give_usual_mode, new_directory, read_json, require_space, write_json, write_text
from puna.core.units import format_bytes, format_count
from puna.model.card import model_card
from puna.model.config import ModelConfig
from puna.model.hub import model_name
from puna.model.llama import LlamaForCausalLM, copy_whole
from puna.model.tensor_file import Pending, write_tensors
from puna.version import __version__

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_ROWS = 8192  # of two matrices that are compared
_HEADER_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class SavableTokenizer(Protocol):
    """What a model directory needs from a tokenizer.

    puna.text has one; this package does not import it.
    """

    vocab_size: int
    bos_id: int | None
    eos_ids: list[int]

    def save(self, directory: Path) -> None:
        """Write the tokenizer's files into `directory`."""
        ...


def save_model(
    directory: Path,
    config: ModelConfig,
    state_dict: Mapping[str, Tensor | Pending],
    tokenizer: SavableTokenizer | None,
    *,
    dtype: torch.dtype,
    lineage: Mapping[str, Any],
    max_shard_bytes: int = 5_000_000_000,
    generation: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
    replace: bool = True,
) -> None:
    """Write a model directory.

    state_dict: whole tensors by transformers' names, on any device, or such as will be; they are converted to `dtype`
    one at a time as they are written.
    lineage goes to puna.json ("stage": "base" or "chat", recipe, corpus hash, parent). generation: entries of
    generation_config.json that win over the tokenizer's bos and eos. files: further files, copied as they are.
    Raises PunaError when tensors do not fit the config, the tokenizer is larger than the vocabulary, the disk is full,
    or `directory` holds something that is not a model.
    """
    directory = Path(directory)
    shapes = config.parameter_shapes()
    tensors = {name: tensor for name, tensor in state_dict.items() if not _ignored(name, config)}
    _check_names(shapes, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, "The weights to save")
    if tokenizer is not None:
        check_vocabulary(config, tokenizer.vocab_size, str(directory))
    if directory.exists() and any(directory.iterdir()) and not (directory / "config.json").is_file():
        raise ModelError(
            f"{directory} exists and is not a model directory (no config.json).",
            "Nothing in it was changed; choose another.",
        )
    require_space(directory.parent, config.num_parameters() * dtype.itemsize, f"The model {directory.name}")
    ids: dict[str, Any] = {}
    if tokenizer is not None:
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.eos_ids)}
    generation = {**ids, **(generation or {})}
    ids = {key: generation[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in generation}
    name = _dtype_name(dtype)
    with new_directory(directory, replace=replace) as place:
        _save_shards(place, shapes, tensors, dtype, max_shard_bytes)
        write_json(
            place / "config.json", {**config.to_file(), **ids, "dtype": name, "torch_dtype": name, "use_cache": True}
        )
        write_json(place / "generation_config.json", generation)
        if tokenizer is not None:
            tokenizer.save(place)
        write_json(place / "puna.json", {"puna": __version__, "parameters": config.num_parameters(), **lineage})
        write_text(place / "README.md", model_card(model_name(directory), config, lineage, name))
        for file in files:
            shutil.copyfile(file, place / file.name)


def save_tensors(
    place: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Write complete tensors as safetensors, in indexed shards if one file would be too large."""
    _save_shards(
        place, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors, dtype, max_shard_bytes
    )


def load_config(directory: Path) -> ModelConfig:
    """Read the shape from `config.json`. Raises PunaError when it is missing or not a dense Llama.

    A head that is stored and differs from the embedding is not tied to it, whatever the file says, as in transformers.
    """
    directory = Path(directory)
    config = ModelConfig.from_hf(_config_values(directory), str(directory / "config.json"))
    if config.tie_word_embeddings and _has_own_head(directory):
        return config.model_copy(update={"tie_word_embeddings": False})
    return config


def load_lineage(directory: Path) -> dict[str, Any]:
    """The origin of a model from puna.json; empty for models that were not made by Puna."""
    path = Path(directory) / "puna.json"
    return dict(read_json(path)) if path.is_file() else {}


def load_stage(directory: Path) -> str:
    """ "base" or "chat": by the lineage, or else by whether there is a chat template.

    The template alone does not identify Puna's own models: their tokenizer has one from the beginning. Every stage
    after pretraining trains answers in dialogues.
    """
    stage = load_lineage(directory).get("stage")
    if stage:
        return "base" if stage == "base" else "chat"
    path = directory / "tokenizer_config.json"
    template = path.is_file() and read_json(path).get("chat_template")
    return "chat" if template or (directory / "chat_template.jinja").is_file() else "base"


def load_model(
    directory: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> LlamaForCausalLM:
    """Load a model for inference or further training.

    dtype: None keeps the precision of the files. Raises PunaError, before any weight is read, when tensors are missing,
    unknown or have the wrong shape, a file is damaged or pickled, or the weights do not fit into free memory.
    """
    config = load_config(directory)
    dtype = dtype or stored_dtype(directory)
    _require_memory(config, torch.device(device), dtype, str(directory))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(dtype).to_empty(device=device)
    load_weights(directory, model)
    return model


@torch.no_grad()
def load_weights(directory: Path, model: LlamaForCausalLM) -> None:
    """Copy a directory's weights into `model` on any device, in any precision or sharding.

    Errors as `load_model`.
    """
    parameters = dict(model.named_parameters())
    names: dict[Path, list[str]] = {}
    for name, path in tensor_files(directory, model.config).items():
        names.setdefault(path, []).append(name)
    for path, within in names.items():
        with _open(path) as file:
            for name in within:
                copy_whole(file.get_tensor(name), parameters[name])


def tensor_files(directory: Path, config: ModelConfig) -> dict[str, Path]:
    """Parameter name -> its file. Raises PunaError when the tensors are not those of `config`."""
    directory = Path(directory)
    found = {
        name: (shape, path)
        for path in weight_files(directory)
        for name, (shape, _) in tensor_headers(path).items()
        if not _ignored(name, config)
    }
    _check_names(config.parameter_shapes(), {name: shape for name, (shape, _) in found.items()}, str(directory))
    return {name: path for name, (_, path) in found.items()}


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a safetensors file, on the CPU. Raises PunaError for a damaged file."""
    with _open(path) as file:
        return file.get_tensor(name)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model, from its index if it has one.

    Raises PunaError when there are none.
    """
    directory = Path(directory)
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if index.is_file():
        table = read_json(index)
        weight_map = table.get("weight_map") if isinstance(table, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{index} has no weight_map.", "It is not an index of weights; download the model again.")
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if Path(name).name != name or not (directory / name).is_file()]
        if missing:
            raise ModelError(
                f"{directory}: {len(missing)} of the {len(names)} weight files in the index are missing "
                f"({_few(missing)}).",
                "Download the model again.",
            )
        return [directory / name for name in names]
    if single.is_file():
        return [single]
    pickled = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickled:
        raise ModelError(
            f"{directory} has only pickled weights ({pickled[0]}), and opening a pickle runs any code inside it.",
            "Get the model as safetensors, or convert it with a tool you trust.",
        )
    raise ModelError(f"{directory} has no model.safetensors and no index of shards.", "Is this a model directory?")


def tensor_headers(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read name -> (shape, dtype as torch names it) of a safetensors file, without tensors.

    Raises PunaError for a damaged file and for quantized weights.
    """
    headers = {}
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            kind = _HEADER_DTYPES.get(part.get_dtype(), "")
            if not kind:
                raise ModelError(
                    f"{path}: tensor {name} is stored as {part.get_dtype()}.",
                    "Only float32, float16 and bfloat16 weights can be run; download the model unquantized.",
                )
            headers[name] = (tuple(part.get_shape()), kind)
    return headers


def stored_dtype(directory: Path) -> torch.dtype:
    """The precision in which most of a directory's weights are stored."""
    counts: dict[str, int] = {}
    for path in weight_files(directory):
        for shape, kind in tensor_headers(path).values():
            counts[kind] = counts.get(kind, 0) + math.prod(shape)
    return DTYPES.get(max(counts, key=lambda kind: counts[kind], default="float32"), torch.float32)


def check_vocabulary(config: ModelConfig, tokenizer_size: int, name: str) -> None:
    """Raise PunaError when the tokenizer can produce ids without a row in the embedding."""
    if tokenizer_size > config.vocab_size:
        raise ModelError(
            f"{name}: the tokenizer has {tokenizer_size:,} tokens but the model's vocab_size is {config.vocab_size:,}.",
            "Use the model's own tokenizer, or raise model.vocab_size.",
        )


# -- parts -------------------------------------------------------------------------------------------------------------


def _config_values(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a folder.", "Pass a model directory (with config.json and safetensors).")
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(f"{directory} has no config.json.", "Is this a model directory?")
    values = read_json(path)
    if not isinstance(values, dict):
        raise ModelError(f"{path} is not a JSON object.", "It is not a model's config; download the model again.")
    if values.get("quantization_config"):
        raise ModelError(f"{path}: the weights are quantized.", "Download the model in bfloat16, float16 or float32.")
    return values


def _has_own_head(directory: Path) -> bool:
    """Whether there is a head that is not the embedding; False where the weights are not here."""
    try:
        files = {name: path for path in weight_files(directory) for name in tensor_headers(path)}
    except ModelError:
        return False
    if not {_HEAD, _EMBEDDING} <= set(files):
        return False
    with _open(files[_HEAD]) as one, _open(files[_EMBEDDING]) as other:
        head, embedding = one.get_slice(_HEAD), other.get_slice(_EMBEDDING)
        if head.get_shape() != embedding.get_shape():
            return True
        for start in range(0, head.get_shape()[0], _ROWS):
            rows, others = head[start : start + _ROWS], embedding[start : start + _ROWS]
            kind = min(rows.dtype, others.dtype, key=lambda dtype: dtype.itemsize)
            if not torch.equal(rows.to(kind), others.to(kind)):
                return True
    return False


def _ignored(name: str, config: ModelConfig) -> bool:
    # Early Llama checkpoints contain the rotary table; tied models may contain the embedding twice, also as the head.
    return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name == _HEAD)


def _check_names(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    wrong = [name for name in wanted if name in found and found[name] != wanted[name]]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_few(missing)})")
    if extra:
        parts.append(f"{len(extra)} that this architecture does not have ({_few(extra)})")
    if wrong:
        name = wrong[0]
        parts.append(f"{len(wrong)} of a different shape ({name} is {list(found[name])}, not {list(wanted[name])})")
    if parts:
        raise ModelError(
            f"{where}: tensors do not fit config.json: {', '.join(parts)}.",
            "Config and weights belong to different models, or a file is missing.",
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """`safe_open` on the CPU, with an error that names a damaged file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        detail = reason_of(error).removeprefix("Error while deserializing header: ")
        raise ModelError(f"{path} is damaged or truncated ({detail}).", "Download or write the model again.") from None


def _save_shards(
    place: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor | Pending],
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> None:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        part = {name: tensors[name] for name in names}
        if any(isinstance(tensor, Pending) for tensor in part.values()):
            write_tensors(place / file, part, dtype)
        else:
            ready = {
                name: tensor.detach().to(device="cpu", dtype=dtype).contiguous()
                for name, tensor in part.items()
                if isinstance(tensor, Tensor)
            }
            with _system_errors(place / file):
                save_file(ready, place / file, metadata={"format": "pt"})
        give_usual_mode(place / file)
        with open(place / file, "rb") as written:
            os.fsync(written.fileno())
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
        write_json(
            place / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


@contextlib.contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Restore the type of a full disk's error.

    safetensors reports it as its own error with the system's number in the text.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _require_memory(config: ModelConfig, device: torch.device, dtype: torch.dtype, name: str) -> None:
    needed = config.num_parameters() * dtype.itemsize
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], "the GPU"
    else:
        free, where = psutil.virtual_memory().available, "this machine"
    if needed > free:
        raise ModelError(
            f"{name} needs {format_bytes(needed)} for {format_count(config.num_parameters())} parameters in "
            f"{_dtype_name(dtype)}, but {where} has {format_bytes(free)} free.",
            f"The largest that fits has about {format_count(free / dtype.itemsize)} parameters in that precision.",
        )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
