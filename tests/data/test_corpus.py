"""Opening a corpus: damage is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from puna.core.errors import PunaError
from puna.data.corpus import Corpus
from puna.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture
def copy(stdlib_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stdlib_corpus, tmp_path / "corpus"))


def test_documents_are_begin_text_end(stdlib_corpus: Path) -> None:
    import sysconfig

    corpus = Corpus.open(stdlib_corpus, verify=True)
    library = Path(sysconfig.get_paths()["stdlib"])
    for split in ("train", "heldout"):
        found = list(corpus.documents(split))
        assert len(found) == corpus.num_documents(split) > 0
        assert sum(len(ids) for *_, ids in found) == corpus.num_tokens(split)
        for name, source, licence, ids in found:
            assert (source, licence) == ("stdlib", "PSF-2.0")
            assert ids[0] == corpus.tokenizer.bos_id
            assert ids[-1] == corpus.tokenizer.eos_ids[0]
            assert corpus.tokenizer.decode_bytes(ids[1:-1].tolist()) == (library / name).read_bytes()


def test_the_manifest_counts_what_is_there(stdlib_corpus: Path) -> None:
    corpus = Corpus.open(stdlib_corpus)
    manifest = corpus.manifest
    source = manifest["sources"][0]
    dropped = sum(count["documents"] for count in manifest["drops"]["stdlib"].values())
    assert source["documents_read"] == corpus.num_documents() + corpus.num_documents("heldout") + dropped
    assert corpus.stream_tokens == corpus.num_tokens()
    assert manifest["drops"]["stdlib"]["near_duplicate"]["documents"] > 0  # encodings/ has near-identical tables
    assert corpus.vocab_size == 600
    files = {path.relative_to(stdlib_corpus).parts[0] for path in stdlib_corpus.rglob("*")}
    assert files == {"manifest.json", "train", "heldout", "tokenizer"}


def test_a_truncated_shard_is_refused(copy: Path) -> None:
    file = next((copy / "train").glob("*.tokens"))
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(PunaError, match=r"\.tokens has [\d,]+ bytes, but"):
        Corpus.open(copy)


def test_a_flipped_bit_is_found_by_verify(copy: Path) -> None:
    file = next((copy / "train").glob("*.tokens"))
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    Corpus.open(copy)
    with pytest.raises(PunaError, match="hash differs"):
        Corpus.open(copy, verify=True)


def test_another_tokenizer_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    train_tokenizer(["another text entirely"], 300).save(copy / "tokenizer")
    with pytest.raises(PunaError, match="not the one that made its tokens"):
        Corpus.open(copy)
    # Even when someone has mended the file hashes by hand.
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["tokenizer"]["files"] = {}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PunaError, match="not the one that made its tokens"):
        _ = Corpus.open(copy).tokenizer


def test_what_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="does not exist"):
        Corpus.open(tmp_path / "nothing")
    with pytest.raises(PunaError, match=r"no manifest\.json"):
        Corpus.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(PunaError, match="not the manifest of a corpus"):
        Corpus.open(tmp_path)


def test_other_software_can_read_the_shards_as_documented(stdlib_corpus: Path) -> None:
    manifest = json.loads((stdlib_corpus / "manifest.json").read_text())
    shard = manifest["splits"]["train"]["shards"][0]
    tokens = np.fromfile(stdlib_corpus / f"{shard['file']}.tokens", dtype=manifest["dtype"])
    starts, names_at = np.fromfile(stdlib_corpus / f"{shard['file']}.index", dtype="<i8").reshape(2, -1)
    names = (stdlib_corpus / f"{shard['file']}.names").read_bytes()
    assert starts[-1] == len(tokens) == shard["tokens"]
    assert json.loads(names[names_at[5] : names_at[6]])[1] == "PSF-2.0"
    tokenizer = Tokenizer.load(stdlib_corpus / "tokenizer")
    assert set(tokens[starts[:-1]].tolist()) == {tokenizer.bos_id}


def test_shards_are_closed_when_full(tmp_path: Path, write_corpus: Callable[..., Corpus]) -> None:
    corpus = write_corpus(tmp_path, {"a": [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]}, shard_tokens=4)
    assert [len(shard.tokens) for shard in corpus.shards()] == [5, 5]
    assert [ids.tolist() for *_, ids in corpus.documents()] == [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
