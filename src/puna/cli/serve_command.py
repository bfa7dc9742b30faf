"""serve models over HTTP: OpenAI's API at /v1, and the assistant at /

SIGTERM or Ctrl-C lets requests in progress finish; a second one exits at once.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from puna.serve.backends.base import Backend
    from puna.serve.settings import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("models", metavar="MODEL", nargs="*", help="model or run directories; NAME=DIR sets a name")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    where.add_argument("--port", type=int, default=8000, metavar="N", help="port (default: 8000)")
    where.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="accepted host name; * for any"
    )
    where.add_argument(
        "--public-origin",
        default="",
        metavar="URL",
        help="what browsers see when a reverse proxy is in front, such as https://chat.example",
    )
    where.add_argument(
        "--root-path", default="", metavar="PATH", help="path under which the proxy publishes the server, such as /puna"
    )
    where.add_argument(
        "--cors-origin", action="append", default=[], metavar="URL", help="allow pages of this origin to call the API"
    )
    where.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="require a key of this file: one per line, KEY or NAME = KEY",
    )
    where.add_argument("--no-page", action="store_true", help="serve the API only, without pages and accounts")
    where.add_argument(
        "--accounts",
        action=argparse.BooleanOptionalAction,
        help="require everyone to sign in (default: if other machines can reach the server)",
    )
    where.add_argument("--data", default="", metavar="DIR", help="where data is stored: a directory or postgres://…")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-queue", type=int, default=64, metavar="N", help="sequences that may wait; more get 429 (default: 64)"
    )
    limits.add_argument("--max-body", type=float, default=10.0, metavar="MB", help="largest request (default: 10 MB)")
    limits.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="time limit for a request (default: 600)"
    )
    limits.add_argument(
        "--drain", type=float, default=30.0, metavar="S", help="time to finish on SIGTERM (default: 30)"
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--max-batch", type=int, default=64, metavar="N", help="sequences generated at once (default: 64)"
    )
    engine.add_argument("--kv-tokens", type=int, metavar="N", help="tokens in the KV cache (default: what fits)")
    engine.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 … (default: cuda if available)")
    engine.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="precision (default: the faster one on this device)"
    )
    engine.add_argument(
        "--quantize", choices=("int8", "int4"), help="store weights in this format (CPU): less memory, faster answers"
    )
    engine.add_argument("--deterministic", action="store_true", help="same text regardless of other requests; slower")
    other = parser.add_argument_group("another engine behind this server")
    other.add_argument(
        "--backend",
        metavar="NAME",
        default="native",
        help="engine to use: native (default: Puna's own), vllm, llama.cpp, openai, or a backend of a plugin. With any "
        "except native, MODEL is a model of that server, by default its first",
    )
    other.add_argument(
        "--include",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.py",
        help="load backends from this file (repeatable)",
    )
    other.add_argument(
        "--upstream",
        metavar="URL",
        help="address of the running engine; without it, vllm or llama.cpp is started for MODEL",
    )


def run(args: argparse.Namespace) -> None:
    """Load the models, and serve until a signal ends the server."""
    from rich.markup import escape

    from puna.apps.assistant import AssistantProduct
    from puna.core.console import console, say
    from puna.core.plugins import include_all
    from puna.serve.app import create_app
    from puna.serve.backends.base import Models, refuse_equal_names
    from puna.serve.run import listen, serve

    include_all(args.include)
    settings = settings_of(args)
    load = _loader(args.backend)
    _check_backend(args)
    given = [_named(words, args.backend) for words in args.models or [""]]
    refuse_equal_names([one.name for one in given if one.name])
    listening = listen(settings)
    try:
        # A thread that used torch keeps torch's helper threads, which take cores from the engine's thread (a quarter of
        # the speed of 32 streams on two cores). So models are loaded on threads that end.
        with ThreadPoolExecutor(1) as apart:
            backends = list(apart.map(lambda one: load(one, args, settings), given))
        products = [] if args.no_page else [AssistantProduct()]
        app = create_app(settings, Models(backends), products=products)
    except BaseException:
        listening.close()
        raise

    def started() -> None:
        shown = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else settings.host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        say(f"Serving on {address}; the API is at /v1.")
        if settings.public_origin:
            say(f"Browsers reach it at {settings.public_origin}{settings.root_path}/")
        for backend in backends:
            for choice in backend.choices:
                say(escape(f"  {choice}"))
            if backend.card.max_model_len is not None:
                context = f"{backend.card.max_model_len:,} tokens of context"
                say(escape(f"  {backend.card.id}: {context}, {backend.card.stage}"))
        if settings.reachable and not app.state.web.auth.required:
            say("Anyone who can reach this address can use it. --accounts makes people sign in.")
        if link := app.state.web.owner_link(address):
            say("Open this link to become the owner and invite others. It works once, within a day:")
            # Not wrapped, so that the link can be copied.
            console().print(f"  {link}", soft_wrap=True, markup=False, highlight=False)

    serve(app, listening, started=started)


class _Given(NamedTuple):
    """A model as it was given: the name it is served by ("" where the engine decides), and where it is."""

    name: str
    place: str


def _named(words: str, backend: str) -> _Given:
    """Read MODEL or NAME=MODEL. A path that exists is a path, even with "=" in it. Raises PunaError."""
    from puna.core.errors import PunaError
    from puna.model.hub import model_directory, model_name

    name, equals, place = words.partition("=")
    if not equals or Path(words).exists():
        name, place = "", words
    elif not name or not place:
        raise PunaError(f"'{words}' names no model.", "Write NAME=DIR, or DIR alone.")
    if backend == "native" or (backend == "vllm" and Path(place).is_dir()):
        place = str(model_directory(place))
    if not name:
        is_local = backend == "native" or (place and Path(place).exists())
        name = model_name(place).removesuffix(".gguf") if is_local else place
    return _Given(name, place)


def _loader(backend: str) -> "Callable[[_Given, argparse.Namespace, Settings], Backend]":
    """Return the function that opens one model with this backend. Raises PunaError for an unknown backend."""
    from puna.core.errors import PunaError, nearest
    from puna.serve.backends.plugins import BACKENDS, BUILT_IN

    if backend == "native":
        return _load
    if backend in BUILT_IN:
        return _connect
    if backend not in BACKENDS:
        hint = nearest(backend, (*BUILT_IN, *BACKENDS))
        raise PunaError(f"There is no backend '{backend}'.", f"{hint} A backend in your own file needs --include.")
    return _open


def _open(given: _Given, args: argparse.Namespace, settings: "Settings") -> "Backend":
    """Open one model with a plugin's backend."""
    from puna.serve.backends.plugins import BACKENDS

    return BACKENDS[args.backend](given.place, given.name or args.backend, settings)


