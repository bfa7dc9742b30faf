"""The server behind a reverse proxy: a public origin, a path of its own, and the files of docs/proxy.md."""

import asyncio
import contextlib
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import openai
import pytest
import uvicorn
from live_site import Site, eventually, site
from scripted import Scripted
from starlette.requests import Request
from starlette.responses import StreamingResponse

from puna.cli.main import main

DOCS = Path(__file__).parents[3] / "docs" / "proxy.md"
PUBLIC = "https://chat.example"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def proxy(upstream: str, prefix: str, *, strip: bool, host: str | None) -> Iterator[str]:
    """A reverse proxy that publishes a server under a path. host: what it sends as Host; None for its own default."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        path = scope["path"].removeprefix(prefix) if strip else scope["path"]
        headers = {k: v for k, v in request.headers.items() if k != "host"} | ({"host": host} if host else {})
        async with httpx.AsyncClient(base_url=upstream, timeout=60, trust_env=False) as client:
            query = scope["query_string"].decode()
            url = f"{path or '/'}{'?' if query else ''}{query}"
            asked = client.build_request(request.method, url, headers=headers, content=await request.body())
            answer = await client.send(asked, stream=True)

            async def pieces() -> AsyncIterator[bytes]:
                async for piece in answer.aiter_raw():
                    yield piece
                await answer.aclose()

            made = StreamingResponse(pieces(), status_code=answer.status_code)
            made.raw_headers = answer.headers.raw
            await made(scope, receive, send)

    port = free_port()
    web = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(web.serve()), daemon=True)
    thread.start()
    try:
        eventually(lambda: web.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        web.should_exit = True
        thread.join(20)


def script(text: str) -> str:
    return f"You said: {text}. One two three."


@contextlib.contextmanager
def published(data: Path, root: str, **more: Any) -> Iterator[Site]:
    with site([Scripted("fast", script)], data, root_path=root, public_origin=PUBLIC, **more) as made:
        yield made


def files_of(api: httpx.Client, start: str) -> dict[str, httpx.Response]:
    """A page and everything that it loads, by address."""
    found: dict[str, httpx.Response] = {}
    left = [start]
    while left:
        path = left.pop()
        if path in found:
            continue
        answer = found[path] = api.get(path)
        kind = answer.headers.get("content-type", "")
        if "html" in kind:
            left += [urljoin(path, one) for one in re.findall(r'(?:src|href)="([^"#]+)"', answer.text)]
        elif "javascript" in kind:
            left += [urljoin(path, one) for one in re.findall(r'from "([^"]+)"', answer.text)]
        elif "manifest" in kind:
            left += [urljoin(path, icon["src"]) for icon in answer.json()["icons"]]
            left.append(urljoin(path, answer.json()["start_url"]))
    return found


@pytest.mark.parametrize("root", ["", "/puna", "/a/b"])
@pytest.mark.parametrize("strip", [True, False])
def test_everything_is_under_the_path(tmp_path: Path, root: str, strip: bool) -> None:
    with (
        published(tmp_path / "data", root) as here,
        proxy(here.url, root, strip=strip, host=None) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False, headers={"origin": PUBLIC}) as api,
    ):
        for page in ("/", "/account", "/account/invitation"):
            files = files_of(api, root + page)
            assert {path: answer.status_code for path, answer in files.items()} == dict.fromkeys(files, 200)
            assert all(path.startswith(f"{root}/") for path in files)
            assert f"{root}/static/web/js/api.js" in files
        assert f"{root}/static/js/main.js" in files_of(api, f"{root}/")
        if root and not strip:  # a proxy that removes the path adds the slash itself
            moved = api.get(root)
            assert (moved.status_code, moved.headers["location"]) == (308, f"{root}/")
        made = api.post(f"{root}/app/conversations", json={"model": "fast"})
        assert made.status_code == 200, made.text
        said = api.post(
            f"{root}/app/conversations/{made.json()['id']}/messages", json={"content": "Hi", "parent": None}
        )
        assert "event: done" in said.text
        with openai.OpenAI(base_url=f"{url}{root}/v1", api_key="none", max_retries=0) as client:
            chunks = client.chat.completions.create(
                model="fast", messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == script("Hi")
        worker = api.get(f"{root}/sw.js")
        assert worker.status_code == 200


def test_scripts_make_addresses_under_the_path() -> None:
    """The kit's own rule, from where a script was loaded."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    source = DOCS.parents[1] / "src" / "puna" / "web" / "static" / "js" / "address.js"
    text = source.read_text(encoding="utf-8").replace("import.meta.url", "process.argv[1]").replace("export ", "")
    for script_address, expected in (
        ("https://chat.example/static/web/js/address.js", "/app/models"),
        ("https://chat.example/puna/static/web/js/address.js", "/puna/app/models"),
        ("https://chat.example/a/b/static/web/js/address.js", "/a/b/app/models"),
    ):
        command = [node, "-e", f"{text}; console.log(address('/app/models'))", script_address]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == expected


