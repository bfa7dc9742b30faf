"""The page as an app: nothing keeps Chromium from installing it, and it opens when its server is gone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_site import site
from scripted import Scripted

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install 'puna[dev]')")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)
expect = sync_api.expect
KEPT = """async () => {
    const kept = {};
    for (const name of await caches.keys()) {
        const cache = await caches.open(name);
        for (const asked of await cache.keys())
            kept[new URL(asked.url).pathname] = await (await cache.match(asked)).text();
    }
    return kept;
}"""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """In a profile of its own: a private window installs nothing."""
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=CHROMIUM, args=["--no-sandbox"], locale="en-US"
        )
        context.set_default_timeout(20_000)
        yield context.pages[0]
        context.close()


def test_the_page_can_be_installed_and_opens_without_its_server(page: Any, tmp_path: Path) -> None:
    with site([Scripted("fast", lambda _: "A **confidential-words** answer.")], tmp_path / "data") as here:
        page.goto(here.url)
        expect(page.locator("#prompt")).to_be_attached()
        worker = page.evaluate("navigator.serviceWorker.ready.then(found => found.active.scriptURL)")
        assert worker == f"{here.url}/sw.js"
        devtools = page.context.new_cdp_session(page)
        assert devtools.send("Page.getInstallabilityErrors")["installabilityErrors"] == []
        manifest = devtools.send("Page.getAppManifest")
        assert manifest["errors"] == []
        assert manifest["manifest"]["startUrl"] == f"{here.url}/"
        page.fill("#prompt", "hello")
        page.press("#prompt", "Enter")
        expect(page.locator(".answer [data-act=again]")).to_be_attached()
        expected = {"/", "/static/js/main.js", "/static/web/css/base.css", "/static/i18n/en.json"}
        page.wait_for_function(
            f"async (expected) => {{ const kept = await ({KEPT})(); return expected.every((path) => path in kept); }}",
            arg=sorted(expected),
        )
        kept = page.evaluate(KEPT)
        assert not [path for path in kept if path.startswith(("/app", "/v1"))]
        assert "confidential-words" not in "".join(kept.values()), "conversations are never kept in the browser"
    page.reload()
    expect(page.get_by_role("alert")).to_have_text("The server does not answer; check that it is running.")
