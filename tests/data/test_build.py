"""Building a corpus: what goes in comes out once, in the right split, counted; bad input leaves nothing behind."""

import errno
import json
import lzma
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.core.errors import PunaError
from puna.core.recipe import check, load
from puna.data import build
from puna.data.build import build_corpus
from puna.data.corpus import Corpus
from puna.data.document import Document
from puna.data.recipe import DataRecipe
from puna.data.shards import token_dtype

Make = Callable[..., DataRecipe]


def prose(seed: int, count: int = 120) -> str:
    dice = random.Random(seed)
    return " ".join("".join(dice.choices("abcdefghij", k=dice.randint(2, 8))) for _ in range(count))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "stories.jsonl", [{"text": prose(i), "title": f"t{i}"} for i in range(40)])


def texts_of(corpus: Corpus, split: str) -> dict[str, str]:
    return {
        name: corpus.tokenizer.decode(ids.tolist(), skip_special=True) for name, _, _, ids in corpus.documents(split)
    }


def test_every_document_comes_out_once_in_one_split(stories: Path, tmp_path: Path, recipe: Make) -> None:
    made = recipe(
        [{"name": "s", "path": str(stories), "name_field": "title"}], heldout={"share": 0.25}, shard_tokens=3000
    )
    build_corpus(made, tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c", verify=True)
    train, heldout = texts_of(corpus, "train"), texts_of(corpus, "heldout")
    assert not train.keys() & heldout.keys()
    assert 2 <= len(heldout) <= 20
    assert {**train, **heldout} == {f"t{i}": prose(i) for i in range(40)}
    assert list(train) != sorted(train, key=lambda name: int(name[1:]))  # shuffled
    assert len(corpus.shards()) > 1
    assert corpus.num_bytes() == sum(len(text) for text in train.values())


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_another_order(
    stories: Path, tmp_path: Path, recipe: Make
) -> None:
    source = [{"name": "s", "path": str(stories)}]
    first = build_corpus(recipe(source, heldout={"share": 0.2}), tmp_path / "a")
    again = build_corpus(recipe(source, heldout={"share": 0.2}), tmp_path / "b")
    assert first == again
    other = build_corpus(recipe(source, heldout={"share": 0.2}, seed=1), tmp_path / "d")
    assert other["content_hash"] != first["content_hash"]
    # The held-out choice does not depend on the seed.
    assert (
        texts_of(Corpus.open(tmp_path / "a"), "heldout").keys()
        == texts_of(Corpus.open(tmp_path / "d"), "heldout").keys()
    )


def test_duplicates_never_cross_the_heldout_border(tmp_path: Path, recipe: Make) -> None:
    def changed(text: str, mark: str) -> str:
        words = text.split()
        words[60] = mark
        return " ".join(words)

    rows = [{"text": prose(i), "title": f"a{i}"} for i in range(30)]
    rows += [{"text": changed(prose(i), "new"), "title": f"b{i}"} for i in range(30)]
    rows += [{"text": prose(i), "title": f"c{i}"} for i in range(5)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    made = recipe([{"name": "s", "path": str(path), "name_field": "title"}], heldout={"share": 0.3})
    manifest = build_corpus(made, tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    train, heldout = texts_of(corpus, "train"), texts_of(corpus, "heldout")
    numbers = [name[1:] for name in (*train, *heldout)]
    assert sorted(numbers) == sorted(str(i) for i in range(30))
    drops = {reason: count["documents"] for reason, count in manifest["drops"]["s"].items()}
    assert drops["exact_duplicate"] == 5
    assert drops["near_duplicate_of_training"] > 0
    assert drops["near_duplicate"] + drops["near_duplicate_of_training"] == 30
    # Where one of a pair is trained on, that one stayed.
    source = made.sources[0]
    for name in heldout:
        for twin in "ab":
            document = Document("", f"{twin}{name[1:]}", "s", "")
            assert build.is_heldout(document, source, made.heldout)


def test_a_heldout_source_gives_way_to_training(stories: Path, tmp_path: Path, recipe: Make) -> None:
    val = write_rows(tmp_path / "val.jsonl", [{"text": prose(i)} for i in (5, 500)])
    sources = [{"name": "val", "path": str(val), "heldout": True}, {"name": "s", "path": str(stories)}]
    manifest = build_corpus(recipe(sources), tmp_path / "c")
    assert manifest["splits"]["train"]["documents"] == 40
    assert list(texts_of(Corpus.open(tmp_path / "c"), "heldout").values()) == [prose(500)]
    assert manifest["drops"]["val"] == {"exact_duplicate": {"documents": 1, "bytes": len(prose(5))}}


def test_every_drop_is_counted_by_source_and_reason(tmp_path: Path, recipe: Make, stories: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text(prose(100))
    (tmp_path / "notes" / "b.md").write_bytes(b"\xff\xfe not utf-8")
    (tmp_path / "notes" / "c.md").write_bytes(b"\x00\x01\x02")
    (tmp_path / "notes" / "d.md").write_text("too short")
    (tmp_path / "exam.txt").write_text(prose(7)[:200] + "\n")
    manifest = build_corpus(
        recipe(
            [{"name": "notes", "path": str(tmp_path / "notes")}, {"name": "stories", "path": str(stories)}],
            filters={"min_bytes": 20},
            decontaminate={"paths": [str(tmp_path / "exam.txt")]},
        ),
        tmp_path / "c",
    )
    counted = {s: {r: c["documents"] for r, c in reasons.items()} for s, reasons in manifest["drops"].items()}
    folder = tmp_path.name
    assert counted == {
        "notes": {"binary": 1, "invalid_utf8": 1, "short": 1},
        "stories": {f"contaminated.{folder}/exam": 1},
    }
    assert prose(7) not in texts_of(Corpus.open(tmp_path / "c"), "train").values()


def test_epochs_and_weights_shape_the_stream(tmp_path: Path, recipe: Make) -> None:
    for name, count in (("a", 10), ("b", 30)):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": prose(i + 1000 * count)} for i in range(count)])
    places = [{"name": name, "path": str(tmp_path / f"{name}.jsonl")} for name in "ab"]
    manifest = build_corpus(recipe([places[0] | {"epochs": 2.5}, places[1]]), tmp_path / "epochs")
    a, b = manifest["sources"]
    # The half pass ends with a document: at most one document of ten more than half.
    assert 2.5 <= a["stream_tokens"] / a["train"]["tokens"] < 2.65
    assert b["stream_tokens"] == b["train"]["tokens"]
    assert Corpus.open(tmp_path / "epochs").stream_tokens == a["stream_tokens"] + b["stream_tokens"]
    manifest = build_corpus(recipe([places[0] | {"weight": 3}, places[1] | {"weight": 1}]), tmp_path / "weights")
    a, b = manifest["sources"]
    assert a["stream_tokens"] / (a["stream_tokens"] + b["stream_tokens"]) == pytest.approx(0.75, abs=0.03)


def test_a_given_tokenizer_is_used(stdlib_corpus: Path, stories: Path, tmp_path: Path, recipe: Make) -> None:
    tokenizer = {"path": str(stdlib_corpus / "tokenizer")}
    build_corpus(recipe([{"name": "s", "path": str(stories)}], tokenizer=tokenizer), tmp_path / "c")
    assert Corpus.open(tmp_path / "c").tokenizer_hash == Corpus.open(stdlib_corpus).tokenizer_hash


def test_the_gpt2_tokenizer_without_llama_specials(
    test_data: Path, stories: Path, tmp_path: Path, recipe: Make
) -> None:
    packed = test_data / "tokenizer" / "gpt2" / "gpt2.tiktoken.xz"
    (tmp_path / "gpt2.tiktoken").write_bytes(lzma.decompress(packed.read_bytes()))
    tokenizer = {"path": str(tmp_path / "gpt2.tiktoken")}
    manifest = build_corpus(recipe([{"name": "s", "path": str(stories)}], tokenizer=tokenizer), tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    assert (corpus.vocab_size, manifest["dtype"]) == (50257, "<u2")
    assert sorted(texts_of(corpus, "train").values()) == sorted(prose(i) for i in range(40))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, "<u2"), (65536, "<u2"), (65537, "<u4"), (128256, "<u4")])
def test_ids_fit_their_type(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == dtype
    assert np.array([vocab_size - 1]).astype(dtype)[0] == vocab_size - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filters": {"min_bytes": 10**6}}, r"no document is left of 40 \(short 40\)"),
        ({"filters": {"min_byts": 1}}, r"unknown key 'filters\.min_byts'\. Did you mean 'min_bytes'"),
        ({"dedup": {"treshold": 1}}, r"unknown key 'dedup\.treshold'\. Did you mean 'threshold'"),
        ({"heldout": {"share": 1.5}}, r"heldout\.share = 1\.5"),
        ({"tokenizer": {}}, "needs vocab_size"),
        ({"tokenizer": {"path": "/nowhere/tokenizer"}}, "/nowhere/tokenizer"),
        ({"decontaminate": {"paths": ["/nowhere/set.jsonl"]}}, "does not exist"),
        ({"stream_tokens": "1M"}, "stream_tokens needs sources with weights"),
    ],
)
def test_bad_recipes(stories: Path, tmp_path: Path, recipe: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(PunaError, match=message):
        build_corpus(recipe([{"name": "s", "path": str(stories)}], **change), tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stories.jsonl"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"name": "s", "path": "/nowhere"}], "/nowhere does not exist"),
        ([{"name": "s"}], "has no path"),
        ([{"name": "s", "kind": "hub"}], "has no id"),
        ([{"name": "s", "pth": "x"}], r"unknown key 'sources\.0\.pth'\. Did you mean 'path'"),
        ([{"name": "s", "path": "x"}, {"name": "s", "path": "y"}], "two sources are named 's'"),
        ([{"name": "s", "path": "x", "heldout": True}], "every source is held out"),
        ([{"name": "s", "path": "x", "weight": 1}, {"name": "t", "path": "y"}], "source 't' has no weight"),
        ([], "sources"),
    ],
)
def test_bad_sources(tmp_path: Path, recipe: Make, sources: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(PunaError, match=message):
        build_corpus(recipe(sources), tmp_path / "c")
    assert not any(tmp_path.iterdir())


def test_a_source_with_only_a_binary_file_is_refused(tmp_path: Path, recipe: Make) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(256)))
    with pytest.raises(PunaError, match=r"no document is left of 0 \(binary 1\)"):
        build_corpus(recipe([{"name": "s", "path": str(tmp_path / "a.txt")}]), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_an_existing_output_is_kept_unless_replaced(stories: Path, tmp_path: Path, recipe: Make) -> None:
    made = recipe([{"name": "s", "path": str(stories)}])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "precious").write_text("x")
    with pytest.raises(PunaError, match="exists already"):
        build_corpus(made, tmp_path / "c")
    assert (tmp_path / "c" / "precious").read_text() == "x"
    build_corpus(made, tmp_path / "c", replace=True)
    assert Corpus.open(tmp_path / "c").num_documents() == 40


