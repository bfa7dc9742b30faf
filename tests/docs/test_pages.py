"""The documentation tells what the programs print: commands of the planner's pages run, and figures are theirs."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from puna.cli.main import main
from puna.plan.equations.constants import COMMON, GENERATION, STACK

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FLEET = (DOCS / "fleet.md").read_text(encoding="utf-8")
SECTIONS = [part for part in re.split(r"^## ", FLEET, flags=re.MULTILINE) if "<!-- output -->" in part]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/hooks.py as MkDocs loads it."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("hooks")
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
def test_figures_in_bold_are_those_that_the_command_prints(section: str, hooks: ModuleType) -> None:
    printed = "\n".join(hooks.output(line) for line in commands_of(section))
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


@pytest.mark.parametrize("name", ["plan.md", "benchmarks.md"])
def test_every_wish_of_a_page_is_filled(name: str, hooks: ModuleType) -> None:
    text = hooks.on_page_markdown((DOCS / name).read_text(encoding="utf-8"))
    assert "<!--" not in text
    if name == "plan.md":
        assert text.count('<svg class="plot"') == 2
        assert text.count("<style>") == 1


def test_every_constant_is_explained(hooks: ModuleType) -> None:
    assert set(hooks.plan_tables.MEANINGS) == {*COMMON, *GENERATION, *STACK}


def test_output_stands_under_its_command_in_lines_that_fit_the_page(hooks: ModuleType) -> None:
    text = hooks.on_page_markdown("```sh\npuna plan fleet 350000xh100\n```\n\n<!-- output -->\n")
    assert text.startswith("```sh\npuna plan fleet 350000xh100\n```\n\n```text\n350000xh100-sxm")
    assert max(map(len, text.splitlines())) <= hooks.WIDTH
    with pytest.raises(ValueError, match="no command of puna"):
        hooks.output("ls")