def settings_of(args: argparse.Namespace) -> "Settings":
    """Build the settings from the options. Raises PunaError for invalid values."""
    from puna.core.errors import PunaError
    from puna.serve.settings import Settings
    from puna.web.accounts.key_file import read_keys

    for name, least in (("max_queue", 0), ("max_batch", 1), ("max_body", 0.001), ("timeout", 0.001), ("drain", 0)):
        if not getattr(args, name) >= least:
            raise PunaError(f"--{name.replace('_', '-')} {getattr(args, name)} is too small.", "Use a larger number.")
    return Settings(
        host=args.host,
        port=args.port,
        keys=read_keys(args.api_key_file) if args.api_key_file else {},
        allowed_hosts=tuple(args.allowed_host),
        cors_origins=tuple(args.cors_origin),
        public_origin=_origin(args.public_origin),
        root_path=_root_path(args.root_path),
        accounts=args.accounts,
        data=args.data,
        max_queue=args.max_queue,
        max_body_bytes=int(args.max_body * 2**20),
        request_seconds=args.timeout,
        drain_seconds=args.drain,
    )


def _origin(given: str) -> str:
    """An origin: scheme and host. Raises PunaError for anything else."""
    from puna.core.errors import PunaError

    parts = urlsplit(given.rstrip("/"))
    if given and (parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc):
        raise PunaError(f"--public-origin {given} is not an origin.", "Give one such as https://chat.example.")
    if parts.path or parts.query or parts.fragment:
        raise PunaError(f"--public-origin {given} has a path.", "Give the path with --root-path.")
    return given.rstrip("/").lower()


