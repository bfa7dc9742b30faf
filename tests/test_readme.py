"""Every command that README.md and these pages show: each is one that `puna` or `make` accepts."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from puna.cli.main import COMMANDS
from puna.core.recipe import Config, load
from puna.data.recipe import DataRecipe
from puna.plan.run.fleet import FleetFile
from puna.train.recipe import Recipe
from puna.tune.recipe import load_stage

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/getting-started.md", "docs/plan.md", "docs/fleet.md", "docs/serving.md")


def shown_commands() -> list[str]:
    """The lines of all ```sh blocks, continuation lines joined."""
    lines = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            lines += [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return sorted(set(lines))


def lines_of(program: str) -> list[str]:
    return [line for line in shown_commands() if line.split()[0] == program]


def test_pages_show_nothing_that_is_not_checked_here() -> None:
    assert {line.split()[0] for line in shown_commands()} <= {"puna", "make", "source"}
    assert lines_of("puna")


@pytest.mark.parametrize("line", lines_of("puna"))
def test_puna_accepts_the_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, name, *words = shlex.split(line, comments=True)
    assert name in COMMANDS
    module = importlib.import_module(f"puna.cli.{name.replace('-', '_')}_command")
    parser = argparse.ArgumentParser()
    module.arguments(parser)
    try:
        parser.parse_args(words)
    except SystemExit:
        pytest.fail(f"{line}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("line", [line for line in lines_of("puna") if ".toml" in line])
def test_recipes_of_the_command_exist_and_take_its_overrides(line: str) -> None:
    words = shlex.split(line, comments=True)
    paths = [ROOT / word for word in words if word.endswith(".toml") and "=" not in word]
    overrides = [word for word in words if re.match(r"[\w.]+=", word)]
    kinds: dict[str, type[Config]] = {"data": DataRecipe, "fleets": FleetFile}
    for path in paths:
        if path.parent.name == "tune":
            load_stage(path, overrides)
        else:
            load(kinds.get(path.parent.name, Recipe), path, overrides)


@pytest.mark.parametrize("line", lines_of("make"))
def test_make_has_the_target_and_its_variables(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in line.split()[1:]:
        name, equals, _ = word.partition("=")
        assert re.search(rf"^{name} *\?=" if equals else rf"^{name}:", makefile, re.MULTILINE), word
