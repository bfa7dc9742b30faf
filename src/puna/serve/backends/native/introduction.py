"""What a model directory says of its model: `introduction` in puna.json, which the demo writes and anyone may."""

from pathlib import Path

from pydantic import ValidationError

from puna.core.console import say
from puna.model.store import load_lineage
from puna.serve.openai.objects import Introduction


def read_introduction(directory: Path) -> Introduction | None:
    """The introduction of the model in `directory`; None where there is none, or it is not valid (which is printed)."""
    found = load_lineage(directory).get("introduction")
    if found is None:
        return None
    try:
        return Introduction.model_validate(found)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        say(f"{directory}/puna.json: introduction.{where} is not valid, so the page has its usual starters.")
        return None
