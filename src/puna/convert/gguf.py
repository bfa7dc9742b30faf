"""Export to GGUF, the file format of llama.cpp, Ollama and LM Studio.

One file contains the shape, the vocabulary, the chat template and the tensors. llama.cpp's Llama rotates adjacent pairs
(2i, 2i + 1) of a head, transformers' rotates halves (i, i + head_dim / 2), so the rows of query and key are permuted.
Tensors are converted one by one; the file gets its name when it is complete and has been read back.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, RopeScalingType
from numpy.typing import NDArray
from torch import Tensor

from puna.convert.quants import FALLBACK, fitting_type, quantize, relative_errors
from puna.convert.vocabulary import Vocabulary, vocabulary, write_vocabulary
from puna.core.console import progress
from puna.core.errors import PunaError, nearest
from puna.core.files import disk_errors, read_json, require_space
from puna.core.units import format_count
from puna.model.card import public_name
from puna.model.config import ModelConfig
from puna.model.hub import model_name
from puna.model.llama import rotary_frequencies
from puna.model.store import load_config, load_lineage, read_tensor, stored_dtype, tensor_files
from puna.text.tokenizer import Tokenizer

Type = GGMLQuantizationType

# The schemes: the type of most matrices, and the mix's name in general.file_type.
SCHEMES = {
    "f32": (Type.F32, LlamaFileType.ALL_F32),
    "f16": (Type.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Type.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "q4_k_m": (Type.Q4_K, LlamaFileType.MOSTLY_Q4_K_M),
}
FLOATS = ("f32", "f16", "bf16")
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass
class ExportedFile:
    """The result of an export. errors: relative root mean square error of each type's tensors."""

    path: Path
    bytes: int
    types: dict[str, int]
    fallbacks: list[str]
    verified: bool
    errors: dict[str, float] = field(default_factory=dict)


def default_scheme(directory: Path) -> str:
    """The scheme that keeps the precision of the stored weights."""
    return {torch.bfloat16: "bf16", torch.float16: "f16"}.get(stored_dtype(directory), "f32")


def export_gguf(directory: Path, out: Path, scheme: str, *, name: str = "", verify: bool = True) -> ExportedFile:
    """Write the model in `directory` as the new file `out`. scheme: a key of SCHEMES; name: general.name.

    Raises PunaError for an unknown scheme, a tokenizer that llama.cpp cannot reproduce, values that are not finite or
    outside the type's range, lack of space, an existing `out`, and a file that reads back differently.
    """
    if scheme not in SCHEMES:
        raise PunaError(f"'{scheme}' is not a supported precision or quantization of GGUF.", nearest(scheme, SCHEMES))
    config = load_config(directory)
    if out.exists():
        raise PunaError(f"{out} exists already.", "Choose another name or remove it first.")
    files = tensor_files(directory, config)
    tokenizer = Tokenizer.load(directory)
    words = vocabulary(tokenizer, config.vocab_size, str(directory))
    plan = {key: tensor_type(key, shape, scheme, config) for key, shape in config.parameter_shapes().items()}
    sizes = {key: _bytes(shape, plan[key]) for key, shape in config.parameter_shapes().items()}
    text = sum(len(token.encode()) + 24 for token in (*words.tokens, *words.merges))
    require_space(out.parent, sum(sizes.values()) + text + (1 << 20), f"{out.name}")
    writer = GGUFWriter(None, "llama")
    _metadata(writer, directory, config, scheme, public_name(name or model_name(directory)))
    write_vocabulary(writer, words, tokenizer.chat_template)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(writer, temporary, config, files, plan)
            errors = _verify(temporary, config, files, plan, words) if verify else {}
            size = temporary.stat().st_size
            if out.exists():
                raise PunaError(f"{out} exists already; another process made it.", "Choose another name.")
            os.rename(temporary, out)
        finally:
            writer.close()
            temporary.unlink(missing_ok=True)
    wanted = SCHEMES[scheme][0]
    spared = [llama_cpp_name(key) for key, kind in plan.items() if kind in (*FALLBACK.values(), Type.F16)]
    types = Counter(kind.name for kind in plan.values())
    return ExportedFile(out, size, dict(types), spared if wanted in (Type.Q4_0, Type.Q4_K) else [], verify, errors)