def test_no_space_is_said_before_the_work(
    stories: Path, tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(PunaError, match=r"Building c needs .* but the disk"):
        build_corpus(recipe([{"name": "s", "path": str(stories)}]), tmp_path / "c")


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("where", ["read_documents", "_write"])
def test_an_interrupted_build_leaves_nothing(
    stories: Path, tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch, failure: BaseException, where: str
) -> None:
    real = build.read_documents

    def broken(*arguments: Any) -> Iterator[Any]:
        if where == "read_documents":
            yield from list(real(*arguments))[:5]
        raise failure

    monkeypatch.setattr(build, where, broken if where == "read_documents" else lambda *_: next(broken()))
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else PunaError
    with pytest.raises(expected):
        build_corpus(recipe([{"name": "s", "path": str(stories)}]), tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["stories.jsonl"]


@pytest.mark.parametrize("name", ["stdlib", "code-and-text", "parquet"])
def test_the_recipes_that_come_with_puna_are_valid(name: str) -> None:
    path = Path(__file__).parents[2] / "recipes" / "data" / f"{name}.toml"
    assert load(DataRecipe, path).value.name == name


def test_the_parquet_recipe_on_a_part_of_the_real_corpora(test_data: Path, tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "recipes" / "data" / "parquet.toml"
    tree = load(DataRecipe, path, [f"root={test_data / 'corpus'}"]).value.model_dump(mode="json")
    tree["tokenizer"]["vocab_size"] = 500
    for source in tree["sources"]:
        source["limit"] = 12
    manifest = build_corpus(check(DataRecipe, tree, "parquet.toml"), tmp_path / "c")
    assert all(s["train"]["documents"] + s["heldout"]["documents"] for s in manifest["sources"])
    assert manifest["splits"]["heldout"]["documents"] == manifest["sources"][-1]["heldout"]["documents"] > 0
    assert any(licence.startswith("CC-BY-4.0 (OpenStax") for licence in manifest["splits"]["train"]["licences"])
