"""Build a corpus with many processes or machines, through datatrove's executors (extra `cluster`).

Four stages, each a datatrove pipeline whose parts run as local processes or as Slurm jobs that depend on each other:

    clean    each part reads its share of the source files, applies our filters and decontamination, and writes the rest
             as jsonl.zst with MinHash signatures
    buckets  one part for each band: finds documents with an equal band
    cluster  one part: joins pairs to clusters and marks all but one document of each
    corpus   one part: `build_corpus` over the unmarked documents, which does the rest (exact duplicates, held-out
             split, tokenizer, shards)

datatrove provides the executors and the MinHash stages, which sort and merge on disk and so are not limited by memory.
Its readers and writers would need orjson, and its filters and its MinHash split words with spaCy. So documents are read
by our readers and written as plain jsonl.zst, our filters are a pipeline step, and its MinHash gets our word splitting
and SHA-1 as parameters. Finished stages are skipped: the same command resumes a build that stopped.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from puna.core.console import say
from puna.core.errors import PunaError
from puna.core.files import read_json, write_json
from puna.data.build import EarlierStages, build_corpus
from puna.data.cleaning.decontaminate import Evaluations
from puna.data.cleaning.filters import make_filter
from puna.data.document import Document, Drops
from puna.data.reading.readers import read_file
from puna.data.reading.sources import list_inputs, read_documents
from puna.data.recipe import DataRecipe, DecontaminateConfig, FilterConfig

try:
    from datatrove.data import Document as DatatroveDocument
    from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WordTokenizer
except ImportError:
    raise PunaError("Building with --executor needs the package datatrove.", "pip install 'puna[cluster]'.") from None


def build_on_cluster(
    recipe: DataRecipe,
    out: Path,
    *,
    executor: str,
    tasks: int,
    workers: int,
    partition: str = "",
    time: str = "24:00:00",
    replace: bool = False,
) -> dict[str, Any] | None:
    """Run the stages and return the corpus' manifest; with Slurm submit them as jobs and return None.

    tasks: number of parts to read the sources in; workers: parts at the same time. The folder `out`.work next to `out`
    holds the stages' results, and must be on a disk that all machines share. Raises PunaError as `build_corpus` does.
    """
    out = Path(out).absolute()
    if out.exists() and not replace:
        raise PunaError(f"{out} exists already.", "Choose another name or remove it first.")
    if tasks < 1 or workers < 1:
        raise PunaError(f"--tasks {tasks} --workers {workers}: both must be at least 1.", "Give larger numbers.")
    if executor == "slurm" and not partition:
        raise PunaError("Slurm needs a partition.", "Give --partition NAME.")
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise PunaError("There is no `sbatch` on this machine.", "Run this on a Slurm login node, or --executor local.")
    for source in recipe.sources:  # report a wrong path now, not from a job tomorrow
        list_inputs(source, recipe.root)
        if source.limit:
            raise PunaError(f"Source '{source.name}' has a limit, which parts cannot enforce.", "Remove `limit`.")
    Evaluations(recipe.decontaminate)
    work = out.with_name(f"{out.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    _same_build(work / "recipe.json", recipe, tasks)

    tree = recipe.model_dump(mode="json")
    config = MinhashConfig(
        n_grams=recipe.dedup.ngram,
        num_buckets=recipe.dedup.bands,
        hashes_per_bucket=recipe.dedup.rows,
        seed=recipe.seed + 1,
        hash_config=HashConfig(precision=64, hash_fc="sha1"),
    )
    clean: list[Any] = [CleanDocuments(tree, str(work))]
    pipelines = [("clean", clean, tasks)]
    if recipe.dedup.minhash:
        clean.append(MinhashDedupSignature(str(work / "signatures"), config=config, language=SpacedWords()))
        buckets = MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)
        cluster = MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config)
        pipelines += [("buckets", [buckets], recipe.dedup.bands), ("cluster", [cluster], 1)]
    pipelines.append(("corpus", [BuildCorpus(tree, str(work), str(out), replace)], 1))

    previous = None
    for name, pipeline, count in pipelines:
        logs = str(work / "logs" / name)
        if executor == "slurm":
            previous = SlurmPipelineExecutor(
                pipeline, tasks=count, time=time, partition=partition, job_name=f"puna-{name}", depends=previous,
                logging_dir=logs, qos="", env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
            )  # fmt: skip
        else:
            previous = LocalPipelineExecutor(
                pipeline, tasks=count, workers=min(workers, count), depends=previous, logging_dir=logs
            )
    assert previous is not None
    previous.run()
    if executor == "slurm":
        return None
    shutil.rmtree(work)
    return dict(read_json(out / "manifest.json"))


class SpacedWords(WordTokenizer):
    """Words for datatrove's MinHash, which has normalised the text: split at spaces."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words of `text`."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """Sentences are not needed for MinHash; a line counts as one."""
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each line."""
        ends, at = [], 0
        for line in text.splitlines(keepends=True):
            ends.append((at, at + len(line)))
            at += len(line)
        return ends


class CleanDocuments(PipelineStep):
    """Reads this part's share of the files, filters, writes work/clean/PART/SOURCE.jsonl.zst, yields documents."""

    name, type = "puna clean", "FILTER"

    def __init__(self, recipe: dict[str, Any], work: str) -> None:
        super().__init__()
        self.recipe, self.work = recipe, work

    def run(
        self, data: Iterable[DatatroveDocument] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[DatatroveDocument]:
        """Yield the documents that are kept, in the order they are written."""
        recipe = DataRecipe.model_validate(self.recipe)
        reason_to_drop, evaluations = make_filter(recipe.filters), Evaluations(recipe.decontaminate)
        drops, read = Drops(), {source.name: [0, 0] for source in recipe.sources}
        folder = Path(self.work, "clean", f"{rank:05d}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for source in recipe.sources:
            inputs = list_inputs(source, recipe.root)[rank::world_size]
            with JsonlZst(folder / f"{source.name}.jsonl.zst") as writer:
                for _, document in read_documents(source, inputs, recipe.filters.invalid_utf8, drops):
                    if document is None:
                        continue
                    size = len(document.text.encode("utf-8"))
                    read[source.name][0] += 1
                    read[source.name][1] += size
                    reason = reason_to_drop(document)
                    if not reason and (found := evaluations.match(document.text)):
                        reason = f"contaminated.{found}"
                    if reason:
                        drops.add(source.name, reason, size)
                        continue
                    writer.write(document)
                    yield DatatroveDocument(text=document.text, id=document.name)
        write_json(folder / "counts.json", {"read": read, "drops": drops.counts})


class BuildCorpus(PipelineStep):
    """The last stage: `build_corpus` over the clean documents that are not marked as near duplicates."""

    name, type = "puna corpus", "WRITER"

    def __init__(self, recipe: dict[str, Any], work: str, out: str, replace: bool) -> None:
        super().__init__()
        self.recipe, self.work, self.out, self.replace = recipe, work, out, replace

    def run(self, data: Iterable[DatatroveDocument] | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Build the corpus."""
        recipe, work = DataRecipe.model_validate(self.recipe), Path(self.work)
        drops, read = Drops(), {source.name: [0, 0] for source in recipe.sources}
        kept = work / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        for part in sorted((work / "clean").iterdir()):
            counts = read_json(part / "counts.json")
            drops.merge(counts["drops"])
            for name, (documents, size) in counts["read"].items():
                read[name][0] += documents
                read[name][1] += size
            _copy_unmarked(part, kept, work / "remove" / f"{int(part.name):06d}.remove", recipe, drops)
        sources = [
            source.model_copy(
                update={"kind": "files", "path": source.name, "glob": ["*.jsonl.zst"], "exclude": [], "where": {}}
                | {"text_field": "text", "licence_field": "licence", "name_field": "name", "limit": 0, "separator": ""}
            )
            for source in recipe.sources
        ]
        done = {
            "root": str(kept),
            "sources": sources,
            "filters": FilterConfig(min_bytes=0),
            "decontaminate": DecontaminateConfig(),
            "dedup": recipe.dedup.model_copy(update={"minhash": False}),
        }
        inputs = {source.name: list_inputs(source, recipe.root) for source in recipe.sources}
        earlier = EarlierStages(recipe, inputs, read, drops)
        build_corpus(recipe.model_copy(update=done), Path(self.out), replace=self.replace, earlier=earlier)


class JsonlZst:
    """Writes documents as zstd-compressed JSON lines."""

    def __init__(self, path: Path) -> None:
        import zstandard

        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = zstandard.open(path, "wb")

    def write(self, document: Document) -> None:
        """Append one document."""
        record = {"text": document.text, "name": document.name, "licence": document.licence}
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")

    def __enter__(self) -> "JsonlZst":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _copy_unmarked(part: Path, kept: Path, marks: Path, recipe: DataRecipe, drops: Drops) -> None:
    """Copy a part's documents to kept/SOURCE/, except those (uint32 numbers, in order) the cluster stage marked."""
    import numpy as np

    marked = set(np.fromfile(marks, dtype="<u4").tolist()) if marks.is_file() else set()
    number = 0
    for source in recipe.sources:
        path = part / f"{source.name}.jsonl.zst"
        plain = source.model_copy(
            update={"name_field": "name", "licence_field": "licence", "where": {}, "text_field": "text"}
        )
        with JsonlZst(kept / source.name / f"{part.name}.jsonl.zst") as writer:
            for document in read_file(path, path.name, plain, "replace", drops):
                if number in marked:
                    drops.add(source.name, "near_duplicate", len(document.text.encode("utf-8")))
                else:
                    writer.write(document)
                number += 1


def _same_build(path: Path, recipe: DataRecipe, tasks: int) -> None:
    """Record the build in the work folder, so that another recipe does not resume from its stages."""
    wanted = {"tasks": tasks, "recipe": recipe.model_dump(mode="json")}
    if path.is_file():
        if read_json(path) != wanted:
            raise PunaError(
                f"{path.parent} holds the stages of a build with a different recipe or number of tasks.",
                "Remove that folder, or run the same command as before.",
            )
        say(f"Resuming from the stages in {path.parent}.")
    write_json(path, wanted)
