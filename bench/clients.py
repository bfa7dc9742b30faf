"""Do known clients work with this server? Each is run as its users run it, before a server that says what it must.

    python bench/clients.py --python DIR --node DIR [--only NAME]

DIR are folders with the clients: a Python environment (`pip install openai-agents langchain-openai litellm
pydantic-ai-slim[openai]`, and one for Aider, `--aider`, which pins old versions of everything), and a folder in which
`npm install @openai/codex @continuedev/cli cline opencode-ai ai @ai-sdk/openai @ai-sdk/openai-compatible zod` was run.
What is missing is left out and named in the result. The model is random and small; `clients_puppet` makes it call one
function and then say "Done.", through the whole of Puna's server and engine. A client works when it has called the
function, sent the result back and shown "Done.".
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import common
import conformance

HERE = Path(__file__).parent
MODEL = "tiny"
CONTEXT = 65_536
SECONDS = 300


@dataclass
class Client:
    """A client and how it is run. command: its words, in a folder of its own; set_up: writes its files there."""

    name: str
    packages: Sequence[str]
    command: Callable[["Places"], list[str]]
    set_up: Callable[["Places"], None] = lambda places: None
    environ: dict[str, str] = field(default_factory=dict)
    needs: str = "python"


@dataclass
class Places:
    """Where things are. home: an empty folder that the client takes for the user's."""

    url: str
    home: Path
    python: Path | None
    node: Path | None
    aider: Path | None

    def script(self, name: str) -> list[str]:
        return [str(self.python), str(HERE / "clients" / name)]

    def program(self, name: str) -> str:
        return str(self.node / "node_modules" / ".bin" / name) if self.node else name

    def write(self, path: str, text: str) -> None:
        (self.home / path).parent.mkdir(parents=True, exist_ok=True)
        (self.home / path).write_text(text, encoding="utf-8")


ASK = "Say hello with a shell command, then stop."


def _codex(places: Places) -> None:
    places.write(
        ".codex/config.toml",
        f'model = "{MODEL}"\nmodel_provider = "puna"\n'
        f'[model_providers.puna]\nname = "puna"\nbase_url = "{places.url}"\nwire_api = "responses"\n',
    )


def _continue(places: Places) -> None:
    places.write(
        "config.yaml",
        "name: puna\nversion: 1.0.0\nschema: v1\nmodels:\n  - name: tiny\n    provider: openai\n"
        f"    model: {MODEL}\n    apiBase: {places.url}\n    apiKey: none\n"
        "    capabilities: [tool_use]\n    roles: [chat]\n",
    )


def _opencode(places: Places) -> None:
    provider = {"npm": "@ai-sdk/openai-compatible", "options": {"baseURL": places.url}, "models": {MODEL: {}}}
    places.write("opencode.json", json.dumps({"provider": {"puna": provider}, "model": f"puna/{MODEL}"}))


