"""Markdown, or plain text, that grows: blocks of HTML, each with the version at which it last changed.

A reader that has seen a version gets only the blocks that changed since (`changes_since`).
"""

from puna.web.markdown import Live, blocks, plain_blocks


class LiveMarkdown:
    """One growing text. plain: it is shown as it is."""

    def __init__(self, *, plain: bool = False) -> None:
        self._live = Live()
        self._plain = plain
        self._blocks: list[tuple[int, str]] = []

    def render(self, text: str, *, final: bool = False) -> list[str]:
        """The blocks of the text so far. May run on any thread; final: the text is complete."""
        if self._plain:
            return plain_blocks(text)
        return blocks(text) if final else self._live.blocks(text)

    def put(self, rendered: list[str], version: int) -> None:
        """Take rendered blocks as the state of this version."""
        before = self._blocks
        self._blocks = [
            before[at] if at < len(before) and before[at][1] == html else (version, html)
            for at, html in enumerate(rendered)
        ]

    def changes_since(self, version: int) -> list[list[int | str]]:
        """[index, HTML] of every block that changed after a version."""
        return [[at, html] for at, (changed, html) in enumerate(self._blocks) if changed > version]

    def __len__(self) -> int:
        return len(self._blocks)