def llama_cpp_name(name: str) -> str:
    """A parameter's name in GGUF."""
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[part.removesuffix('.weight')]}.weight"


def tensor_type(name: str, shape: tuple[int, ...], scheme: str, config: ModelConfig) -> Type:
    """The type of a tensor. Norms stay float32; the most sensitive tensors get more bits, as in llama.cpp's mixes.

    The head (or the embedding, if tied) is Q6_K in both 4-bit mixes. Q4_K_M also uses Q6_K for v_proj and down_proj in
    the first and last eighth of the layers and every third between; v_proj of a shape like 70B's, where eight query
    heads share it, is Q5_K elsewhere.
    """
    kind = SCHEMES[scheme][0]
    if len(shape) == 1:
        return Type.F32
    if scheme in ("q4_0", "q4_k_m"):
        if name == "lm_head.weight" or (config.tie_word_embeddings and name == "model.embed_tokens.weight"):
            kind = Type.Q6_K
        elif scheme == "q4_k_m" and name.endswith(("v_proj.weight", "down_proj.weight")):
            layers, layer = config.num_hidden_layers, int(name.split(".")[2])
            eighth = layers // 8
            if layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2:
                kind = Type.Q6_K
            shared = layers == 80 and config.num_attention_heads != config.num_key_value_heads
            if kind == Type.Q4_K and shared and name.endswith("v_proj.weight"):
                kind = Type.Q5_K
    return fitting_type(kind, shape[-1])


# -- parts -------------------------------------------------------------------------------------------------------------


def _metadata(writer: GGUFWriter, directory: Path, config: ModelConfig, scheme: str, name: str) -> None:
    lineage = load_lineage(directory)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(format_count(config.num_parameters()).replace(" ", ""))
    licence = lineage.get("licence") or lineage.get("license")
    if licence:
        writer.add_license(str(licence))
    if lineage.get("parent"):
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, Path(str(lineage["parent"])).name)
    for key, number in sampling_defaults(directory).items():
        add = writer.add_int32 if key == "top_k" else writer.add_float32
        add(f"general.sampling.{'temp' if key == 'temperature' else key}", number)
    writer.add_file_type(SCHEMES[scheme][1])
    if scheme not in FLOATS:
        writer.add_quantization_version(2)  # of the block formats, ggml's constant since 2023
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)


def sampling_defaults(directory: Path) -> dict[str, Any]:
    """temperature, top_p and top_k of generation_config.json where given; temperature 0 if it disables sampling."""
    path = directory / "generation_config.json"
    values = read_json(path) if path.is_file() else {}
    found = {key: values[key] for key in ("temperature", "top_p", "top_k") if values.get(key) is not None}
    return {"temperature": 0.0} if values.get("do_sample") is False else found


def _rope_factors(config: ModelConfig) -> NDArray[np.float32] | None:
    """The divisors of the rotary frequencies in llama.cpp, (head_dim / 2,), for Llama 3.1's scaling."""
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return None
    plain = rotary_frequencies(config.model_copy(update={"rope_scaling": None}))
    return (plain.double() / rotary_frequencies(config).double()).float().numpy()


