"""The reports in a real browser, from a phone to a desk: no page scrolls sideways, and no word is broken inside."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from puna.cli.main import main
from puna.evals.output import published
from puna.evals.output.report import render

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install 'puna[dev]')")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)

WIDTHS = [320, 360, 390, 768, 1200]
# Words (of letters and digits, without their hyphens) that lie on two lines, other than in quoted texts.
BROKEN = r"""() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    if (node.parentElement.closest("pre, script, style, svg, option")) continue;
    for (const word of node.data.matchAll(/[\p{L}\p{N}]+/gu)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) found.push(word[0]);
    }
  }
  return found;
}"""


def measured(name: str, title: str, suite: str, **more: Any) -> dict[str, Any]:
    """One benchmark of results.json, with everything that a report can show."""
    score = {"value": 0.4321, "interval": [0.2008, 0.4798]}
    group = {**score, "items": 1234}
    return {
        "benchmark": name,
        "title": title,
        "suites": [suite],
        "metric": "accuracy, log probability per character, normalized",
        "prompt": "8-shot: the first eight training problems with their worked solutions, ending 'The answer is N.'",
        "source": "Cobbe et al. 2021 (arXiv 2110.14168), test set, https://a.example/a_long/address_of, MIT",
        "items": 13190,
        "of": 131900,
        **score,
        "sampled": {"samples": 100, "temperature": 0.8, "pass@1": score, "pass@100": score},
        "baselines": {"chance": 0.3333, "constant": {"answer": "always choice 1", "value": 0.35, "items": 40}},
        "parts": {},
        "groups": {"high_school_macroeconomics": group, "international_law": group},
        "contamination": {
            "ngram": 13,
            "corpus": "corpora/fineweb-edu-and-more",
            "items": 13190,
            "seen": 120,
            "too_short": 12,
            "score_seen": score,
            "score_unseen": score,
        },
        "cut": 1234,
    } | more


def evaluation() -> str:
    names = ["arc_easy", "gsm8k", "core_hellaswag"]
    titles = ["ARC-Easy", "Multilingual grade school mathematics", "CORE: BIG-Bench QA Wikidata"]
    rows = [measured(n, t, s) for n, t, s in zip(names, titles, ("knowledge", "mathematics", "core"), strict=True)]
    compared = {"benchmark": "gsm8k", "items": 1319, "value": 0.4, "other": 0.35, "difference": 0.05, "p": 0.031}
    model = {"path": "runs/fineweb-edu-continued-from-step-12000/model", "parameters": 1_234_567_890, "lineage": {}}
    results = {
        "date": "2026-11-30 08:39 UTC",
        "model": model,
        "settings": {"form": "text", "dtype": "bfloat16", "samples": 100},
        "benchmarks": rows,
        "against": {"model": model, "benchmarks": [{**compared, "interval": [-0.01, 0.09]}]},
    }
    wrong = {"benchmark": "gsm8k", "value": 0, "answer": "x" * 400, "question": "How many? " * 40, "target": "4"}
    return render(
        results, [{**wrong, "group": "level 5", "id": "gsm8k/test/0123", "reason": "the number is not right"}]
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "evaluation.html").write_text(evaluation())
    for name, asked in {
        "plan": ["llama3.1-405b", "--fleet", "16384xh100", "--tokens", "15.6T"],
        "no fit": ["llama3-70b", "--fleet", "8xh100", "--tokens", "1T"],
    }.items():
        assert main(["plan", *asked, "--html", str(folder / f"{name}.html")]) == 0
    assert main(["plan", "validate", "--html", str(folder / "accuracy.html")]) == 0
    return {file.stem: file for file in folder.glob("*.html")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.parametrize("name", ["evaluation", "plan", "no fit", "accuracy"])
def test_no_report_scrolls_sideways_or_breaks_words(browser: Any, pages: dict[str, Path], name: str) -> None:
    page = browser.new_page()
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width
        assert page.evaluate(BROKEN) == [], width
    page.close()


def test_the_test_data_shows_every_section() -> None:
    page = evaluation()
    for title in (
        "Scores",
        "DCLM CORE",
        "Compared with another model",
        "Compared with published models",
        "What the corpus holds",
    ):
        assert title in page
    assert published.COLUMNS
