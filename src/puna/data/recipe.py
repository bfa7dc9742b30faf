"""The recipe of a corpus: its sources, what is dropped, and how the rest is tokenised and mixed.

`puna data build RECIPE` reads this schema through `core.recipe`; the manifest contains the resolved recipe.
"""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from puna.core.errors import nearest
from puna.core.recipe import Config
from puna.core.units import parse_count
from puna.data.cleaning.language import LANGUAGES

Scalar = str | int | float | bool
REASONS = (
    "short", "long", "language",
    "gopher.words", "gopher.word_length", "gopher.hashes", "gopher.ellipses", "gopher.bullets",
    "gopher.ellipsis_lines", "gopher.alphabetic", "gopher.stop_words",
    "repetition.lines", "repetition.line_characters", "repetition.paragraphs", "repetition.paragraph_characters",
    *(f"repetition.top_{n}_gram" for n in (2, 3, 4)), *(f"repetition.{n}_grams" for n in range(5, 11)),
    "c4.lorem_ipsum", "c4.curly_bracket", "c4.sentences",
    "fineweb.punctuation", "fineweb.repeated_lines", "fineweb.short_lines",
    "code.generated", "code.line_length", "code.mean_line_length", "code.alphanumeric",
)  # fmt: skip
"""Every reason for which a filter drops a document."""