def test_only_the_public_origin_may_write(tmp_path: Path) -> None:
    with published(tmp_path / "data", "/puna") as here:
        body = {"model": "fast"}
        for origin, host, status in (
            (PUBLIC, None, 200),
            (PUBLIC, "chat.example", 200),
            (here.url, None, 200),
            ("http://chat.example", None, 403),
            (f"{PUBLIC}.evil.example", None, 403),
            ("https://evil.example", "chat.example", 403),
            ("null", None, 403),
            ("", None, 403),
        ):
            headers = {"origin": origin} | ({"host": host} if host else {})
            answer = httpx.post(f"{here.url}/app/conversations", json=body, headers=headers, trust_env=False)
            assert answer.status_code == status, (origin, host, answer.text)
        assert "--public-origin" in answer.json()["error"]["message"]
        assert httpx.get(f"{here.url}/health", headers={"host": "evil.example"}, trust_env=False).status_code == 400


def test_sessions_and_links_know_the_public_address(tmp_path: Path) -> None:
    with published(tmp_path / "data", "/puna", accounts=True) as here:
        link = here.app.state.web.owner_link(here.url)
        assert link.startswith(f"{PUBLIC}/puna/account/invitation#")
        body = {"token": link.partition("#")[2], "name": "Ana", "password": "a long enough password"}
        answer = here.api.post("/puna/app/invitations/accept", json=body, headers={"origin": PUBLIC})
        assert answer.status_code == 200, answer.text
        cookie = answer.headers["set-cookie"].lower()
        assert "path=/puna" in cookie
        assert "secure" in cookie


@pytest.mark.parametrize(
    "options",
    [
        ["--public-origin", "chat.example"],
        ["--public-origin", "https://chat.example/puna"],
        ["--public-origin", "https://me@chat.example"],
        ["--root-path", "puna"],
        ["--root-path", "/a//b"],
        ["--root-path", "/a/../b"],
        ["--root-path", '/a"b'],
    ],
)
def test_addresses_that_are_none(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nowhere", *options]) == 2
    assert options[0] in capsys.readouterr().err


# -- the files of the documentation ----------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_files_name_one_server_and_close_their_brackets() -> None:
    for text in [*blocks("nginx"), *blocks("caddy")]:
        assert text.count("{") == text.count("}")
        assert "127.0.0.1:8000" in text
    for text in blocks("nginx"):
        # What a stream needs: HTTP/1.1, no buffer, and time for an answer in one piece.
        for line in ("proxy_http_version 1.1;", "proxy_buffering off;", "proxy_read_timeout 600s;"):
            assert line in text
    words = " ".join(blocks("sh"))
    for option in re.findall(r"--[a-z-]+", words):
        assert option in ("--accounts", "--public-origin", "--root-path")


def nginx(folder: Path, number: int, upstream: str, port: int) -> list[str]:
    """The command for a file of the documentation: nginx without TLS, on this port."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("needs nginx")
    text = blocks("nginx")[number].replace("http://127.0.0.1:8000", upstream)
    text = re.sub(r"\n\s*ssl_certificate.*", "", text.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};"))
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body;\n{temporary}{text} }}\n"
    )
    return [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]


def bare_nginx(folder: Path, number: int, upstream: str, port: int) -> list[str]:
    """The same with nothing but proxy_pass, as many begin, and with little patience."""
    command = nginx(folder, number, upstream, port)
    path = folder / "nginx.conf"
    lines = [line for line in path.read_text().splitlines() if not re.match(r"\s+proxy_(?!pass)", line)]
    path.write_text("\n".join(lines).replace("access_log off;", "access_log off; proxy_read_timeout 3s;"))
    return command


def caddy(folder: Path, number: int, upstream: str, port: int) -> list[str]:
    """The same for Caddy."""
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("needs Caddy")
    text = blocks("caddy")[0].split("\n\n")[number].replace("127.0.0.1:8000", urlsplit(upstream).netloc)
    text = re.sub(r"^\S+ \{", f"http://chat.example:{port} {{", text)
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n}}\n{text}\n")
    return [program, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@pytest.mark.parametrize(("number", "root"), [(0, ""), (1, "/puna")])
@pytest.mark.parametrize("program", [nginx, bare_nginx, caddy])
def test_with_the_files_of_the_documentation(tmp_path: Path, program: Any, number: int, root: str) -> None:
    port = free_port()
    with published(tmp_path / "data", root) as here, (tmp_path / "log").open("wb") as log:
        command = program(tmp_path, number, here.url, port)
        home = {"HOME": str(tmp_path), "PATH": "/usr/bin"}
        started = subprocess.Popen(command, stdout=log, stderr=log, env=home)
        headers = {"origin": PUBLIC, "host": f"{urlsplit(PUBLIC).netloc}:{port}"}
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False, headers=headers) as api:

                def answers() -> bool:
                    assert started.poll() is None, (tmp_path / "log").read_text()
                    with contextlib.suppress(httpx.TransportError):
                        return api.get(f"{root}/health").status_code == 200
                    return False

                eventually(answers)
                files = files_of(api, f"{root}/")
                assert {answer.status_code for answer in files.values()} == {200}
                assert len(files) > 20
                made = api.post(f"{root}/app/conversations", json={"model": "fast"})
                assert made.status_code == 200, made.text
                body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
                answer = api.post(f"{root}/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                text = answer.text
                deltas = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
                assert "".join(d["choices"][0]["delta"].get("content") or "" for d in deltas) == script("Hi")
        finally:
            started.terminate()
            started.wait(20)
