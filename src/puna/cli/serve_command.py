"""Answer over HTTP: OpenAI's API under /v1, and a page to talk in at /.

SIGTERM or Ctrl-C lets answers on their way finish; a second one leaves at once.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puna.serve.backend import Backend
    from puna.serve.settings import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("models", metavar="MODEL", nargs="*", help="model or run directories; NAME=DIR names one")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    where.add_argument("--port", type=int, default=8000, help="port (default 8000)")
    where.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="answer to this name too; * for any"
    )
    where.add_argument(
        "--cors-origin", action="append", default=[], metavar="URL", help="let pages of this origin call the API"
    )
    where.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="ask for a key: a line each, KEY or NAME = KEY"
    )
    where.add_argument("--no-page", action="store_true", help="the API alone")
    where.add_argument(
        "--data", default="", metavar="DIR", help="where conversations are kept: a directory or postgres://…"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-queue", type=int, default=64, metavar="N", help="texts that may wait; more get 429 (default 64)"
    )
    limits.add_argument("--max-body", type=float, default=10.0, metavar="MB", help="size of a request (default 10 MB)")
    limits.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds a request may take (default 600)"
    )
    limits.add_argument(
        "--drain", type=float, default=30.0, metavar="S", help="seconds to finish on SIGTERM (default 30)"
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--max-batch", type=int, default=64, metavar="N", help="texts written at once (default 64)")
    engine.add_argument(
        "--kv-tokens", type=int, metavar="N", help="tokens the key-value cache holds (default: what fits)"
    )
    engine.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 … (default: cuda where there is one)")
    engine.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="precision (default: what this device is fast in)"
    )
    engine.add_argument(
        "--quantize", choices=("int8", "int4"), help="store weights so (CPU): less memory, faster answers"
    )
    engine.add_argument("--deterministic", action="store_true", help="the same text whoever else asks; slower")
    other = parser.add_argument_group("another engine behind this server")
    other.add_argument(
        "--backend",
        choices=("native", "vllm", "llama.cpp", "openai"),
        default="native",
        help="what computes (default: Puna's own engine). MODEL is then a model of that server, by default its first",
    )
    other.add_argument(
        "--upstream", metavar="URL", help="where it runs; without it vllm and llama.cpp are started for MODEL"
    )


def run(args: argparse.Namespace) -> None:
    """Load, then answer until a signal ends it."""
    from rich.markup import escape

    from puna.core.console import say
    from puna.serve.app import create_app
    from puna.serve.backend import Models
    from puna.serve.run import listen, serve

    settings = settings_of(args)
    load = _load if args.backend == "native" else _connect
    _check_backend(args)
    listening = listen(settings)
    try:
        # A thread that used torch keeps torch's helpers, which take the cores from those of the engine's own thread (a
        # quarter of the speed of 32 streams on two cores). So models are loaded on threads that end.
        with ThreadPoolExecutor(1) as apart:
            backends = list(apart.map(lambda name: load(name, args, settings), args.models or [""]))
        app = create_app(settings, Models(backends))
    except BaseException:
        listening.close()
        raise

    def started() -> None:
        shown = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else settings.host
        say(f"http://{shown}:{listening.getsockname()[1]} answers; the API is at /v1.")
        for backend in backends:
            for choice in backend.choices:
                say(escape(f"  {choice}"))
            if backend.card.max_model_len is not None:
                context = f"{backend.card.max_model_len:,} tokens of context"
                say(escape(f"  {backend.card.id}: {context}, {backend.card.stage}"))
        if settings.host not in ("127.0.0.1", "::1", "localhost") and not settings.keys:
            say("Whoever reaches this address can use it: --api-key-file asks for keys.")

    serve(app, listening, started=started)


def settings_of(args: argparse.Namespace) -> "Settings":
    """What the options say. Raises PunaError for what means nothing."""
    from puna.core.errors import PunaError
    from puna.serve.settings import Settings, read_keys

    for name, least in (("max_queue", 0), ("max_batch", 1), ("max_body", 0.001), ("timeout", 0.001), ("drain", 0)):
        if not getattr(args, name) >= least:
            raise PunaError(f"--{name.replace('_', '-')} {getattr(args, name)} is too small.", "Give a larger number.")
    return Settings(
        host=args.host,
        port=args.port,
        keys=read_keys(args.api_key_file) if args.api_key_file else {},
        allowed_hosts=tuple(args.allowed_host),
        cors_origins=tuple(args.cors_origin),
        page=not args.no_page,
        data=args.data,
        max_queue=args.max_queue,
        max_body_bytes=int(args.max_body * 2**20),
        request_seconds=args.timeout,
        drain_seconds=args.drain,
    )


def _load(given: str, args: argparse.Namespace, settings: "Settings") -> "Backend":
    """The backend of one model. Raises PunaError when the model cannot be loaded, or there is too little memory."""
    import torch

    from puna.cli.generation_options import device_of
    from puna.core.errors import PunaError
    from puna.engine.generate import load_engine
    from puna.model.hub import model_directory
    from puna.model.store import load_stage
    from puna.serve.native import NativeBackend

    name, equals, place = given.partition("=")
    directory = model_directory(place if equals else given)
    # A run keeps its model in a directory of its own: the run's name says more.
    name = name if equals else (Path(given) if Path(given).exists() else directory).resolve().name
    dtype = getattr(torch, args.dtype) if args.dtype else None
    try:
        engine = load_engine(
            directory,
            device=device_of(args.device),
            dtype=dtype,
            fast=not args.deterministic,
            quantize=args.quantize,
            max_batch=args.max_batch,
            kv_tokens=args.kv_tokens,
            deterministic=args.deterministic,
        )
        return NativeBackend(
            engine, name, settings, stage="chat" if load_stage(directory) == "chat" else "base", root=str(directory)
        )
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        raise PunaError(
            f"There is not enough memory for {directory}.", "Give fewer --kv-tokens or --max-batch, or a smaller model."
        ) from None


def _check_backend(args: argparse.Namespace) -> None:
    """Raises PunaError for options that the chosen backend has no use for."""
    from puna.core.errors import PunaError

    if args.backend == "native":
        if args.upstream:
            raise PunaError(
                "--upstream is the address of another engine.", "Say which: --backend vllm|llama.cpp|openai."
            )
        if not args.models:
            raise PunaError("There is no model to serve.", "Give a model directory: puna serve models/demo")
        return
    if args.backend == "openai" and not args.upstream:
        raise PunaError("--backend openai needs an address.", "Give it: --upstream URL")
    if not args.upstream and not args.models:
        raise PunaError(f"There is no model to start {args.backend} with.", "Give one, or the --upstream URL.")
    started_vllm = args.backend == "vllm" and not args.upstream
    for name, given in (
        ("--device", args.device != "auto"),
        ("--dtype", bool(args.dtype) and not started_vllm),
        ("--quantize", bool(args.quantize)),
        ("--kv-tokens", args.kv_tokens is not None),
        ("--deterministic", args.deterministic),
    ):
        if given:
            raise PunaError(f"{name} is for Puna's own engine.", f"Leave it out with --backend {args.backend}.")


def _connect(given: str, args: argparse.Namespace, settings: "Settings") -> "Backend":
    """The backend of a model that another engine computes; without an address that engine is started."""
    from puna.serve.upstream.backend import UpstreamBackend
    from puna.serve.upstream.start import start_llama, start_vllm

    name, equals, theirs = given.partition("=")
    if not equals:
        theirs = given
        name = Path(given).resolve().name.removesuffix(".gguf") if given and Path(given).exists() else given
    child = None
    if not args.upstream:
        vllm = args.backend == "vllm"
        child = (
            start_vllm(theirs, name, max_batch=args.max_batch, dtype=args.dtype) if vllm else start_llama(theirs, name)
        )
        theirs = name
    url = child.url if child else args.upstream
    try:
        return UpstreamBackend(args.backend, url, name, settings, theirs=theirs, capacity=args.max_batch, child=child)
    except BaseException:
        if child is not None:
            child.close()
        raise
