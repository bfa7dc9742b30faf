"""Help pages: they fit 80 columns, break no word, and read alike."""

import argparse
import importlib
import re
from collections.abc import Iterator

import pytest

from puna.cli.help import Parser
from puna.cli.main import COMMANDS, main


def parser_of(name: str) -> Parser:
    module = importlib.import_module(f"puna.cli.{name.replace('-', '_')}_command")
    parser = Parser(prog=f"puna {name}", description=(module.__doc__ or "").strip())
    module.arguments(parser)
    return parser


def all_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its actions."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from all_parsers(inner)


def help_texts(parser: argparse.ArgumentParser) -> Iterator[str]:
    for inner in all_parsers(parser):
        for action in inner._actions:
            if action.help and action.help is not argparse.SUPPRESS and action.dest != "help":
                yield action.help
            if isinstance(action, argparse._SubParsersAction):
                yield from (str(choice.help) for choice in action._choices_actions)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_is_too_long_and_no_word_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for parser in all_parsers(parser_of(name)):
        monkeypatch.setenv("COLUMNS", "80")
        shown = parser.format_help()
        too_long = [line for line in shown.splitlines() if len(line) > 80]
        assert not too_long
        monkeypatch.setenv("COLUMNS", "10000")
        assert set(parser.format_help().split()) <= set(shown.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_texts_are_lower_case_without_a_full_stop(name: str) -> None:
    parser = parser_of(name)
    first = (parser.description or "").splitlines()[0]
    for text in [*help_texts(parser), COMMANDS[name], first]:
        assert not text.endswith("."), text
        word = re.split(r"\W", text)[0]
        # A name may be a word in capitals (JSON, ONNX) or one that has them (Slurm).
        assert word in ("Slurm", "Puna") or word.isupper() or word == word.lower(), text


def test_the_list_of_commands_fits_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert all(f"  {name} " in shown for name in COMMANDS)
