"""The plan's page: one self-contained file, valid markup, every section, and escaped names."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from puna.plan.layouts.predict import Question
from puna.plan.output.html import render, write_html
from puna.plan.run.estimate import RunEstimate, estimate_run
from puna.plan.run.terms import Terms

Ask = Callable[..., Question]
VOID = {"meta", "line", "path", "circle", "rect", "br"}


class Tags(HTMLParser):
    """Checks that elements are closed in order, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "link", "img")
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href") or (value or "").startswith("#")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> str:
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return " ".join(tags.text)


def big(ask: Ask) -> RunEstimate:
    return estimate_run(ask("llama3.1-405b", 16384, batch=2048), tokens=15.6e12, assumptions=("software: x",))


def test_a_page_tells_everything_and_asks_nobody(ask: Ask, tmp_path: Path) -> None:
    question = ask("llama3-70b", 512)
    found = estimate_run(question, tokens=1e12)
    path = write_html(found, tmp_path / "plan.html", sized=lambda count: ask("llama3-70b", count), terms=Terms())
    page = path.read_text(encoding="utf-8")
    text = read(page)
    for word in (
        "Memory",
        "Time",
        "The run",
        "More or fewer accelerators",
        "Tokens per second",
        "Rent against days",
        "Layouts",
        "What if",
        "Every part",
        "80 % interval",
    ):
        assert word in text, word
    assert page.count("<svg") >= 4
    assert "prefers-color-scheme: dark" in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<style>.*?</style>", "", page, flags=re.S))


def test_the_cloud_has_the_layouts_and_the_limit(ask: Ask) -> None:
    page = render(big(ask))
    clouds = re.findall(r'<path class="cloud( out)?" d="([^"]+)"', page)
    assert {kind for kind, _ in clouds} == {"", " out"}
    assert sum(d.count("M") for _, d in clouds) > 500
    assert "software: x" in page


def test_what_does_not_fit_has_remedies_and_no_run(ask: Ask) -> None:
    text = read(render(estimate_run(ask("llama3-70b", 8, stack="puna"), tokens=1e12)))
    assert "does not fit" in text
    assert "What would make it fit" in text
    assert "The run" not in text


def test_a_single_layout_needs_no_cloud(ask: Ask) -> None:
    pinned = {"tp": 1, "cp": 2, "pp": 1, "micro_batch": 1, "recompute": 0}
    found = estimate_run(ask(), tokens=1e12, constraints=pinned)
    assert len(found.choice.found) == 1
    assert "cloud" not in re.sub(r"<style>.*?</style>", "", render(found), flags=re.S)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", 'a"b', "a&b"])
def test_a_name_stays_text(ask: Ask, name: str) -> None:
    odd = Question(**{**vars(ask()), "model": name})
    assert name in read(render(estimate_run(odd, tokens=1e12)))


def test_a_folder_gets_a_page_of_its_own(ask: Ask, tmp_path: Path) -> None:
    found = estimate_run(ask("llama3-70b", 8, stack="puna"), tokens=1e12)
    assert write_html(found, tmp_path, sized=lambda count: ask(count=count), terms=Terms()) == tmp_path / "plan.html"
