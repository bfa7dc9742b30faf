"""Datasets on the Hugging Face Hub, by id (extra `hub`).

Only `huggingface_hub` is needed: a dataset is a repository of files, and its parquet and jsonl files are read like
local ones. A dataset in another format is read from the Hub's own parquet conversion. The branch is resolved to a
commit first; all files come from that commit, which the manifest records. Files are stored in the Hub's cache, so a
second build downloads nothing. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HOME` have their usual meaning.
"""

from pathlib import Path
from typing import Any

from puna.core.errors import PunaError, reason_of
from puna.data.document import Input
from puna.data.reading.file_types import RECORDS, matches, suffix
from puna.data.recipe import SourceConfig

_CONVERTED = "refs/convert/parquet"  # the branch with the Hub's parquet conversion of a dataset


def list_dataset(source: SourceConfig) -> list[Input]:
    """The record files of a dataset at one commit, sorted by name. Raises PunaError when there are none."""
    for revision in dict.fromkeys((source.revision, _CONVERTED)):
        info = _info(source, revision, optional=revision == _CONVERTED)
        if info is None:
            continue
        names = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = [
            name
            for name in sorted(names)
            if suffix(name)[0] in RECORDS
            and (not source.glob or matches(name, source.glob))
            and not matches(name, source.exclude, folders=True)
        ]
        if wanted:
            return [Input(name, names[name], name, info.sha) for name in wanted]
    patterns = f" that matches {', '.join(source.glob)}" if source.glob else ""
    raise PunaError(
        f"Source '{source.name}': dataset '{source.id}' at '{source.revision}' has no parquet or jsonl file{patterns}.",
        "Check `id`, `revision` and `glob`.",
    )


def fetch(source: SourceConfig, item: Input) -> Path:
    """The local path of one file of a dataset, downloaded if it is not in the cache."""
    hub = _library()
    try:
        return Path(hub.hf_hub_download(source.id, item.place, repo_type="dataset", revision=item.revision))
    except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError, OSError) as error:
        raise _hub_error(source, error) from error


def _info(source: SourceConfig, revision: str, *, optional: bool) -> Any:
    hub = _library()
    try:
        return hub.HfApi().dataset_info(source.id, revision=revision, files_metadata=True)
    except (hub.errors.HfHubHTTPError, OSError) as error:
        if optional and isinstance(error, hub.errors.RevisionNotFoundError):
            return None
        raise _hub_error(source, error) from error
    except hub.errors.HFValidationError as error:
        raise PunaError(f"Source '{source.name}': '{source.id}' is not a dataset id.", "Write owner/name.") from error
    except Exception as error:
        # huggingface_hub's HTTP client differs between versions (requests, httpx); its connection errors share no base
        # class with the Hub's own.
        if type(error).__module__.split(".")[0] in ("requests", "httpx", "httpcore", "urllib3", "httpx2"):
            raise _hub_error(source, error) from error
        raise


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise PunaError("Sources of kind 'hub' need the package huggingface-hub.", "pip install 'puna[hub]'.") from None
    return huggingface_hub


def _hub_error(source: SourceConfig, error: BaseException) -> PunaError:
    errors = _library().errors
    what = f"Source '{source.name}': dataset '{source.id}'"
    if isinstance(error, errors.GatedRepoError):
        return PunaError(f"{what} is gated.", "Accept its terms on the Hub and set HF_TOKEN.")
    if isinstance(error, errors.RevisionNotFoundError):
        return PunaError(f"{what} has no revision '{source.revision}'.", "Check `revision`.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return PunaError(f"{what} does not exist, or is private.", "Check `id`; for a private one set HF_TOKEN.")
    return PunaError(
        f"{what} cannot be reached ({reason_of(error)}).", "Check the network, or use a local copy as kind 'files'."
    )