class SourceConfig(Config):
    """One source of documents. Its name is in the manifest, its licence is stored with each document."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="name of the source; letters, digits, . _ -")
    kind: Literal["files", "python-stdlib", "hub"] = Field(
        "files",
        description="files: files, folders and globs; python-stdlib: the running Python's standard library without "
        "its tests; hub: a dataset of the Hugging Face Hub by its id (extra 'hub')",
    )
    path: str = Field("", description="files: a file or folder, relative to the recipe's `root`")
    id: str = Field("", description="hub: dataset id such as 'roneneldan/TinyStories'")
    revision: str = Field("main", description="hub: branch, tag or commit; the manifest records the commit")
    glob: list[str] = Field(default_factory=list, description="patterns within the folder; empty: all known file types")
    exclude: list[str] = Field(default_factory=list, description="patterns of files and folders to skip")
    licence: str = Field("unknown", description="licence of documents that do not state their own")
    content: Literal["auto", "text", "code"] = Field(
        "auto", description="which filters apply; auto: code by file suffix, records are text"
    )
    text_field: str = Field("text", description="records (jsonl, parquet): field with the text")
    licence_field: str = Field("", description="records: field with the licence; empty: `licence`")
    name_field: str = Field(
        "",
        description="records: field with the document's name (parts of one book share it, so that all or none are held "
        "out); empty: file and row",
    )
    where: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="records: keep those whose field has this value, or one of these"
    )
    separator: str = Field("", description="plain files: separator of documents, such as '<|endoftext|>'")
    limit: int = Field(0, ge=0, description="maximum number of documents; 0: all")
    epochs: float = Field(1.0, gt=0, description="how often the training stream repeats this source")
    weight: float = Field(0.0, ge=0, description="share of the training stream, instead of epochs (all or none)")
    heldout: bool = Field(False, description="hold all of this source out of training")

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
    """Filters on single documents. docs/data.md lists every rule with its threshold."""

    min_bytes: int = Field(1, ge=0, description="minimum size of a document, in UTF-8 bytes without surrounding space")
    max_bytes: int = Field(0, ge=0, description="maximum size of a document in bytes; 0: no limit")
    gopher: bool = Field(False, description="text: quality rules of Gopher (arXiv 2112.11446, table A1)")
    gopher_repetition: bool = Field(False, description="text: repetition rules of Gopher")
    c4: bool = Field(False, description="text: page rules of C4 (arXiv 1910.10683)")
    fineweb: bool = Field(False, description="text: line rules of FineWeb (arXiv 2406.17557)")
    code: bool = Field(False, description="code: line length, alphanumeric share, generated files (arXiv 2107.03374)")
    languages: list[str] = Field(default_factory=list, description="text: keep these languages (en, de, zh, ...)")
    ignore: list[str] = Field(default_factory=list, description="reasons to ignore, e.g. 'gopher.stop_words'")
    invalid_utf8: Literal["drop", "replace"] = Field(
        "drop", description="a document that is not UTF-8: drop it, or replace invalid bytes by U+FFFD"
    )

    @model_validator(mode="after")
    def _known(self) -> "FilterConfig":
        for given, known, key in ((self.ignore, REASONS, "ignore"), (self.languages, LANGUAGES, "languages")):
            for name in given:
                if name not in known:
                    raise ValueError(f"filters.{key}: unknown '{name}'. {nearest(name, known)}")
        return self


class DedupConfig(Config):
    """Removal of duplicate documents."""

    exact: bool = Field(True, description="drop documents whose text is equal up to surrounding space")
    minhash: bool = Field(True, description="drop near-duplicates found by MinHash and banding")
    threshold: float = Field(0.75, gt=0, le=1, description="estimated Jaccard similarity of duplicates")
    bands: int = Field(20, gt=0, description="bands of the signature; an equal band makes a candidate")
    rows: int = Field(6, gt=0, description="hashes per band; bands * rows permutations in all")
    ngram: int = Field(5, gt=0, description="words per shingle")


class DecontaminateConfig(Config):
    """Removal of training documents that share a run of words with an evaluation set."""

    paths: list[str] = Field(
        default_factory=list,
        description="evaluation sets: files, folders or globs (json, jsonl, csv, tsv, txt)",
    )
    fields: list[str] = Field(default_factory=list, description="fields to use; empty: every string in the set")
    ngram: int = Field(13, gt=0, description="consecutive words that must match (GPT-3, arXiv 2005.14165, appendix C)")
    min_words: int = Field(
        8, gt=0, description="ignore items with fewer words; items shorter than ngram must match in full"
    )


class HeldoutConfig(Config):
    """Documents held out of training, selected by hash, so that a rebuild selects the same."""

    share: float = Field(0.0, ge=0, lt=1, description="share of the documents")
    by: Literal["name", "text"] = Field("name", description="hash of the document's name, or of its text")


class TokenizerConfig(Config):
    """The tokenizer of the corpus: trained on it, or loaded."""

    vocab_size: int = Field(0, ge=0, description="train one with this many tokens, including special tokens")
    path: str = Field("", description="folder or file with tokenizer.json or tokenizer.model, instead of training")
    sample_bytes: int = Field(100_000_000, gt=0, description="bytes of training text the tokenizer is trained on")

    @model_validator(mode="after")
    def _one(self) -> "TokenizerConfig":
        if bool(self.vocab_size) == bool(self.path):
            raise ValueError("[tokenizer] needs vocab_size (to train one) or path (to load one), not both. Set one")
        return self


class DataRecipe(Config):
    """A corpus."""

    name: str = Field("corpus", min_length=1, description="name of the corpus in its manifest")
    root: str = Field("", description="base folder of relative source paths; empty: the current folder")
    seed: int = Field(0, ge=0, description="seed of the document order and the hash functions")
    stream_tokens: int = Field(0, ge=0, description="with weights: length of the training stream; 0: all tokens")
    shard_tokens: int = Field(1_000_000_000, gt=0, description="start a new shard after this many tokens")
    sources: list[SourceConfig] = Field(min_length=1, description="where documents come from")
    filters: FilterConfig = Field(default_factory=FilterConfig, description="filters on single documents")
    dedup: DedupConfig = Field(default_factory=DedupConfig, description="removal of duplicates")
    decontaminate: DecontaminateConfig = Field(
        default_factory=DecontaminateConfig, description="removal of text from evaluation sets"
    )
    heldout: HeldoutConfig = Field(default_factory=HeldoutConfig, description="documents held out of training")
    tokenizer: TokenizerConfig = Field(description="the tokenizer")

    @field_validator("stream_tokens", "shard_tokens", mode="before")
    @classmethod
    def _count(cls, value: object) -> object:
        return parse_count(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> "DataRecipe":
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named '{name}'. Give each a different name")
        training = [source for source in self.sources if not source.heldout]
        if not training:
            raise ValueError("every source is held out, so there is nothing to train on. Set heldout = false for one")
        weighted = [source.name for source in training if source.weight]
        if weighted and len(weighted) < len(training):
            missing = next(source.name for source in training if not source.weight)
            raise ValueError(f"source '{missing}' has no weight, but '{weighted[0]}' has. Give all a weight, or none")
        if self.stream_tokens and not weighted:
            raise ValueError("stream_tokens needs sources with weights. Add weights, or use epochs instead")
        return self