def _root_path(given: str) -> str:
    """A path without a slash at its end. Raises PunaError for anything else."""
    from puna.core.errors import PunaError

    path = given.rstrip("/")
    if path and (
        not path.startswith("/") or not all(part.strip(".") and quote(part) == part for part in path[1:].split("/"))
    ):
        raise PunaError(f"--root-path {given} is not a path.", "Give one such as /puna.")
    return path


def _load(given: _Given, args: argparse.Namespace, settings: "Settings") -> "Backend":
    """Load one model. Raises PunaError when it cannot be loaded or memory is too small."""
    import torch

    from puna.cli.generation_options import device_of
    from puna.core.console import say
    from puna.engine.core.memory_errors import out_of_memory
    from puna.engine.generate import load_engine
    from puna.model.store import load_stage
    from puna.serve.backends.native.backend import NativeBackend
    from puna.serve.backends.native.introduction import read_introduction

    directory = Path(given.place)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    with out_of_memory(str(directory), "Use fewer --kv-tokens or --max-batch, or a smaller model."):
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
        if engine.tokenizer is None:
            say(f"{given.name} has no tokenizer: it answers only /v1/completions, with token ids for a prompt.")
        return NativeBackend(
            engine,
            given.name,
            settings,
            stage="chat" if load_stage(directory) == "chat" else "base",
            root=str(directory),
            introduction=read_introduction(directory),
        )


def _check_backend(args: argparse.Namespace) -> None:
    """Raise PunaError for options that the chosen backend does not support."""
    from puna.core.errors import PunaError

    if args.backend == "native":
        if args.upstream:
            raise PunaError(
                "--upstream is the address of another engine.", "Select it with --backend vllm|llama.cpp|openai."
            )
        if not args.models:
            raise PunaError("No model was given.", "Pass a model directory: puna serve models/demo")
        return
    if args.backend == "openai" and not args.upstream:
        raise PunaError("--backend openai needs an address.", "Add --upstream URL.")
    if args.backend not in ("vllm", "llama.cpp", "openai") and args.upstream:
        raise PunaError(f"--backend {args.backend} does not support --upstream.", "Omit it.")
    if args.backend in ("vllm", "llama.cpp") and not args.upstream and not args.models:
        raise PunaError(f"There is no model to start {args.backend} with.", "Pass one, or the --upstream URL.")
    started_vllm = args.backend == "vllm" and not args.upstream
    for name, given in (
        ("--device", args.device != "auto"),
        ("--dtype", bool(args.dtype) and not started_vllm),
        ("--quantize", bool(args.quantize)),
        ("--kv-tokens", args.kv_tokens is not None),
        ("--deterministic", args.deterministic),
    ):
        if given:
            raise PunaError(f"{name} is for Puna's own engine.", f"Omit it with --backend {args.backend}.")


def _connect(given: _Given, args: argparse.Namespace, settings: "Settings") -> "Backend":
    """Connect to a model of another engine; without an address, that engine is started."""
    from puna.serve.backends.upstream.backend import UpstreamBackend
    from puna.serve.backends.upstream.launch import start_llama, start_vllm

    name, model = given
    child = None
    if not args.upstream:
        vllm = args.backend == "vllm"
        child = (
            start_vllm(model, name, max_batch=args.max_batch, dtype=args.dtype) if vllm else start_llama(model, name)
        )
        model = name
    url = child.url if child else args.upstream
    try:
        return UpstreamBackend(
            args.backend, url, name, settings, upstream_name=model, capacity=args.max_batch, child=child
        )
    except BaseException:
        if child is not None:
            child.close()
        raise
