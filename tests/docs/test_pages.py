"""The documentation shows what the programs print: computed parts and figures in the text are up to date."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from puna.cli.main import main
from puna.plan.equations.constants import COMMON, GENERATION, STACK

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FLEET = (DOCS / "fleet.md").read_text(encoding="utf-8")
SECTIONS = [part for part in re.split(r"^## ", FLEET, flags=re.MULTILINE) if "<!-- output -->" in part]


@pytest.fixture(scope="module")
def render() -> ModuleType:
    """docs/render.py."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("render")
    finally:
        sys.path.remove(str(DOCS))


def commands_of(text: str) -> list[str]:
    """Lines of ```sh blocks, without what follows a #."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [shlex.join(shlex.split(line, comments=True)) for block in blocks for line in block.splitlines() if line]


def plans() -> list[str]:
    """Every `puna plan` that a page shows, each once."""
    pages = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    lines = [line for page in pages for line in commands_of(page.read_text(encoding="utf-8"))]
    return sorted({line for line in lines if line.startswith("puna plan")} - {"puna plan calibrate"})


@pytest.mark.parametrize("line", plans())
def test_a_shown_plan_runs(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("recipes", "fleets"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)[1:]) == 0


@pytest.mark.parametrize("section", SECTIONS, ids=[section.splitlines()[0] for section in SECTIONS])
def test_figures_in_bold_are_those_that_the_command_prints(section: str, render: ModuleType) -> None:
    printed = "\n".join(render.output(line) for line in commands_of(section))
    for figure in re.findall(r"\*\*(.+?)\*\*", section, re.DOTALL):
        assert " ".join(figure.split()) in printed, figure


def test_what_the_page_says_is_refused_is_refused_so() -> None:
    shown = re.findall(r"^    \$ puna (.+)\n    (.+?) \.\.\.$", FLEET, re.MULTILINE)
    assert shown
    for words, sentence in shown:
        command = [sys.executable, "-m", "puna", *shlex.split(words)]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT)
        assert result.returncode == 2
        assert " ".join(result.stderr.split()).startswith(sentence)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_what_a_page_has_computed_is_up_to_date(path: Path, render: ModuleType) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == render.rendered(text), f"docs/{path.name} is stale; refresh it with `make docs` (docs/render.py)"


def test_pictures_are_up_to_date_and_stand_alone(render: ModuleType) -> None:
    found = render.pictures()
    assert [path.name for path in found] == ["plan-scatter.svg", "plan-families.svg"]
    for path, text in found.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale; refresh it with `make docs`"
        tree = ElementTree.fromstring(text)
        assert tree.tag == "{http://www.w3.org/2000/svg}svg"
        assert int(tree.attrib["width"]) > 0
        assert "var(--md-" not in text


def test_every_wish_of_a_page_is_filled_for_readers_without_mkdocs() -> None:
    wishes = {}
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        parts = re.findall(r"^<!-- (?!end)([^>]*) -->$(.*?)(?=^<!--|\Z)", text, re.MULTILINE | re.DOTALL)
        wishes[path.name] = [wish for wish, _ in parts]
        assert all(body.strip() for _, body in parts), path.name
        assert text.count("<!-- end -->") == len(parts), path.name
    assert wishes["fleet.md"] == ["output"] * 8
    assert {"result logits", "result tune-demo", "plan scores"} <= set(wishes["benchmarks.md"])
    assert {"plan scatter", "plan families", "plan rows", "plan constants"} <= set(wishes["plan.md"])
    assert wishes["recipes.md"] == ["shipped recipes", "recipe fields"]


def test_a_stale_page_is_named_and_says_what_refreshes_it(
    render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("Before.\n\n<!-- shipped recipes -->\n\nAfter.\n", encoding="utf-8")
    monkeypatch.setattr(render, "DOCS", page.parent)
    monkeypatch.setattr(render, "ROOT", tmp_path)
    monkeypatch.setattr(render, "pictures", dict)
    monkeypatch.setattr(sys, "argv", ["render.py", "--check"])
    assert render.main() == 1
    assert capsys.readouterr().out == "docs/page.md is stale\nRefresh with: make docs\n"
    monkeypatch.setattr(sys, "argv", ["render.py"])
    assert render.main() == 0
    once = page.read_text(encoding="utf-8")
    assert re.fullmatch(r"Before\.\n\n<!-- shipped recipes -->\n\n\|.*\|\n\n<!-- end -->\n\nAfter\.\n", once, re.DOTALL)
    monkeypatch.setattr(sys, "argv", ["render.py", "--check"])
    assert render.main() == 0
    assert page.read_text(encoding="utf-8") == once


def test_every_constant_is_explained(render: ModuleType) -> None:
    assert set(render.plan_tables.MEANINGS) == {*COMMON, *GENERATION, *STACK}


def test_output_is_below_its_command_in_lines_that_fit_the_page(render: ModuleType) -> None:
    text = render.rendered("```sh\npuna plan fleet 350000xh100\n```\n\n<!-- output -->\n")
    assert text.startswith("```sh\npuna plan fleet 350000xh100\n```\n\n<!-- output -->\n\n```text\n350000xh100-sxm")
    assert text.endswith("```\n\n<!-- end -->\n")
    assert render.rendered(text) == text
    assert max(map(len, text.splitlines())) <= render.WIDTH
    with pytest.raises(ValueError, match="not a command of puna"):
        render.output("ls")
