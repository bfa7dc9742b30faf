"""The validation as text, values and a page, with the same numbers everywhere."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from puna.plan.evidence.validate import Validation, validate
from puna.plan.output.accuracy import accuracy_text, accuracy_tree, memory_words, write_accuracy_html

RUNS = Path(os.environ.get("PUNA_TEST_DATA", "")) / ".." / "planner-data" / "published_runs_dev.yaml"
pytestmark = pytest.mark.skipif(
    not os.environ.get("PUNA_TEST_DATA") or not RUNS.is_file(),
    reason="needs planner-data/published_runs_dev.yaml next to PUNA_TEST_DATA",
)


@pytest.fixture(scope="module")
def found() -> Validation:
    return validate(RUNS)


def test_text_has_every_set_and_the_rival(found: Validation) -> None:
    console = Console(file=io.StringIO(), width=200, soft_wrap=True, highlight=False, color_system=None)
    console.print(accuracy_text(found))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for score in found.scores:
        assert score.name in text
        assert f"{100 * score.median:.1f} %" in text
    assert "constant MFU" in text
    assert "Spearman" in text


def test_values_are_plain_and_whole(found: Validation) -> None:
    tree = json.loads(json.dumps(accuracy_tree(found)))
    assert len(tree["rows"]) == len(found.rows)
    assert sum(family["rows"] for family in tree["families"]) == len(found.rows)
    first = tree["rows"][0]
    assert first["step_seconds"] / first["measured_step_seconds"] - 1 == pytest.approx(first["error"])


def test_a_page_with_a_dot_for_every_row(found: Validation, tmp_path: Path) -> None:
    page = write_accuracy_html(found, tmp_path).read_text(encoding="utf-8")
    assert "Predicted and measured" in page
    assert "<script" not in page
    assert found.scores[0].name in page
    assert memory_words(found).split(",")[0] in page
