"""The page in a real browser: any script, copying, drafts, formulas, base models and models that are gone."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_site import Site, site
from scripted import Scripted

from puna.serve.backends.base import Models

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install 'puna[dev]')")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)
expect = sync_api.expect

ELSEWHERE = "puna.test"  # a name that is not this computer's, so browsers hold its pages back as they do over http
FORMULAS = "Roses\nare red: \\(x^2\\) and\n\n\\[\n\\frac{a}{b}\n- c\n\\]\n\nSee https://a.example/x."
HEBREW = "- שלום\n- עולם\n\n> ציטוט\n\n| שם | גיל |\n|---|---|\n| דן | 5 |\n\n```\nx = 1\n```"
CODE = "    return n\n\n# not a heading\n    <b>x</b>"


def script(text: str) -> str:
    return {"formulas": FORMULAS, "hebrew": HEBREW}.get(text, f"You said {text}.")


def backends() -> list[Scripted]:
    return [Scripted("one", script), Scripted("two", script), Scripted("base", lambda _: CODE, stage="base")]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(backends(), tmp_path_factory.mktemp("data"), allowed_hosts=(ELSEWHERE,)) as made:
        yield made


@pytest.fixture(autouse=True)
def _all_models(here: Site) -> Iterator[None]:
    yield
    here.assistant.server.models = Models(backends())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        rules = f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, here: Site) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 800}, locale="en-US", service_workers="block")
    context.set_default_timeout(20_000)
    expect.set_options(timeout=20_000)
    made = context.new_page()
    wrong: list[str] = []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.goto(here.url)
    expect(made.locator("#prompt")).to_be_visible()
    yield made
    context.close()
    assert wrong == []


def say(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    expect(page.locator(".answer [data-act=again]").last).to_be_attached()


def serve(here: Site, *models: Scripted) -> None:
    """What a restart with other models does to a page that is open."""
    here.assistant.server.models = Models(models)


# -- copying -----------------------------------------------------------------------------------------------------------


def pasted(page: Any) -> str:
    """What the clipboard holds, by pasting it into the field."""
    page.fill("#prompt", "")
    page.focus("#prompt")
    page.keyboard.press("Control+v")
    return page.input_value("#prompt")


def test_copying_works_over_http_from_another_machine(page: Any, here: Site) -> None:
    page.goto(here.url.replace("127.0.0.1", ELSEWHERE))
    assert page.evaluate("navigator.clipboard === undefined")
    say(page, "formulas")
    page.click(".answer [title='Copy message']")
    expect(page.locator("#announce")).to_have_text("Copied")
    assert pasted(page) == FORMULAS
    say(page, "hebrew")
    page.click(".copy-code")
    assert pasted(page) == "x = 1\n"


def test_where_nothing_can_be_copied_the_text_is_shown(page: Any, here: Site) -> None:
    page.goto(here.url.replace("127.0.0.1", ELSEWHERE))
    page.evaluate("document.execCommand = () => false")
    say(page, "hello")
    page.click(".answer [title='Copy message']")
    expect(page.locator(".popover .note")).to_contain_text("Ctrl+C")
    assert page.evaluate("getSelection().toString() || document.activeElement.value") == "You said hello."
    assert page.evaluate("document.activeElement.selectionEnd") == len("You said hello.")


def test_formulas_are_drawn_and_copied_as_their_source(page: Any) -> None:
    say(page, "formulas")
    fraction = page.locator(".answer mfrac")
    expect(fraction).to_be_visible()
    box = fraction.bounding_box()
    assert box["height"] > 1.2 * page.locator(".answer mfrac mi").first.bounding_box()["height"]
    expect(page.locator(".answer br")).to_have_count(1)
    expect(page.locator(".answer .link")).to_have_attribute("data-url", "https://a.example/x")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('.answer [data-area=content]'))")
    page.keyboard.press("Control+c")
    copied = pasted(page)
    assert "\\(x^2\\)" in copied
    assert "\\frac{a}{b}" in copied
    assert copied.startswith("Roses\nare red")


# -- input methods, directions -----------------------------------------------------------------------------------------

ENTER = """(node, how) => node.dispatchEvent(new KeyboardEvent("keydown",
  {key: "Enter", bubbles: true, cancelable: true, ...how}))"""
CONFIRMS = [{"keyCode": 229}, {"isComposing": True}]


@pytest.mark.parametrize("how", CONFIRMS)
def test_enter_that_confirms_an_input_method_sends_nothing(page: Any, how: dict[str, Any]) -> None:
    say(page, "first")
    page.fill("#prompt", "にほんご")
    page.locator("#prompt").evaluate(ENTER, how)
    expect(page.locator(".said")).to_have_count(1)
    page.click(".user [data-act=edit]")
    page.locator(".user textarea").evaluate(ENTER, how)
    expect(page.locator(".user textarea")).to_be_visible()
    page.locator(".user textarea").evaluate(ENTER.replace("Enter", "Escape"), how)
    expect(page.locator(".user textarea")).to_be_visible()
    page.click(".user form button[type=button]")
    page.locator(".list .more").first.click()
    page.click(".item:has-text('Rename')")
    page.locator(".list .field").evaluate(ENTER, how)
    expect(page.locator(".list .field")).to_be_visible()
    page.keyboard.press("Escape")
    page.click("a[href='#/compare']")
    page.fill(".compare textarea", "にほんご")
    page.locator(".compare textarea").evaluate(ENTER, how)
    expect(page.locator(".compare .usage").first).to_be_empty()
    assert page.locator(".compare-form button[type=submit]").is_enabled()


def test_lists_tables_quotes_and_the_composer_take_their_texts_direction(page: Any) -> None:
    page.fill("#prompt", "שלום")
    assert page.evaluate("getComputedStyle(document.querySelector('#prompt')).direction") == "rtl"
    say(page, "hebrew")
    for selector in ("ul", "blockquote", "table"):
        assert page.evaluate(f"getComputedStyle(document.querySelector('.answer {selector}')).direction") == "rtl"
    assert page.evaluate("getComputedStyle(document.querySelector('.answer pre')).direction") == "ltr"
    item, whole = (page.locator(f".answer {name}").first.bounding_box() for name in ("li", "[data-area=content]"))
    assert item["x"] + item["width"] < whole["x"] + whole["width"] - 10  # the marker is on the right
    first, second = (page.locator(".answer th").nth(at).bounding_box() for at in (0, 1))
    assert first["x"] > second["x"]


# -- drafts ------------------------------------------------------------------------------------------------------------


def test_a_draft_survives_a_reload_and_belongs_to_its_conversation(page: Any) -> None:
    page.fill("#prompt", "for a new one")
    page.reload()
    expect(page.locator("#prompt")).to_have_value("for a new one")
    page.press("#prompt", "Enter")
    expect(page.locator(".answer [data-act=again]")).to_be_attached()
    expect(page.locator("#prompt")).to_have_value("")
    page.fill("#prompt", "a second\nmessage")
    page.keyboard.press("Control+k")
    expect(page.locator("#prompt")).to_have_value("")
    page.go_back()
    expect(page.locator("#prompt")).to_have_value("a second\nmessage")
    page.reload()
    expect(page.locator("#prompt")).to_have_value("a second\nmessage")
    page.click(".user [data-act=edit]", force=True)
    page.fill(".user textarea", "edited")
    page.reload()
    page.click(".user [data-act=edit]", force=True)
    expect(page.locator(".user textarea")).to_have_value("edited")
    page.click(".user form button[type=button]")
    page.press("#prompt", "Enter")
    expect(page.locator(".said")).to_have_count(2)
    page.reload()
    expect(page.locator("#prompt")).to_have_value("")
    assert page.evaluate("Object.keys(sessionStorage).length") == 0


# -- models ------------------------------------------------------------------------------------------------------------


def test_a_restart_with_other_models_is_said_and_another_is_offered(page: Any, here: Site) -> None:
    serve(here, Scripted("three", script), Scripted("four", script))
    page.fill("#prompt", "hello")
    page.press("#prompt", "Enter")
    expect(page.locator(".failure p")).to_have_text("one is no longer served here. Choose a model that is:")
    expect(page.locator("#prompt")).to_have_value("hello")
    page.click(".failure button:has-text('four')")
    expect(page.locator(".answer .by")).to_have_text("four")
    expect(page.locator("#prompt")).to_have_value("")
    expect(page.locator(".said")).to_have_count(1)


def test_an_old_conversation_is_answered_by_another_model_only_when_a_person_says_so(page: Any, here: Site) -> None:
    say(page, "hello")
    serve(here, Scripted("three", script))
    page.click("[data-act=again]")
    expect(page.locator(".failure p")).to_contain_text("one is no longer served here.")
    expect(page.locator(".picker")).to_contain_text("one (not served)")
    expect(page.locator(".answer")).to_have_count(1)
    page.reload()
    expect(page.locator(".failure p")).to_contain_text("one is not served here.")
    page.click(".failure button:has-text('three')")
    expect(page.locator(".failure")).to_have_count(0)
    say(page, "and now?")
    expect(page.locator(".answer .by")).to_have_text(["one", "three"])


def test_the_header_has_a_picker(page: Any) -> None:
    page.select_option(".picker", "two")
    say(page, "hello")
    expect(page.locator(".answer .by")).to_have_text("two")
    page.select_option(".picker", "one")
    say(page, "again")
    expect(page.locator(".answer .by")).to_have_text(["two", "one"])
    page.reload()
    expect(page.locator(".picker")).to_have_value("one")


def test_the_context_used_and_the_defaults_are_shown(page: Any) -> None:
    expect(page.locator(".context")).to_have_count(0)
    say(page, "hello")  # Scripted says 12 tokens of prompt, and one a word
    expect(page.locator(".context")).to_have_text("Context used: 15 of 8,192 tokens (0.18%)")
    page.click(".model")
    assert page.get_attribute("dialog [name=temperature]", "placeholder") == "1, default"
    assert page.get_attribute("dialog [name=max_tokens]", "placeholder") == "1024, default"
    page.select_option("dialog select", "base")
    assert page.get_attribute("dialog [name=max_tokens]", "placeholder") == "256, default"
    assert page.get_attribute("dialog [name=seed]", "placeholder") == "random"


def test_a_base_models_text_and_its_prompt_are_one_piece(page: Any) -> None:
    page.select_option(".picker", "base")
    say(page, "def f(n):\n")
    whole = page.locator(".answer .whole")
    assert whole.evaluate("node => node.textContent") == "def f(n):\n" + CODE
    assert whole.locator("h3, b, pre, p, ul").count() == 0
    expect(page.locator(".said")).not_to_be_visible()
    ends = whole.evaluate(
        """node => [".begun", "[data-area=content]"].map(name => node.querySelector(name).getBoundingClientRect())
        .map(box => [box.left, box.top])"""
    )
    assert ends[0][0] == ends[1][0]  # the continuation begins on the next line, at its own indentation
    page.click(".answer [title='Copy message']")
    page.click(".answer [data-act=edit]")
    page.fill(".user textarea", "def g(n):\n    ")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .begun")).to_have_text("def g(n):\n    ", use_inner_text=False)
    expect(page.locator(".answer .count").first).to_have_text("2/2")


@pytest.mark.parametrize(
    ("kind", "has", "hasnt"), [("code", "def ", "Maria"), ("prose", "Once upon", "def "), ("any", "def ", "holidays")]
)
def test_suggestions_follow_what_the_model_learned(
    page: Any, here: Site, tmp_path: Path, kind: str, has: str, hasnt: str
) -> None:
    share = {"code": 1.0, "prose": 0.0, "any": 0.5}[kind]
    (tmp_path / "puna.json").write_text(json.dumps({"corpus": {"code_share": share}}))
    learned = Scripted(kind, script, stage="base")
    learned.card.root = str(tmp_path)
    serve(here, learned)
    page.reload()
    page.wait_for_selector(".starter")
    shown = " ".join(page.locator(".starter").all_inner_texts())
    assert has in shown
    assert hasnt not in shown


def test_a_chat_model_that_read_only_code_is_not_asked_for_dinners(page: Any, here: Site, tmp_path: Path) -> None:
    (tmp_path / "puna.json").write_text(json.dumps({"stage": "sft", "parent": {"corpus": {"code_share": 0.98}}}))
    learned = Scripted("coder", script)
    learned.card.root = str(tmp_path)
    serve(here, learned)
    page.reload()
    expect(page.locator(".starter")).to_have_count(4)
    shown = " ".join(page.locator(".starter").all_inner_texts())
    assert "dinner" not in shown
    assert "lighthouse" not in shown


# -- importing ---------------------------------------------------------------------------------------------------------


def test_conversations_are_imported_from_a_file(page: Any, here: Site, tmp_path: Path) -> None:
    say(page, "needle")
    whole = here.api.get("/app/export").json()
    file = tmp_path / "puna-conversations.json"
    file.write_text(json.dumps(whole))
    before = len(whole["conversations"])
    page.click(".side-foot button")
    page.set_input_files("input[type=file]", str(file))
    expect(page.locator("dialog [role=status]")).to_contain_text("imported")
    assert len(here.api.get("/app/conversations").json()["conversations"]) == 2 * before
    file.write_text("PK\x03\x04")
    page.set_input_files("input[type=file]", str(file))
    expect(page.locator("dialog [role=status]")).to_contain_text("not a JSON file")


# -- phones ------------------------------------------------------------------------------------------------------------


def test_on_a_phone_nothing_is_wider_than_the_page(browser: Any, here: Site) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, service_workers="block")
    page = context.new_page()
    page.goto(here.url)
    for text in ("formulas", "hebrew"):
        say(page, text)
    expect(page.locator(".context")).to_be_visible()
    expect(page.locator(".picker")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(
        "document.querySelector('.scroller').scrollWidth <= document.querySelector('.scroller').clientWidth"
    )
    context.close()