CLIENTS = [
    Client("OpenAI Agents SDK", ["openai-agents", "openai"], lambda at: at.script("openai_agents.py")),
    Client("LangChain", ["langchain-openai", "langchain-core"], lambda at: at.script("langchain.py")),
    Client("LiteLLM", ["litellm"], lambda at: at.script("litellm_client.py")),
    Client("Pydantic AI", ["pydantic-ai-slim"], lambda at: at.script("pydantic_ai_client.py")),
    Client(
        "Aider",
        ["aider-chat"],
        lambda at: [
            str(at.aider),
            "-m",
            "aider",
            "--model",
            f"openai/{MODEL}",
            "--no-git",
            "--yes-always",
            "--no-stream",
            "--no-show-model-warnings",
            "--no-check-update",
            "--analytics-disable",
            "--message",
            ASK,
        ],
        environ={"OPENAI_API_KEY": "none"},
        needs="aider",
    ),
    Client(
        "AI SDK",
        ["ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod"],
        lambda at: ["node", str(at.node / "ai_sdk.mjs")],  # type: ignore[operator]
        set_up=lambda at: shutil.copy(HERE / "clients" / "ai_sdk.mjs", at.node) and None,  # type: ignore[arg-type,func-returns-value]
        needs="node",
    ),
    Client(
        "Codex CLI",
        ["@openai/codex"],
        lambda at: [
            at.program("codex"),
            "exec",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            ASK,
        ],
        set_up=_codex,
        needs="node",
    ),
    Client(
        "Continue CLI",
        ["@continuedev/cli"],
        lambda at: [at.program("cn"), "--config", str(at.home / "config.yaml"), "--auto", "-p", ASK],
        set_up=_continue,
        needs="node",
    ),
    Client(
        "OpenCode",
        ["opencode-ai"],
        lambda at: [at.program("opencode"), "run", ASK],
        set_up=_opencode,
        needs="node",
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, metavar="DIR", help="Python environment with clients")
    parser.add_argument("--aider", type=Path, metavar="DIR", help="Python environment with aider-chat")
    parser.add_argument("--node", type=Path, metavar="DIR", help="folder with node_modules")
    parser.add_argument("--only", action="append", default=[], help="a client to run; the others stay as they were")
    args = parser.parse_args()
    kinds = {
        "python": args.python and args.python / "bin" / "python",
        "aider": args.aider and args.aider / "bin" / "python",
        "node": args.node and args.node.resolve(),
    }
    rows, left_out = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        model = conformance.make_model(Path(folder) / MODEL, context=CONTEXT)
        command = [sys.executable, "-m", "puna", "serve", str(model), "--backend", "puppet", "--no-page"]
        with conformance.running([*command, "--include", str(HERE / "clients_puppet.py"), "--port"]) as (url, _):
            for client in CLIENTS:
                if args.only and client.name not in args.only:
                    continue
                if kinds[client.needs] is None:
                    left_out[client.name] = f"--{client.needs} is not given"
                    continue
                home = Path(tempfile.mkdtemp(dir=folder))
                places = Places(f"{url}/v1", home, kinds["python"], kinds["node"], kinds["aider"])
                rows[client.name] = {"versions": versions(client, places), **run(client, places)}
                print(f"{client.name:20} {'ok' if rows[client.name]['works'] else 'NO'}", file=sys.stderr)
    if args.only:
        rows = {**_last(), **rows}
    report(rows, left_out)
    settings = {"context": CONTEXT, "model": "random, 4 layers of 256, made to call one function and to say Done."}
    common.save("clients", settings, {"clients": rows, "left_out": left_out}, packages=("torch", "fastapi", "uvicorn"))


def run(client: Client, places: Places) -> dict[str, object]:
    """Whether a client works, and what it printed last."""
    client.set_up(places)
    home = str(places.home)
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": home,
        "CODEX_HOME": f"{home}/.codex",
        "BASE_URL": places.url,
        "OPENAI_BASE_URL": places.url,
        "OPENAI_API_BASE": places.url,
        "OPENAI_API_KEY": "none",
        "MODEL": MODEL,
        "CI": "true",
        **client.environ,
    }
    try:
        ended = subprocess.run(
            client.command(places),
            cwd=home,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"works": False, "shown": f"nothing for {SECONDS} s"}
    words = ended.stdout if client.command(places)[1].endswith((".py", ".mjs")) else f"{ended.stdout}\n{ended.stderr}"
    by_itself = client.needs == "python" or client.name == "AI SDK"  # a script of ours, which checks everything
    works = ended.returncode == 0 and (by_itself or "Done." in words)
    shown = (words if works else f"{ended.stdout}\n{ended.stderr}").strip().splitlines()[-1 if works else -6 :]
    return {"works": works, "shown": "\n".join(shown)[-600:]}


def versions(client: Client, places: Places) -> dict[str, str]:
    """The versions of its packages."""
    if client.needs == "node":
        assert places.node is not None
        files = {name: places.node / "node_modules" / name / "package.json" for name in client.packages}
        return {name: json.loads(path.read_text())["version"] for name, path in files.items() if path.exists()}
    python = places.aider if client.needs == "aider" else places.python
    code = "import importlib.metadata as m, sys; print(*(m.version(name) for name in sys.argv[1:]))"
    shown = subprocess.run([str(python), "-c", code, *client.packages], capture_output=True, text=True)
    return dict(zip(client.packages, shown.stdout.split(), strict=False))


def _last() -> dict[str, dict[str, object]]:
    try:
        record = json.loads((common.RESULTS / "clients.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return record["results"]["clients"]


def report(rows: dict[str, dict[str, object]], left_out: dict[str, str]) -> None:
    """Print the table as Markdown."""
    print("| client | versions | works |\n|---|---|---|")
    for name, row in rows.items():
        shown = ", ".join(f"{package} {version}" for package, version in row["versions"].items())  # type: ignore[attr-defined]
        print(f"| {name} | {shown} | {'yes' if row['works'] else 'no: ' + str(row['shown'])} |")
    for name, why in left_out.items():
        print(f"Left out: {name} ({why}).")


if __name__ == "__main__":
    main()
