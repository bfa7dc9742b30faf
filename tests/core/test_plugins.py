"""Plugins: files that are included, packages that are installed, and what is said when one is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from puna.cli.main import main
from puna.core.errors import PluginError, PunaError
from puna.core.plugins import include
from puna.evals.catalogue import BENCHMARKS, select, suites
from puna.serve.backends.plugins import BACKENDS
from puna.tasks.catalogue import TASKS, baseline, find

TASK = """
import puna

def task(name, **options):
    return puna.Task(
        name, "right 1", "Say one.", ("one",), lambda draw, level: (str(draw.random()), {"answer": "1"}),
        lambda data, text: puna.Verdict(float(text == "1"), {}, ""), lambda data: "1", **options,
    )

TASKS = (task("logic.sat"),)
"""


@pytest.fixture
def plugin(tmp_path: Path, clean_plugins: None):
    """A function `(source, name="mine.py") -> path`."""

    def write(source: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(source, encoding="utf-8")
        return path

    return write


def test_a_task_of_a_new_family_is_found_and_is_a_benchmark_of_its_own_suite(plugin) -> None:
    assert "logic.sat" not in TASKS
    include(plugin(TASK))
    assert find("logic.sat").check(find("logic.sat").sample(0), "1").passed
    assert list(TASKS)[-1] == "logic.sat"
    assert [one.name for one in select("logic")] == ["logic.sat"]
    assert suites()["logic"] == ("logic.sat",)
    assert "logic.sat" in suites()["puna"]
    assert BENCHMARKS["logic.sat"].suites == ("logic", "puna")
    assert baseline("logic.sat", 1, 5).score == 1


def test_a_task_can_name_its_suite(plugin) -> None:
    include(plugin(TASK.replace('task("logic.sat")', 'task("logic.sat", suite="reasoning")')))
    assert "logic.sat" in suites()["reasoning"]
    assert "logic" not in suites()


def test_a_task_whose_answers_are_programs_has_no_made_up_baseline(plugin) -> None:
    include(plugin(TASK.replace('task("logic.sat")', 'task("logic.code", code=True)')))
    assert baseline("logic.code", 1, 5).answer == ""


def test_including_a_file_twice_is_including_it_once(plugin) -> None:
    path = plugin(TASK)
    include(path)
    assert "logic.sat" in TASKS
    include(path.parent / "." / path.name)
    assert list(TASKS).count("logic.sat") == 1


def test_a_file_may_import_the_files_next_to_it(plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    plugin("NAME = 'logic.shared'", "shared_names.py")
    include(plugin("import shared_names\n" + TASK.replace('"logic.sat"', "shared_names.NAME")))
    assert "logic.shared" in TASKS
    del sys.modules["shared_names"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("import nowhere_at_all", r"mine.py does not import \(ModuleNotFoundError: No module named 'nowhere_at_all'\)"),
        ("raise SystemExit(3)", r"mine.py does not import \(SystemExit: 3\)"),
        ("x =", r"mine.py does not import \(SyntaxError: invalid syntax"),
        ("x = 1", r"mine.py registers nothing. Define TASKS, BENCHMARKS or BACKENDS"),
        ("TASKS = ()", r"mine.py registers nothing"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(plugin, source: str, sentence: str) -> None:
    path = plugin(source)
    before = set(sys.modules)
    with pytest.raises(PluginError, match=sentence) as error:
        include(path)
    assert "\n" not in str(error.value)
    assert not any(name.startswith("puna_include") for name in set(sys.modules) - before)


def test_a_file_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"nowhere.py is not a file"):
        include(tmp_path / "nowhere.py")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(PluginError, match=r"notes.txt is not a Python file"):
        include(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("TASKS = 3", r"TASKS is a int. Make it a tuple of Task values: TASKS = \(value,\)."),
        ("TASKS = ('logic.sat',)", r"TASKS contains a str. Put Task values into it."),
        (
            TASK.replace("logic.sat", "planning.grid"),
            r"task 'planning.grid', which is already registered in Puna itself",
        ),
        (TASK + "TASKS += TASKS", r"mine.py registers the task 'logic.sat' twice. Choose"),
    ],
)
def test_what_does_not_fit_a_registry_is_one_sentence_and_adds_nothing(plugin, source: str, sentence: str) -> None:
    include(plugin(source))
    for _ in range(2):
        with pytest.raises(PluginError, match=sentence):
            list(TASKS)


def test_two_files_with_one_name_are_told_apart(plugin) -> None:
    include(plugin(TASK, "first.py"))
    include(plugin(TASK, "second.py"))
    with pytest.raises(PluginError, match=r"second.py registers the task 'logic.sat'.* in .*first.py. Choose another"):
        find("logic.sat")


def test_a_backend_is_a_function_with_a_new_name(plugin) -> None:
    include(plugin("BACKENDS = {'mine': print}"))
    assert BACKENDS["mine"] is print
    include(plugin("BACKENDS = {'vllm': print}", "taken.py"))
    with pytest.raises(PluginError, match=r"'vllm', which is already registered in Puna itself"):
        list(BACKENDS)


def test_backends_of_another_form_are_refused(plugin) -> None:
    include(plugin("BACKENDS = [print]"))
    with pytest.raises(PluginError, match=r'BACKENDS is not a dictionary of functions. Write BACKENDS = {"name"'):
        list(BACKENDS)


def test_an_unknown_name_says_what_is_known_and_that_files_must_be_included(clean_plugins: None) -> None:
    with pytest.raises(PunaError, match=r"There is no task 'logic.sat'.*--include"):
        find("logic.sat")
    with pytest.raises(PunaError, match=r"There is no suite or benchmark 'logik'.*--include"):
        select("logik")


@pytest.mark.parametrize(
    "words",
    [
        ["tasks", "list"],
        ["tasks", "sample", "planning.grid"],
        ["eval", "list"],
        ["tune", "sft", "recipe.toml"],
        ["serve", "models/demo"],
    ],
)
def test_every_command_says_in_one_sentence_that_a_file_is_none(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--include", "nowhere.py"]) == 2
    said = capsys.readouterr().err
    assert said == f"puna {words[0]}: nowhere.py is not a file. Give the path of a Python file to --include.\n"


def test_an_unknown_backend_is_one_sentence(clean_plugins: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--backend", "vlm"]) == 2
    assert "There is no backend 'vlm'. Did you mean 'vllm'?" in capsys.readouterr().err


# -- installed packages ----------------------------------------------------------------------------------------------


def installed(folder: Path, package: str, source: str, group: str = "puna.tasks") -> None:
    """Write a package as pip would leave it."""
    (folder / f"{package}.py").write_text(source, encoding="utf-8")
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group}]\n{package} = {package}\n", encoding="utf-8")


def puna_with(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    source = f"import sys; sys.path.insert(0, {str(folder)!r}); from puna.cli.main import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", source, *words], capture_output=True, encoding="utf-8", check=False)


def test_an_installed_package_is_found_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    installed(tmp_path, "good_logic", TASK)
    installed(tmp_path, "broken_logic", "import nowhere_at_all")
    installed(tmp_path, "second_logic", TASK)
    found = puna_with(tmp_path, "tasks", "sample", "logic.sat", "--solve")
    assert found.returncode == 0
    assert found.stdout.endswith("\n1\n")
    warnings = found.stderr.splitlines()
    assert warnings[0] == (
        "puna: The plugin broken_logic could not be loaded (ModuleNotFoundError: No module named 'nowhere_at_all') "
        "and is left out. Reinstall or uninstall it."
    )
    assert warnings[1].startswith("puna: The plugin second_logic registers the task 'logic.sat', which is already")
    assert len(warnings) == 2


def test_a_broken_package_does_not_even_slow_the_help(tmp_path: Path) -> None:
    installed(tmp_path, "broken_logic", "print('imported'); import nowhere_at_all")
    for words in (["--help"], ["tasks", "--help"], ["recipe", "--help"]):
        shown = puna_with(tmp_path, *words)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "imported" not in shown.stdout