def _write(
    writer: GGUFWriter, path: Path, config: ModelConfig, files: Mapping[str, Path], plan: Mapping[str, Type]
) -> None:
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info(_ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for name, shape in config.parameter_shapes().items():
        size = _bytes(shape, plan[name])
        block, width = GGML_QUANT_SIZES[plan[name]]
        as_bytes = (*shape[:-1], shape[-1] // block * width)
        writer.add_tensor_info(llama_cpp_name(name), as_bytes, np.dtype(np.uint8), size, raw_dtype=plan[name])
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    # Written here, not by the gguf package: NumPy's tofile hides why a write failed, such as a full disk.
    if factors is not None:
        file.write(factors.tobytes())
        writer.write_padding(file, factors.nbytes)
    with progress(transient=True) as bar:
        task = bar.add_task("Writing", total=len(plan))
        for name, kind in plan.items():
            data = _stored(name, _source(name, config, files), kind)
            file.write(data.data.cast("B"))
            writer.write_padding(file, data.nbytes)
            bar.advance(task)
    file.flush()
    os.fsync(file.fileno())


def _source(name: str, config: ModelConfig, files: Mapping[str, Path]) -> Tensor:
    """A tensor with llama.cpp's row order, in its stored precision. Raises PunaError if it is not finite."""
    tensor = read_tensor(files[name], name)
    if not torch.isfinite(tensor).all():
        raise PunaError(
            f"{files[name]}: tensor {name} contains values that are not finite.", "The weights are damaged."
        )
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = tensor.shape[0] // config.head_dim
        pairs = tensor.view(heads, 2, config.head_dim // 2, -1).transpose(1, 2)
        tensor = pairs.reshape(tensor.shape)
    return tensor


def _stored(name: str, tensor: Tensor, kind: Type) -> NDArray[Any]:
    """The tensor's bytes in `kind`, as a contiguous array."""
    if kind in (Type.F32, Type.F16):
        wanted = torch.float32 if kind == Type.F32 else torch.float16
        converted = tensor.to(wanted)
        if kind == Type.F16 and not torch.isfinite(converted).all():
            raise PunaError(f"Tensor {name} has values beyond float16's 65,504.", "Export it with --dtype bf16.")
        return converted.contiguous().numpy()
    if kind == Type.BF16:
        return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    return quantize(tensor.float().numpy(), kind)


def _verify(
    path: Path, config: ModelConfig, files: Mapping[str, Path], plan: Mapping[str, Type], words: Vocabulary
) -> dict[str, float]:
    """Read the file back and compare. Returns type -> relative root mean square error of quantized tensors."""
    reader = GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if len(reader.fields["tokenizer.ggml.tokens"].data) != len(words.tokens):
        raise _differs(path, "its vocabulary")
    errors: dict[str, list[float]] = {}
    with progress(transient=True) as bar:
        task = bar.add_task("Checking", total=len(plan))
        for name, kind in plan.items():
            bar.advance(task)
            tensor = found.get(llama_cpp_name(name))
            if tensor is None or tensor.tensor_type != kind:
                raise _differs(path, name)
            source = _source(name, config, files)
            if kind in (Type.F32, Type.F16, Type.BF16):
                expected = _stored(name, source, kind)
                if not np.array_equal(tensor.data.view(np.uint8).ravel(), expected.view(np.uint8).ravel()):
                    raise _differs(path, name)
                continue
            squares = errors.setdefault(kind.name, [0.0, 0.0])
            for values, stored in _row_groups(source, tensor.data):
                error, worst = relative_errors(values, stored, kind)
                if worst > 1:
                    raise _differs(path, name)
                squares[0] += error
                squares[1] += float(np.square(values, dtype=np.float64).sum())
    return {kind: (error / max(total, 1e-300)) ** 0.5 for kind, (error, total) in errors.items()}


def _row_groups(source: Tensor, stored: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    step = max(1, (1 << 20) // source.shape[-1])
    for start in range(0, source.shape[0], step):
        yield source[start : start + step].float().numpy(), np.array(stored[start : start + step])


def _differs(path: Path, what: str) -> PunaError:
    return PunaError(
        f"{path.name} was read back and {what} differs from what was written.",
        "The file was removed; the disk or memory may be failing.",
    )


def _bytes(shape: tuple[int, ...], kind: Type) -> int:
    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * size
