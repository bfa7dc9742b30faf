"""Tokenizers that several tests share: one trained on Puna's own source, and the published ones of the shared data."""

import lzma
from pathlib import Path

import pytest

import puna
from puna.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real text: files of this package."""
    package = Path(puna.__file__).parent
    return [
        path.read_text(encoding="utf-8") for room in ("core", "text") for path in sorted((package / room).glob("*.py"))
    ]


@pytest.fixture(scope="session")
def trained(texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts, 1024)


@pytest.fixture(scope="session")
def llama3(test_data: Path) -> Tokenizer:
    return Tokenizer.load(test_data / "tokenizer" / "llama3")


@pytest.fixture(scope="session")
def gpt2_file(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt2") / "gpt2.tiktoken"
    path.write_bytes(lzma.decompress((test_data / "tokenizer" / "gpt2" / "gpt2.tiktoken.xz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def gpt2(gpt2_file: Path) -> Tokenizer:
    return Tokenizer.load(gpt2_file)
