"""What CONTRIBUTING.md and the files next to it mention exists."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import puna
from puna.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def exists(path: str) -> bool:
    """Whether a path is in the repository, or in the package, `<name>` standing for any file."""
    pattern = re.sub(r"<\w+>", "*", path.rstrip("/"))
    return any(next(folder.glob(pattern), None) for folder in (ROOT, ROOT / "src" / "puna"))


@pytest.mark.parametrize("text", [CONTRIBUTING, SECURITY], ids=["CONTRIBUTING.md", "SECURITY.md"])
def test_paths_links_and_modules_exist(text: str) -> None:
    new = {"tasks/problems/<family>.py", "evals/benchmarks/<name>.py"}
    words = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    paths = [word for word in words if "/" in word and " " not in word]
    assert paths
    assert [path for path in paths if path not in new and not exists(path)] == []
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (ROOT / target).exists(), target
    for module in re.findall(r"`(puna(?:\.\w+)+)`", text):
        parts = module.split(".")
        folder = ROOT / "src" / Path(*parts)
        named = folder.is_dir() or folder.with_suffix(".py").is_file() or folder.parent.with_suffix(".py").is_file()
        assert named, module


def test_links_to_headings_lead_somewhere() -> None:
    for page, anchor in re.findall(r"\]\((docs/[\w.-]+)#([\w-]+)\)", CONTRIBUTING):
        heads = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}, (page, anchor)


def test_commands_exist() -> None:
    words = re.findall(r"`puna ([\w-]+)", CONTRIBUTING + SECURITY)
    assert words
    assert set(words) <= set(COMMANDS) | {"--version"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make (\w+)", CONTRIBUTING):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_names_that_a_change_goes_into_exist() -> None:
    where = {
        "_MODULES": "tasks/catalogue.py",
        "STAGES": "tune/recipe.py",
        "COMMANDS": "cli/main.py",
        "TextBackend": "serve/backends/text.py",
    }
    for name, path in where.items():
        assert f"`{name}`" in CONTRIBUTING
        assert name in (ROOT / "src" / "puna" / path).read_text(encoding="utf-8")


def test_ci_calls_the_script_that_everybody_can_run() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["test"]["steps"]
    assert steps[-1]["run"] == ".ci/run"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    oldest = workflow["jobs"]["test"]["strategy"]["matrix"]["python"][0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={oldest}"


def test_hooks_run_tools_that_the_project_installs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tools = {re.split(r"[>=\[]", word)[0] for word in project["optional-dependencies"]["dev"]}
    programs = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    assert programs - {"python", "lint-imports"} <= tools
    assert "import-linter" in tools
    for hook in hooks:
        for word in hook["entry"].split()[1:]:
            assert word.startswith("--") or word in ("check", "format") or (ROOT / word).is_file()


def test_forms_and_citation_are_well_formed() -> None:
    for name in ("bug.yml", "idea.yml"):
        form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        assert len({field["id"] for field in form["body"]}) == len(form["body"])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == puna.__version__
    assert citation["license"] == "Apache-2.0"
