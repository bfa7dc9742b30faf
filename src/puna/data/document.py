"""The values that pass through a corpus build: documents, their input files, and counts of what was dropped."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its name, source and licence."""

    text: str
    name: str
    source: str
    licence: str
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Input:
    """One file of a source: its name within the source, its size in bytes (0: unknown), and its path.

    revision: the dataset's commit for a file on the Hub; `place` is then the file's path within the dataset.
    """

    name: str
    size: int
    place: str
    revision: str = ""


@dataclass
class Drops:
    """Counts of dropped documents and their bytes, by source and reason."""

    counts: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def add(self, source: str, reason: str, size: int = 0, documents: int = 1) -> None:
        """Count `documents` documents with `size` bytes in total."""
        entry = self.counts.setdefault(source, {}).setdefault(reason, [0, 0])
        entry[0] += documents
        entry[1] += size

    def merge(self, counts: dict[str, dict[str, list[int]]]) -> None:
        """Add the counts of another machine."""
        for source, reasons in counts.items():
            for reason, (documents, size) in reasons.items():
                self.add(source, reason, size, documents)

    def of(self, source: str) -> str:
        """The counts of a source for a message, such as "near_duplicate 3, binary 1", or ""."""
        reasons = sorted(self.counts.get(source, {}).items(), key=lambda item: -item[1][0])
        return ", ".join(f"{reason} {documents}" for reason, (documents, _) in reasons)
