"""The recipe of a corpus: where documents come from, what is dropped, how the rest is cut and mixed.

`puna data build RECIPE` reads this schema through `core.recipe`; the resolved recipe goes into the corpus' manifest.
"""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from puna.core.errors import nearest
from puna.core.recipe import Config
from puna.core.units import parse_count

Scalar = str | int | float | bool


class SourceConfig(Config):
    """One place documents come from. Its name appears in the manifest, its licence beside every document."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="names the source; letters, digits, . _ -")
    kind: Literal["files", "python-stdlib", "hub"] = Field(
        "files",
        description="files: files, folders and globs; python-stdlib: the running Python's standard library without "
        "its tests; hub: a dataset of the Hugging Face Hub by its id (extra 'hub')",
    )
    path: str = Field("", description="files: a file or folder, relative to the recipe's `root`")
    id: str = Field("", description="hub: dataset id such as 'roneneldan/TinyStories'")
    revision: str = Field("main", description="hub: branch, tag or commit; the commit found is kept in the manifest")
    glob: list[str] = Field(default_factory=list, description="patterns inside the folder; empty: all known kinds")
    exclude: list[str] = Field(default_factory=list, description="patterns of files and folders that are left out")
    licence: str = Field("unknown", description="licence of every document without one of its own")
    content: Literal["auto", "text", "code"] = Field(
        "auto", description="which filters apply; auto: code by file ending, records are text"
    )
    text_field: str = Field("text", description="records (jsonl, parquet): field that holds the text")
    licence_field: str = Field("", description="records: field that holds the licence; empty: `licence`")
    name_field: str = Field(
        "",
        description="records: field that names the document (pieces of one book share it, so they fall on one side of "
        "the held-out border); empty: file and row",
    )
    where: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="records: keep those whose field has this value, or one of these values"
    )
    separator: str = Field("", description="plain files: text between documents, such as '<|endoftext|>'")
    limit: int = Field(0, ge=0, description="at most this many documents; 0: all")
    epochs: float = Field(1.0, gt=0, description="how often the training stream passes over this source")
    weight: float = Field(0.0, ge=0, description="share of the training stream instead of `epochs` (all or none)")
    heldout: bool = Field(False, description="all of this source is held out of training")

    @field_validator("limit", mode="before")
    @classmethod
    def _count(cls, value: object) -> object:
        return parse_count(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _place(self) -> "SourceConfig":
        wanted = {"files": self.path, "hub": self.id, "python-stdlib": "-"}[self.kind]
        if not wanted:
            field = "id" if self.kind == "hub" else "path"
            raise ValueError(f"source '{self.name}' of kind '{self.kind}' has no {field}. Set {field}")
        return self


class FilterConfig(Config):
    """Which documents are dropped for what they look like. docs/data.md lists every rule with its threshold."""

    min_bytes: int = Field(1, ge=0, description="shortest document, in UTF-8 bytes without surrounding space")
    max_bytes: int = Field(0, ge=0, description="longest document in bytes; 0: no limit")
    gopher: bool = Field(False, description="text: quality rules of Gopher (arXiv 2112.11446, table A1)")
    gopher_repetition: bool = Field(False, description="text: repetition rules of Gopher")
    c4: bool = Field(False, description="text: page rules of C4 (arXiv 1910.10683)")
    fineweb: bool = Field(False, description="text: line rules of FineWeb (arXiv 2406.17557)")
    code: bool = Field(False, description="code: line length, alphanumeric share, generated files (arXiv 2107.03374)")
    languages: list[str] = Field(default_factory=list, description="text: keep these languages (en, de, zh, ...)")
    ignore: list[str] = Field(default_factory=list, description="reasons that do not drop, e.g. 'gopher.stop_words'")
    invalid_utf8: Literal["drop", "replace"] = Field(
        "drop", description="a file that is not UTF-8: drop it, or put U+FFFD where a byte does not fit"
    )

    @model_validator(mode="after")
    def _known(self) -> "FilterConfig":
        from puna.data.filters import REASONS
        from puna.data.language import LANGUAGES

        for given, known, key in ((self.ignore, REASONS, "ignore"), (self.languages, LANGUAGES, "languages")):
            for name in given:
                if name not in known:
                    raise ValueError(f"filters.{key}: unknown '{name}'. {nearest(name, known)}")
        return self


class DedupConfig(Config):
    """Removal of documents that are there already."""

    exact: bool = Field(True, description="drop documents whose text is the same up to surrounding space")
    minhash: bool = Field(True, description="drop near-duplicates found by MinHash and banding")
    threshold: float = Field(0.75, gt=0, le=1, description="estimated Jaccard similarity from which two are the same")
    bands: int = Field(20, gt=0, description="bands of the signature; one equal band makes two documents candidates")
    rows: int = Field(6, gt=0, description="hashes in a band; bands * rows permutations in all")
    ngram: int = Field(5, gt=0, description="words in a shingle")


class DecontaminateConfig(Config):
    """Removal of training documents that share a run of words with an evaluation set."""

    paths: list[str] = Field(
        default_factory=list,
        description="evaluation sets: files, folders or globs (json, jsonl, csv, tsv, txt)",
    )
    fields: list[str] = Field(default_factory=list, description="fields that count; empty: every string in the set")
    ngram: int = Field(13, gt=0, description="words in a row that must agree (GPT-3, arXiv 2005.14165, appendix C)")
    min_words: int = Field(8, gt=0, description="shorter items than this are not looked for; between: as a whole")


class HeldoutConfig(Config):
    """Documents kept out of training, chosen by hash, so that the choice survives a rebuild."""

    share: float = Field(0.0, ge=0, lt=1, description="share of the documents")
    by: Literal["name", "text"] = Field("name", description="hash of the document's name, or of its text")


class TokenizerConfig(Config):
    """The tokenizer of the corpus: trained on it, or taken from a folder."""

    vocab_size: int = Field(0, ge=0, description="train one with this many tokens, specials included")
    path: str = Field("", description="folder or file with tokenizer.json or tokenizer.model, instead of training")
    sample_bytes: int = Field(100_000_000, gt=0, description="bytes of training text the tokenizer is trained on")

    @model_validator(mode="after")
    def _one(self) -> "TokenizerConfig":
        if bool(self.vocab_size) == bool(self.path):
            raise ValueError("[tokenizer] needs vocab_size (to train one) or path (to take one), not both. Set one")
        return self


class DataRecipe(Config):
    """A corpus."""

    name: str = Field("corpus", min_length=1, description="names the corpus in its manifest")
    root: str = Field("", description="folder that relative paths of sources start from; empty: the current folder")
    seed: int = Field(0, ge=0, description="order of the documents and hash functions")
    stream_tokens: int = Field(0, ge=0, description="with weights: length of the training stream; 0: all tokens once")
    shard_tokens: int = Field(1_000_000_000, gt=0, description="a token file is closed once it has this many tokens")
    sources: list[SourceConfig] = Field(min_length=1, description="where documents come from")
    filters: FilterConfig = Field(default_factory=FilterConfig, description="what is dropped for its looks")
    dedup: DedupConfig = Field(default_factory=DedupConfig, description="what is dropped because it is there already")
    decontaminate: DecontaminateConfig = Field(
        default_factory=DecontaminateConfig, description="what is dropped because it is in an evaluation set"
    )
    heldout: HeldoutConfig = Field(default_factory=HeldoutConfig, description="what is kept out of training")
    tokenizer: TokenizerConfig = Field(description="how text becomes tokens")

    @field_validator("stream_tokens", "shard_tokens", mode="before")
    @classmethod
    def _count(cls, value: object) -> object:
        return parse_count(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> "DataRecipe":
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named '{name}'. Give each its own name")
        training = [source for source in self.sources if not source.heldout]
        if not training:
            raise ValueError("every source is held out, nothing is left to train on. Set heldout = false on one")
        weighted = [source.name for source in training if source.weight]
        if weighted and len(weighted) < len(training):
            missing = next(source.name for source in training if not source.weight)
            raise ValueError(f"source '{missing}' has no weight but '{weighted[0]}' has. Give all a weight, or none")
        if self.stream_tokens and not weighted:
            raise ValueError("stream_tokens needs weights on the sources. Add weights, or use epochs without it")
        return self
