"""The pages of accounts in a real browser: becoming the owner, inviting, signing in, sessions and keys."""

import asyncio
import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from puna.web.app import install
from puna.web.settings import WebSettings

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install 'puna[dev]')")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)

PASSWORD = "a long enough password"
expect = sync_api.expect


@contextlib.contextmanager
def running(data: Path) -> Iterator[tuple[str, Any]]:
    """Accounts alone on a free port: (address, Web)."""
    app = FastAPI(redirect_slashes=False)
    web = install(app, WebSettings(data=str(data), accounts=True), schemas=[])
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", web
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        expect.set_options(timeout=20_000)
        yield launched
        launched.close()


def new_page(browser: Any, bad: list[str], **options: Any) -> Any:
    """A page of a browser of its own. bad: gets what no page of ours should do."""
    context = browser.new_context(locale="en-US", **options)
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.on("pageerror", lambda error: bad.append(str(error)))
    page.on("console", lambda one: one.type == "error" and "status of 4" not in one.text and bad.append(one.text))
    return page


def test_from_the_owners_link_to_an_invited_friend(browser: Any, tmp_path: Path) -> None:
    bad: list[str] = []
    with running(tmp_path) as (url, web):
        ana = new_page(browser, bad)
        ana.goto(web.owner_link(url))
        expect(ana.locator("h1")).to_have_text("Welcome to Puna")
        ana.fill("#name", "Ana")
        ana.fill("#password", PASSWORD)
        ana.press("#password", "Enter")
        ana.wait_for_url(f"{url}/")
        ana.goto(f"{url}/account")
        expect(ana.locator("h1")).to_have_text("Ana")
        expect(ana.locator(".page-title .badge")).to_have_text("Owner")
        ana.click("button:has-text('Create link')")
        link = ana.locator(".shown-once input").input_value()
        bo = new_page(browser, bad)
        bo.goto(link)
        expect(bo.locator(".note").first).to_contain_text("You are invited")
        bo.fill("#name", "ana")
        bo.fill("#password", PASSWORD)
        bo.press("#password", "Enter")
        expect(bo.locator(".problem")).to_have_text("This name is in use.")
        bo.fill("#name", "Bo")
        bo.press("#name", "Enter")
        bo.wait_for_url(f"{url}/")
        bo.goto(link)
        expect(bo.locator("h1")).to_have_text("This link does not work")
        bo.goto(f"{url}/account")
        expect(bo.locator(".page-title .badge")).to_have_text("Member")
        expect(bo.get_by_text("Invitations")).to_have_count(0)
        ana.reload()
        row = ana.locator(".rows li", has_text="Bo")
        row.locator("button.icon-button").click()
        ana.click(".item:has-text('Disable account')")
        expect(row.locator(".badge.warn")).to_have_text("disabled")
        bo.reload()
        expect(bo.locator("#password")).to_be_visible()
        bo.fill("#name", "Bo")
        bo.fill("#password", PASSWORD)
        bo.press("#password", "Enter")
        expect(bo.locator(".problem")).to_have_text("The name or the password is wrong.")
    assert bad == []


def test_sessions_keys_and_password(browser: Any, tmp_path: Path) -> None:
    bad: list[str] = []
    with running(tmp_path) as (url, web):
        web.accounts.accept(web.accounts.owner_link(), "Ana", PASSWORD)
        pages = [new_page(browser, bad) for _ in range(2)]
        for page in pages:
            page.goto(f"{url}/account")
            page.fill("#name", "Ana")
            page.fill("#password", PASSWORD)
            page.press("#password", "Enter")
            expect(page.locator("h1")).to_have_text("Ana")
        first, second = pages
        first.reload()
        expect(first.locator(".rows li", has_text="Chrome")).to_have_count(2)
        first.locator(".rows li", has_text="Chrome").get_by_role("button").click()
        expect(first.locator(".rows li", has_text="Chrome")).to_have_count(1)
        second.reload()
        expect(second.locator("#password")).to_be_visible()
        first.fill("[aria-label='What the key is for']", "my script")
        first.keyboard.press("Enter")
        key = first.locator(".shown-once input").input_value()
        expect(first.locator(".rows li", has_text="my script")).to_contain_text("Never used")
        second.click("text=Sign in with an API key instead")
        second.fill("#key", key)
        second.press("#key", "Enter")
        expect(second.locator("h1")).to_have_text("Ana")
        second.locator("input[autocomplete=current-password]").fill("wrong password")
        second.locator("input[autocomplete=new-password]").fill("another long password")
        second.keyboard.press("Enter")
        expect(second.locator(".problem").first).to_have_text("The current password is wrong.")
        second.locator("input[autocomplete=current-password]").fill(PASSWORD)
        second.locator("input[autocomplete=current-password]").press("Enter")
        expect(second.get_by_text("Password changed.")).to_be_visible()
        assert key not in second.evaluate("JSON.stringify(localStorage) + document.cookie")
    assert bad == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, tmp_path: Path, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    bad: list[str] = []
    with running(tmp_path) as (url, web):
        page = new_page(browser, bad, color_scheme=theme, bypass_csp=True, viewport={"width": 390, "height": 844})

        def check(where: str) -> None:
            found = axe.Axe().run(page).response["violations"]
            assert not found, (where, [(v["id"], [n["html"][:120] for n in v["nodes"]][:3]) for v in found])
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, where

        page.goto(web.owner_link(url))
        expect(page.locator("h1")).to_have_text("Welcome to Puna")
        check("invitation")
        page.fill("#name", "Ana")
        page.fill("#password", PASSWORD)
        page.press("#password", "Enter")
        page.wait_for_url(f"{url}/")
        page.goto(f"{url}/account")
        page.click("button:has-text('Create link')")
        expect(page.locator(".shown-once")).to_be_visible()
        check("account")
        page.click("button:has-text('Sign out') >> nth=0")
        page.wait_for_url(f"{url}/")
        page.goto(f"{url}/account")
        expect(page.locator("#password")).to_be_visible()
        check("sign in")
    assert bad == []
