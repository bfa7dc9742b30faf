"""A spool on disk for documents between reading and tokenising.

Which documents are kept, and in which order, is known only when all have been read (duplicates, shuffling), but a
corpus need not fit into memory. So texts are appended to one file, with about 50 bytes per document in memory, and read
back in any order through a memory map. The spool is inside the unfinished corpus directory and is removed before that
is renamed.
"""

import mmap
import shutil
from array import array
from pathlib import Path

import numpy as np

from puna.data.document import Document


class Spool:
    """Append documents, then `seal`, then read them by number."""

    def __init__(self, folder: Path, signature_length: int) -> None:
        """signature_length: number of uint32 values stored with each document; 0: none."""
        self.folder = folder
        folder.mkdir()
        names = ("texts", "names", "signatures")
        self._writing = {name: open(folder / name, "wb") for name in names}  # noqa: SIM115
        self._maps: dict[str, mmap.mmap] = {}
        self._text_ends, self._name_ends = array("q", [0]), array("q", [0])
        self._licences: dict[str, int] = {}
        self._licence, self._source, self._heldout = array("i"), array("i"), array("b")
        self._signature_length = signature_length

    def __len__(self) -> int:
        return len(self._source)

    def add(self, document: Document, source: int, heldout: bool, signature: np.ndarray | None) -> int:
        """Append a document of the source with this number. Returns the size of its text in bytes."""
        text = document.text.encode("utf-8")
        name = document.name.encode("utf-8", "replace")
        self._writing["texts"].write(text)
        self._writing["names"].write(name)
        if signature is not None:
            self._writing["signatures"].write(signature.astype("<u4").tobytes())
        self._text_ends.append(self._text_ends[-1] + len(text))
        self._name_ends.append(self._name_ends[-1] + len(name))
        self._licence.append(self._licences.setdefault(document.licence, len(self._licences)))
        self._source.append(source)
        self._heldout.append(heldout)
        return len(text)

    def seal(self) -> None:
        """Finish writing; from now on documents can be read."""
        for name, file in self._writing.items():
            file.close()
            if name != "signatures" and (self.folder / name).stat().st_size:
                with open(self.folder / name, "rb") as reading:
                    self._maps[name] = mmap.mmap(reading.fileno(), 0, access=mmap.ACCESS_READ)

    def text(self, number: int) -> str:
        """The text of one document."""
        return self._slice("texts", self._text_ends, number).decode("utf-8")

    def name(self, number: int) -> str:
        """The name of one document."""
        return self._slice("names", self._name_ends, number).decode("utf-8")

    def licence(self, number: int) -> str:
        """The licence of one document."""
        return list(self._licences)[self._licence[number]]

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each text: (documents,) int64."""
        return np.diff(np.array(self._text_ends, dtype=np.int64))

    @property
    def sources(self) -> np.ndarray:
        """Source number of each document: (documents,)."""
        return np.array(self._source, dtype=np.int64)

    @property
    def heldout(self) -> np.ndarray:
        """Whether each document is held out: (documents,) bool."""
        return np.array(self._heldout, dtype=bool)

    def signatures(self) -> np.ndarray:
        """(documents, signature_length) uint32, memory-mapped."""
        if not len(self):
            return np.zeros((0, self._signature_length), dtype="<u4")
        shape = (len(self), self._signature_length)
        return np.memmap(self.folder / "signatures", dtype="<u4", mode="r", shape=shape)

    def remove(self) -> None:
        """Close everything and delete the files."""
        for file in self._writing.values():
            file.close()
        for mapped in self._maps.values():
            mapped.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _slice(self, name: str, ends: array, number: int) -> bytes:
        start, stop = ends[number], ends[number + 1]
        return self._maps[name][start:stop] if stop > start else b""
