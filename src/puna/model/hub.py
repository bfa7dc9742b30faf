"""Where a model is and what it is called: a folder, a run directory, or a repository on the Hugging Face Hub.

Only `puna import` and `puna model inspect` access the Hub, and only for names given as Hub ids; everything else works
on folders. The client is installed with the extra `hub`.
"""

import os
import re
from pathlib import Path

from puna.core.console import say
from puna.core.errors import ModelError, reason_of

_SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model", "LICENSE*", "README.md"]


def model_directory(name: str | Path) -> Path:
    """Return a model directory, or that of a run directory.

    Raises PunaError when the path is neither.
    """
    path = Path(name)
    for place in (path, path / "model"):
        if (place / "config.json").is_file():
            return place
    if path.is_dir() and (path / "recipe.toml").is_file():
        raise ModelError(
            f"{path} is a run that has not written its model yet.",
            "Let it finish, or resume it with puna train --resume.",
        )
    if path.exists():
        raise ModelError(
            f"{path} is not a model directory (no config.json).", "Pass the folder of a model or of a run."
        )
    hint = f"To fetch it from Hugging Face: puna import {name} -o models/{path.name}" if _is_hub_id(str(name)) else ""
    raise ModelError(f"{path} does not exist.", hint or "Pass the folder of a model or of a run.")


def model_name(place: str | Path) -> str:
    """The name of a model or run directory wherever a model is named: its folder's, but for a folder `model` its run's.

    Links are not followed: a link has the name that somebody chose for it.
    """
    path = Path(os.path.abspath(place))
    is_run = (path / "model" / "config.json").is_file() and not (path / "config.json").is_file()
    return path.parent.name if path.name == "model" and path.parent.name and not is_run else path.name


def find_model(name: str, *, weights: bool) -> Path:
    """Return the folder `name`, or download the Hub's repository of that name.

    Downloads go to the Hub's cache. A name is a Hub id when no such folder exists and it looks like org/name;
    "hf:org/name" always is one. weights: also download the safetensors. Raises PunaError when the name is neither, the
    Hub does not have it, or access is denied.
    """
    repository = name.removeprefix("hf:")
    path = Path(name)
    if repository == name:
        # models/typo looks like a Hub id, but if there is a folder `models`, a path is meant.
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
            f"There is no folder {repository}, and downloading from Hugging Face needs the package huggingface-hub.",
            "Install it with pip install 'puna[hub]', or pass a folder.",
        ) from None
    say(f"Downloading {repository} from Hugging Face.")
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
            "Check the name; for a private repository, log in with hf auth login.",
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{repository} could not be downloaded from Hugging Face ({reason_of(error)}).",
            "Check the connection and try again.",
        ) from None
