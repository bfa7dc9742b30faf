"""Where a model is: a folder on this machine, a run directory, or a repository on the Hugging Face Hub.

Only `puna import` and `puna model inspect` ask the Hub, and only when the name was given as one: everything else works
on folders. The client comes with the extra `hub`.
"""

import re
from pathlib import Path

from puna.core.console import say
from puna.core.errors import ModelError, reason_of

_SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model", "LICENSE*", "README.md"]


def model_directory(name: str | Path) -> Path:
    """The model directory that a folder is or, being a run directory, holds. Raises PunaError when it is neither."""
    path = Path(name)
    for place in (path, path / "model"):
        if (place / "config.json").is_file():
            return place
    if path.is_dir() and (path / "recipe.toml").is_file():
        raise ModelError(
            f"{path} is a run that has not written its model yet.", "Let it end, or resume it with puna train --resume."
        )
    if path.exists():
        raise ModelError(
            f"{path} is not a model directory (no config.json).", "Give the folder of a model or of a run."
        )
    hint = f"To fetch it from Hugging Face: puna import {name} -o models/{path.name}" if _is_hub_id(str(name)) else ""
    raise ModelError(f"{path} does not exist.", hint or "Give the folder of a model or of a run.")


def find_model(name: str, *, weights: bool) -> Path:
    """The folder `name`, or else the Hub's repository of that name, fetched into the Hub's cache.

    A name is a Hub id when no such folder exists and it reads org/name; "hf:org/name" always is. weights: fetch the
    safetensors too. Raises PunaError when the name is neither, the Hub does not have it or does not let us.
    """
    repository = name.removeprefix("hf:")
    path = Path(name)
    if repository == name:
        # models/typo looks like a Hub id, but whoever has a folder models means that one.
        if path.exists() or not _is_hub_id(name) or path.parent.is_dir():
            hint = f"For the repository on Hugging Face write hf:{name}" if _is_hub_id(name) else ""
            if not path.exists() and hint:
                raise ModelError(f"{path} does not exist.", hint + ".")
            return model_directory(path)
    elif not _is_hub_id(repository):
        raise ModelError(f"'{name}' is not a Hugging Face id.", "Write it as hf:org/name.")
    return _fetch(repository, _SMALL_FILES + (["*.safetensors"] if weights else []))


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def _fetch(repository: str, patterns: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError:
        raise ModelError(
            f"There is no folder {repository}, and asking Hugging Face needs the package huggingface-hub.",
            "Install it with pip install 'puna[hub]', or give a folder.",
        ) from None
    say(f"Fetching {repository} from Hugging Face.")
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except GatedRepoError:
        raise ModelError(
            f"{repository} is gated on Hugging Face.",
            "Accept its licence on its page, then log in with hf auth login.",
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{repository} is neither a folder here nor a public repository on Hugging Face.",
            "Check the name; for a private one log in with hf auth login.",
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{repository} could not be fetched from Hugging Face ({reason_of(error)}).",
            "Check the connection and try again.",
        ) from None
