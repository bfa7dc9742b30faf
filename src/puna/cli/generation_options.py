"""The options of the commands that generate text, and the values made from them."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puna.engine.generate import Engine, SamplingParams


def add_options(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Declare the options of sampling, device and output."""
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=max_tokens,
        metavar="N",
        help="largest number of tokens to generate (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="T",
        help="sampling temperature; 0 is greedy (default: %(default)s)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="sample from the K most likely tokens (default: all)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        metavar="P",
        help="sample from the most likely tokens that together have probability P (default: %(default)s)",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="sample from tokens at least P times as likely as the most likely one (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="stop before this text (repeatable)"
    )
    parser.add_argument("--greedy", action="store_true", help="always take the most likely token")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 … (default: cuda if available)")
    parser.add_argument("--json", action="store_true", help="print one JSON value instead of a stream")


def sampling_params(args: argparse.Namespace) -> "SamplingParams":
    """Return the sampling parameters of the options. Raises PunaError for invalid values."""
    from puna.engine.generate import SamplingParams

    return SamplingParams(
        max_tokens=args.max_tokens,
        temperature=0.0 if args.greedy else args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=args.seed,
        stop=tuple(args.stop),
    )


def load(args: argparse.Namespace, *, fast: bool = False) -> "Engine":
    """Load `args.model` onto the device, with the fast kernels if `fast`.

    Raises PunaError when it cannot be loaded or has no tokenizer.
    """
    from puna.core.errors import PunaError
    from puna.engine.generate import load_engine
    from puna.model.hub import model_directory

    directory = model_directory(args.model)
    engine = load_engine(directory, device=device_of(args.device), fast=fast)
    if engine.tokenizer is None:
        raise PunaError(
            f"{directory} has no tokenizer (tokenizer.json or tokenizer.model).",
            "Copy the model's own tokenizer into that folder.",
        )
    return engine


def device_of(name: str) -> str:
    """Return the torch device of an option's value. Raises PunaError for one that this machine does not have."""
    import torch

    from puna.core.errors import PunaError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("it does not store data")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise PunaError(f"--device {name} cannot be used ({reason}).", "Use cpu or a device of this machine.") from None
    return name
