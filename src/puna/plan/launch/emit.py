"""Write launch files for torchrun, Slurm, Kubeflow, SkyPilot or Ray.

Every launcher gets the same two files and its own next to them: recipe.toml, the training recipe with the plan's layout
in it, and worker.sh, which each process of the run executes. worker.sh resumes the run where its directory holds one,
so whatever starts the job again (torchrun, Slurm's requeue, a JobSet, a RayJob) continues it. This module checks a job
and writes its files; each launcher's own text is in the module of its name.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import tomli_w

from puna.core.errors import PunaError, nearest
from puna.core.files import new_directory, write_text
from puna.core.units import format_seconds
from puna.model.layout import share_batch
from puna.plan.launch.job import Launch, comment
from puna.plan.launch.kubeflow import kubeflow
from puna.plan.launch.ray import ray
from puna.plan.launch.skypilot import SKYPILOT_NAMES, skypilot, skypilot_name
from puna.plan.launch.slurm import slurm
from puna.plan.launch.torchrun import torchrun, worker
from puna.version import __version__

# Default mount of the shared storage in containers.
_CONTAINER_STORAGE = "/storage"

# The longest names: KubeRay 1.7 refuses RayJobs above 47 characters (MaxRayJobNameLength); names of pods, such as
# NAME-worker-12 and NAME-node-0-12, are host names and end at 63.
_RAY_NAME_LENGTH = 47
_HOST_NAME_LENGTH = 63


@dataclass(frozen=True)
class Emitted:
    """The files written, and warnings to read before starting them."""

    files: list[Path]
    warnings: list[str]


_WRITERS: dict[str, Callable[[Launch, Path], dict[str, str]]] = {
    "torchrun": torchrun,
    "slurm": slurm,
    "kubeflow": kubeflow,
    "skypilot": skypilot,
    "ray": ray,
}
_CONTAINER_TARGETS = ("kubeflow", "skypilot", "ray")
TARGETS = tuple(_WRITERS)


def emit(target: str, job: Launch, folder: Path) -> Emitted:
    """Write the launch files of `job` for `target` (one of TARGETS), recipe.toml and worker.sh into `folder`.

    A new folder appears complete or not at all. Existing files are kept when they are identical.
    Raises PunaError for an unknown target, a layout that does not fill the nodes, a batch that does not divide, a name
    that the target rejects, a recipe that is not TOML, and existing files that differ.
    """
    if target not in _WRITERS:
        raise PunaError(f"'{target}' is not a launcher.", nearest(target, TARGETS))
    _check_places(target, job)
    recipe = _read_recipe(job.recipe)
    _check_layout(job)
    batch = recipe["train"].get("batch")
    if isinstance(batch, int):
        share_batch(batch, job.layout.micro_batch, job.layout.data_parallel)
    warnings = _warnings(target, recipe, job)
    if target in _CONTAINER_TARGETS:
        storage = job.storage_dir if job.storage_dir != "." else _CONTAINER_STORAGE
        job = job.model_copy(update={"image": job.image or _own_image(), "storage_dir": storage})
    texts = {"recipe.toml": _recipe_text(recipe, job), "worker.sh": worker(job)}
    texts |= _WRITERS[target](job, folder)
    return Emitted(_write(texts, folder), warnings)


# -- checks ---------------------------------------------------------------------------------------------------------


def _check_layout(job: Launch) -> None:
    """Raise PunaError when the layout does not fill the nodes."""
    if job.layout.processes != job.processes:
        sizes = " x ".join(f"{key} {value}" for key, value in job.layout.recipe_values()["layout"].items())
        raise PunaError(
            f"The layout {sizes} does not fill {job.nodes} nodes of {job.accelerators_per_node} accelerators.",
            f"Its product must be {job.processes}; change the layout or the number of nodes.",
        )


def _check_places(target: str, job: Launch) -> None:
    """Raise PunaError for a name, a host or a folder that the target does not support."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", job.name):
        raise PunaError(
            f"'{job.name}' cannot name a job.", f"Use letters, digits, '-', '_' and '.', such as '{_label(job.name)}'."
        )
    if target in ("kubeflow", "ray"):
        longest = _RAY_NAME_LENGTH if target == "ray" else _HOST_NAME_LENGTH - len(f"-node-0-{job.nodes - 1}")
        if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", job.name) or len(job.name) > longest:
            raise PunaError(
                f"'{job.name}' cannot name a job on Kubernetes, which needs a DNS label of at most {longest} "
                "characters (a-z, 0-9 and '-', a letter first).",
                f"Try '{_label(job.name)[:longest].rstrip('-')}'.",
            )
    kind = job.accelerator
    if kind.generation != "cpu" and job.accelerators_per_node > kind.node_size:
        raise PunaError(
            f"{job.accelerators_per_node} accelerators per node were given, but a host of {kind.name} has "
            f"{kind.node_size}.",
            f"Use {-(-job.processes // kind.node_size)} nodes of {kind.node_size}.",
        )
    if job.storage_dir != "." and not PurePosixPath(job.storage_dir).is_absolute():
        raise PunaError(
            f"The storage folder '{job.storage_dir}' is not an absolute path, so it could differ between nodes.",
            "Write it from the root, such as /mnt/storage.",
        )


