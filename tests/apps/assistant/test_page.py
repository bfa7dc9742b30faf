"""The page in a real browser: what a person does with it, and that a model's text can do nothing in it."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_site import Site, site
from scripted import Scripted
from xss_vectors import VECTORS

from puna.web.markdown import mathml

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install 'puna[dev]')")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)

PLAIN = (
    "It was **quiet**.\n\n```python\nx = 1\n```\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n[More](https://evil.example/x)"
)
expect = sync_api.expect


def script(text: str) -> str:
    if text.startswith("vector "):
        return VECTORS[int(text.split()[1])]
    return PLAIN


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    slow = Scripted("slow", lambda text: "word " * 400, seconds=0.02)
    base = Scripted("base", lambda text: " and so on", stage="base")
    with site([Scripted("fast", script), slow, base], tmp_path_factory.mktemp("data")) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


class Watch:
    """A page of its own, and what it did that no page of ours should."""

    def __init__(self, browser: Any, here: Site, **options: Any) -> None:
        self.here = here
        context = {"viewport": {"width": 1200, "height": 800}, "locale": "en-US", "service_workers": "block"}
        self.context = browser.new_context(**{**context, **options})
        self.context.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        self.page = self.context.new_page()
        self.bad: list[str] = []
        self.page.on("dialog", lambda dialog: (self.bad.append(dialog.message), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.bad.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda asked: asked.url.startswith(here.url) or self.bad.append(asked.url))
        self.open("")

    def _console(self, said: Any) -> None:
        """Complaints of the browser, but for what the tests themselves bring about."""
        ours = ("Service Worker registration blocked", "status of 4", "status of 5")
        if said.type in ("error", "warning") and not any(text in said.text for text in ours):
            self.bad.append(said.text)

    def open(self, hash: str) -> None:
        self.page.goto(f"{self.here.url}/{hash}")
        expect(self.page.locator("#prompt")).to_be_attached()

    def say(self, text: str, *, whole: bool = True) -> None:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        if whole:
            expect(self.page.locator(".answer [data-act=again]").last).to_be_attached()
            expect(self.page.locator("#prompt")).to_be_enabled()

    def choose(self, model: str) -> None:
        self.page.click(".model")
        self.page.select_option("dialog select", model)
        self.page.click("dialog button[type=submit]")


@pytest.fixture
def watch(browser: Any, here: Site) -> Iterator[Watch]:
    made = Watch(browser, here)
    yield made
    made.context.close()
    assert made.bad == []


def texts(watch: Watch, selector: str) -> list[str]:
    return watch.page.locator(selector).all_inner_texts()


def test_say_edit_regenerate_and_choose_another_token(watch: Watch) -> None:
    page = watch.page
    expect(page.locator(".starter")).to_have_count(4)
    page.locator(".starter").first.click()
    expect(page.locator("#prompt")).not_to_be_empty()
    watch.say("first question")
    expect(page.locator(".answer figure.code .k, .answer figure.code .n").first).to_be_visible()
    expect(page.locator(".answer td.right")).to_have_text("2")
    expect(page.locator("h1")).to_have_text("first question")
    expect(page.locator("#announce")).to_contain_text("It was quiet.")
    # A link shows where it leads, and goes nowhere by itself.
    page.click(".answer .link")
    expect(page.locator(".popover .address")).to_have_text("https://evil.example/x")
    assert page.locator(".popover a").get_attribute("rel") == "noopener noreferrer nofollow"
    page.keyboard.press("Escape")
    expect(page.locator(".popover")).to_have_count(0)
    # Again: a second version.
    page.click("[data-act=again]")
    expect(page.locator(".answer .count")).to_have_text("2/2")
    page.click(".answer .branches button >> nth=0")
    expect(page.locator(".answer .count")).to_have_text("1/2")
    # The arrow key edits what was said last.
    page.focus("#prompt")
    page.keyboard.press("ArrowUp")
    page.fill(".user textarea", "second question")
    page.keyboard.press("Enter")
    expect(page.locator(".user .count")).to_have_text("2/2")
    expect(page.locator(".said")).to_have_text("second question")
    # Tokens.
    page.click("[data-act=tokens]")
    expect(page.locator(".token").first).to_be_visible()
    page.locator(".token").nth(2).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".alternative[aria-current]")).to_have_count(1)
    page.click(".alternative:has-text('perhaps')")
    expect(page.locator(".answer [data-area=content]")).to_have_text(re.compile("^It was perhaps"))
    expect(page.locator(".answer .count")).to_have_text("2/2")


def test_stop_and_reload_during_an_answer(watch: Watch) -> None:
    page = watch.page
    watch.choose("slow")
    watch.say("long", whole=False)
    expect(page.locator(".answer [data-area=content]")).to_contain_text("word word word")
    page.reload()
    expect(page.locator(".answer.writing [data-area=content]")).to_contain_text("word word word")
    before = len(page.locator(".answer [data-area=content]").inner_text())
    page.wait_for_function(
        "before => document.querySelector('.answer [data-area=content]').innerText.length > before + 20", arg=before
    )
    page.keyboard.press("Escape")
    expect(page.locator(".ending")).to_have_text("Stopped.")
    expect(page.locator("[data-act=goOn]")).to_be_visible()


def test_conversations_are_found_renamed_saved_and_deleted(watch: Watch) -> None:
    page = watch.page
    watch.say("needle in hay")
    page.keyboard.press("Control+k")
    expect(page.locator(".empty")).to_be_visible()
    page.keyboard.press("Escape")
    page.fill(".search input", "NEEDLE")
    expect(page.locator(".list li")).to_have_count(1)
    expect(page.locator(".list .snippet")).to_have_text("needle in hay")
    page.click(".list li .more")
    page.click(".item:has-text('Rename')")
    page.fill(".list .field", "Hay & <b>needles</b>")
    page.keyboard.press("Enter")
    expect(page.locator(".list .title")).to_have_text("Hay & <b>needles</b>")
    page.click(".list li .more")
    with page.expect_download() as saved:
        page.click(".item:has-text('Markdown')")
    assert "needle in hay" in Path(saved.value.path()).read_text()
    page.click(".list li .more")
    page.click(".item.danger")
    page.click("dialog .danger")
    expect(page.locator(".list li")).to_have_count(0)


def test_thumbs_corrections_and_comparing_are_kept(watch: Watch, here: Site) -> None:
    page = watch.page
    watch.say("rate me")
    page.click("[data-rating='-1']")
    expect(page.locator("[data-rating='-1']")).to_have_attribute("aria-pressed", "true")
    page.click("[data-act=correct]")
    page.fill(".answer textarea", "better words")
    page.click(".answer form button[type=submit]")
    expect(page.locator("[data-act=correct]")).to_have_attribute("aria-pressed", "true")
    page.click("a[href='#/compare']")
    page.fill(".compare textarea", "compare me")
    page.select_option(".column select >> nth=1", "fast")
    page.keyboard.press("Tab")
    page.click(".compare-form button[type=submit]")
    page.click("[data-better=a]")
    expect(page.locator(".verdict .note")).to_have_text("Saved as a preference.")
    rows = [json.loads(line) for line in here.api.get("/app/preferences").text.splitlines()]
    kept = {row["source"]: row for row in rows}
    assert kept["correction"]["chosen"] == "better words"
    assert kept["thumbs"]["rejected"] == PLAIN
    assert kept["comparison"]["prompt"] == [{"role": "user", "content": "compare me"}]


def test_languages_colours_and_keys(watch: Watch) -> None:
    page = watch.page
    page.click(".side-foot button")
    page.select_option("dialog select >> nth=0", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 23, 21)"
    with page.expect_navigation():
        page.select_option("dialog select >> nth=1", "zh")
    expect(page.locator(".new")).to_have_text("新对话")
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.locator(".new").focus()
    page.keyboard.press("?")
    expect(page.locator("dialog h2")).to_have_text("快捷键")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def test_on_a_phone_the_list_slides_in(browser: Any, here: Site) -> None:
    watch = Watch(browser, here, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, locale="es-MX")
    page = watch.page
    expect(page.locator(".new")).not_to_be_visible()
    page.tap(".drawer-open")
    expect(page.locator(".new")).to_have_text("Nueva conversación")
    page.tap(".drawer-close")
    expect(page.locator(".new")).not_to_be_visible()
    watch.say("hola")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    watch.context.close()
    assert watch.bad == []


def test_a_base_model_is_introduced_as_one(watch: Watch) -> None:
    watch.choose("base")
    expect(watch.page.locator(".empty .lead")).to_contain_text("base model")
    expect(watch.page.locator(".badge")).to_have_text("base")
    watch.say("Once upon a time")
    expect(watch.page.locator(".answer [data-area=content]")).to_have_text("and so on")


def test_a_refusal_is_one_sentence_and_can_be_tried_again(watch: Watch, here: Site) -> None:
    from puna.web.errors import ApiError

    backend: Any = here.assistant.server.models.get("fast")
    backend.error = ApiError(429, "Full.", code="queue_full")
    try:
        watch.say("now?", whole=False)
        expect(watch.page.locator(".failure p")).to_have_text("The server is busy; try again in a moment.")
    finally:
        backend.error = None
    watch.page.click(".failure button")
    expect(watch.page.locator(".answer [data-area=content]")).to_contain_text("It was quiet.")


def test_a_key_is_asked_for(browser: Any, tmp_path: Path) -> None:
    with site([Scripted("fast", script)], tmp_path / "d", {"a-long-key": "ana"}) as locked:
        context = browser.new_context(locale="en-US", service_workers="block")
        page = context.new_page()
        page.goto(locked.url)
        page.fill("#key", "wrong-key")
        page.keyboard.press("Enter")
        expect(page.locator(".problem")).to_have_text("This key is not known to the server.")
        page.fill("#key", "a-long-key")
        page.keyboard.press("Enter")
        expect(page.locator(".empty h2")).to_be_visible()
        assert "a-long-key" not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
        context.close()


def test_no_text_of_a_model_does_anything_in_the_page(watch: Watch, here: Site) -> None:
    """All vectors through the whole way: backend, stream, page. `watch` fails for a dialog or a request elsewhere."""
    page = watch.page
    id = here.api.post("/app/conversations", json={"model": "fast"}).json()["id"]
    parent = None
    with here.client() as api:
        for number in range(len(VECTORS)):
            if len(VECTORS[number]) > 20_000:
                continue
            text = api.post(
                f"/app/conversations/{id}/messages", json={"content": f"vector {number}", "parent": parent}
            ).text
            parent = json.loads(text.rpartition("data: ")[2])["message"]["id"]
    watch.open(f"#/c/{id}")
    expect(page.locator(".answer").nth(80)).to_be_attached()
    for number in (1, 4, 44, 54, 59):
        watch.say(f"vector {number}")  # and as it is streamed
    allowed = "P H2 H3 H4 H5 H6 BLOCKQUOTE UL OL LI HR TABLE THEAD TBODY TR TH TD DIV FIGURE FIGCAPTION PRE CODE"
    allowed += " STRONG EM S BR SPAN BUTTON SVG PATH " + " ".join(mathml.ELEMENTS).upper()
    seen = page.evaluate(
        """() => { const found = new Set();
        for (const node of document.querySelectorAll('.answer .text *')) {
          found.add(node.tagName.toUpperCase());
          for (const {name} of node.attributes)
            if (/^on|^href$|^src$|^style$|^id$|^name$|^form/.test(name)) found.add(name);
        }
        return [...found]; }"""
    )
    assert set(seen) <= set(allowed.split())
    for node in page.locator(".answer .text .image").all()[:3]:
        node.click()
        expect(page.locator(".popover a")).to_have_attribute("rel", "noopener noreferrer nofollow")
        page.keyboard.press("Escape")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, here: Site, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    # axe is a script of ours here, not of the page's.
    watch = Watch(browser, here, color_scheme=theme, bypass_csp=True, reduced_motion="reduce")
    page = watch.page

    def check(where: str) -> None:
        found = axe.Axe().run(page).response["violations"]
        assert not found, (where, [(v["id"], [n["html"][:120] for n in v["nodes"]][:3]) for v in found])

    check("empty")
    watch.say("look")
    check("conversation")
    page.click("[data-act=tokens]")
    page.locator(".token").nth(1).click()
    check("tokens")
    page.keyboard.press("Escape")
    page.click("[data-act=correct]")
    check("correction")
    page.click(".model")
    check("settings")
    page.keyboard.press("Escape")
    page.click("a[href='#/compare']")
    check("compare")
    watch.context.close()
