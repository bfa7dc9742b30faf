"""export a model as GGUF, for Ollama or as ONNX

Model directories are in Hugging Face layout already: transformers, vLLM and SGLang open them unchanged.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puna.convert.gguf import ExportedFile

_TARGETS = ("gguf", "ollama", "onnx")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="model or run directory")
    parser.add_argument("--to", required=True, metavar="|".join(_TARGETS), help="format to write")
    parser.add_argument("-o", "--out", type=Path, help="file (gguf) or folder to create (default: next to the model)")
    parser.add_argument("--dtype", metavar="f32|f16|bf16", help="precision of the weights (default: as stored)")
    parser.add_argument("--quantize", metavar="q8_0|q4_0|q4_k_m", help="gguf, ollama: quantize the matrices")
    parser.add_argument(
        "--no-verify", action="store_true", help="do not read the file back to compare it with the model"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(args: argparse.Namespace) -> None:
    """Export and print what was written."""
    from puna.core.errors import PunaError, nearest
    from puna.model.hub import model_directory, model_name

    if args.to not in _TARGETS:
        raise PunaError(f"--to {args.to} is not a format.", nearest(args.to, _TARGETS))
    directory = model_directory(args.model)
    if args.out and args.out.exists() and not (args.to == "gguf" and args.out.is_dir()):
        raise PunaError(f"{args.out} exists already.", "Choose another name or remove it first.")
    from puna.convert.gguf import FLOATS, SCHEMES, default_scheme

    home = directory.resolve()
    home = home.parent if home.name == "model" and (home.parent / "recipe.toml").is_file() else home
    target = home.with_name(model_name(directory))
    if args.to == "onnx":
        _onnx(args, directory, target)
        return
    packed = [name for name in SCHEMES if name not in FLOATS]
    for option, given, known in (("--dtype", args.dtype, FLOATS), ("--quantize", args.quantize, packed)):
        if given and given not in known:
            raise PunaError(f"{option} {given} is not known.", nearest(given, known))
    if args.dtype and args.quantize:
        raise PunaError("--dtype and --quantize were both given.", "Give one of them.")
    scheme = args.quantize or args.dtype or default_scheme(directory)
    if args.to == "gguf":
        _gguf(args, directory, target, scheme)
    else:
        _ollama(args, directory, target, scheme)


def _gguf(args: argparse.Namespace, directory: Path, target: Path, scheme: str) -> None:
    from puna.convert.gguf import export_gguf

    out = args.out or target.with_name(f"{target.name}-{scheme.upper()}.gguf")
    if out.is_dir():
        out = out / f"{target.name}-{scheme.upper()}.gguf"
    written = export_gguf(directory, out, scheme, name=target.name, verify=not args.no_verify)
    _say(args, written)
    if not args.json:
        print(out)


def _ollama(args: argparse.Namespace, directory: Path, target: Path, scheme: str) -> None:
    from puna.convert.ollama import export_ollama
    from puna.core.console import say

    out = args.out or target.with_name(f"{target.name}-ollama")
    written, notes = export_ollama(directory, out, scheme, name=target.name, verify=not args.no_verify)
    _say(args, written)
    if args.json:
        return
    for note in notes:
        say(note)
    print(f"ollama create {target.name.lower()} -f {out / 'Modelfile'}")


def _onnx(args: argparse.Namespace, directory: Path, target: Path) -> None:
    from puna.convert.onnx import export_onnx
    from puna.core.console import print_json
    from puna.core.errors import PunaError

    if args.quantize or args.dtype not in (None, "f32"):
        raise PunaError("ONNX supports only f32.", "Omit --dtype and --quantize.")
    out = args.out or target.with_name(f"{target.name}-onnx")
    export_onnx(directory, out)
    if args.json:
        print_json({"path": str(out)})
    else:
        print(out)


def _say(args: argparse.Namespace, written: "ExportedFile") -> None:
    from dataclasses import asdict

    from puna.core.console import print_json, say
    from puna.core.units import format_bytes

    if args.json:
        print_json(asdict(written))
        return
    types = ", ".join(f"{count} {name}" for name, count in sorted(written.types.items()))
    say(f"{format_bytes(written.bytes)}: tensors {types}.")
    if written.fallbacks:
        say(
            f"{len(written.fallbacks)} tensors are in a wider type, because their rows are not multiples of a block "
            f"({written.fallbacks[0]}{', …' if len(written.fallbacks) > 1 else ''})."
        )
    if written.verified:
        rms = "".join(f"; {name} off by {100 * error:.2g} % (rms)" for name, error in sorted(written.errors.items()))
        say(f"Read back and compared every tensor with the model: equal{rms}.")
    else:
        say("Not verified (--no-verify).")