def _label(name: str) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return label if label[:1].isalpha() else f"job-{label}".rstrip("-")


def _read_recipe(text: str) -> dict[str, Any]:
    try:
        recipe = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PunaError(f"The recipe is not valid TOML: {error}.", "Give the text of a training recipe.") from None
    for section in ("train", "layout", "checkpoint"):
        if not isinstance(recipe.setdefault(section, {}), dict):
            raise PunaError(f"The recipe's '{section}' is a value, not a section.", "See `puna recipe show`.")
    return recipe


def _warnings(target: str, recipe: Mapping[str, Any], job: Launch) -> list[str]:
    found = []
    corpus = str(recipe.get("corpus", ""))
    if not corpus:
        found.append("The recipe names no corpus; set `corpus` in recipe.toml before the job starts.")
    elif corpus.endswith(".toml"):
        found.append(
            f"Build the corpus before the job starts, as its processes would all do it at once: "
            f"puna data build {corpus} -o {_corpus_directory(corpus)}"
        )
    elif target in _CONTAINER_TARGETS and PurePosixPath(corpus).is_absolute():
        storage = _CONTAINER_STORAGE if job.storage_dir == "." else job.storage_dir
        if not PurePosixPath(corpus).is_relative_to(storage):
            found.append(f"The corpus {corpus} lies outside of {storage}, the only storage that the containers mount.")
    if not (job.checkpoint_every or recipe["checkpoint"].get("every")):
        found.append("No checkpoint interval is set, so a restart starts over; set checkpoint.every in recipe.toml.")
    if target in _CONTAINER_TARGETS and not job.image:
        found.append(f"No image was given; build '{_own_image()}' with puna in it, or name your own.")
    known = job.accelerator.generation == "cpu" or job.accelerator.name in SKYPILOT_NAMES
    if target == "skypilot" and not known:
        name = skypilot_name(job.accelerator)
        found.append(f"SkyPilot's name for {job.accelerator.name} is not known; job.yaml says {name}.")
    if target in ("torchrun", "skypilot") and job.wall_seconds:
        found.append(f"{target} has no wall time, so {format_seconds(job.wall_seconds)} is not enforced.")
    return found


def _own_image() -> str:
    return f"puna:{__version__}"


# -- files -----------------------------------------------------------------------------------------------------------


def _corpus_directory(corpus: str) -> str:
    """Where `puna train` looks for the corpus that a data recipe makes (train.run.directory, `resolve_corpus`)."""
    return f"corpora/{PurePosixPath(corpus).stem}" if corpus.endswith(".toml") else corpus


def _recipe_text(recipe: Mapping[str, Any], job: Launch) -> str:
    tree = {"name": job.name, **recipe}
    tree["name"] = job.name
    if tree.get("corpus"):
        tree["corpus"] = _corpus_directory(str(tree["corpus"]))
    values = job.layout.recipe_values()
    tree["layout"] = values["layout"]
    tree["train"] = {key: value for key, value in tree["train"].items() if key != "checkpointing"} | values["train"]
    if job.checkpoint_every:
        tree["checkpoint"] = tree["checkpoint"] | {"every": job.checkpoint_every}
    tree = {key: value for key, value in tree.items() if value != {}}
    return comment(job.header()) + "\n" + tomli_w.dumps(tree)


def _write(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write `texts` into `folder`, which may exist. Raises PunaError when one of its files differs."""
    if not folder.exists():
        with new_directory(folder) as temporary:
            for name, text in texts.items():
                write_text(temporary / name, text)
    elif not folder.is_dir():
        raise PunaError(f"{folder} is a file, not a folder.", "Choose another -o.")
    else:
        for name, text in texts.items():
            path = folder / name
            if path.exists() and (not path.is_file() or path.read_bytes() != text.encode()):
                raise PunaError(f"{path} already exists with different content.", "Choose another -o or remove it.")
        for name, text in texts.items():
            write_text(folder / name, text)
    return [folder / name for name in texts]
