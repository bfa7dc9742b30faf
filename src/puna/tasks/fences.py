"""Reads the fenced code blocks of a text, as CommonMark does (markdown-it-py), and a little more leniently.

Models write ``` and ~~~, any info string, fences within lists and quotes, and fences that never close because an
answer was cut off; all of these are CommonMark. Two things that they also write are not: a fence indented as deep as
code, and one that begins or ends behind other text of its line.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from markdown_it import MarkdownIt

MAX_TEXT = 200_000
"""Longer texts have no blocks, in characters."""
MAX_NESTING = 12

# Behind other text: "Here it is: ```python" and "return x```".
_BEHIND_TEXT = re.compile(r"(?<=[^\s`~>])([ \t]{0,9})((?:`{3,9}|~{3,9})[\w+#.:/{}=-]{0,40}[ \t]{0,9})$", re.MULTILINE)


class Fenced(NamedTuple):
    """A block. info: what is behind its opening fence. closed: whether it has a closing one."""

    info: str
    content: str
    closed: bool


def fenced_blocks(text: str, *, containers: bool = True) -> list[Fenced]:
    """Return the fenced blocks of a text, without the indentation of their fences.

    containers: whether lists and quotes are seen. A block whose lines are less indented than its list item ends with
    the item, as CommonMark has it; without containers it extends to its closing fence.
    """
    if len(text) > MAX_TEXT or ("```" not in text and "~~~" not in text):
        return []
    tokens = _parser(containers).parse(_BEHIND_TEXT.sub(r"\n\2", text) + "\n")
    return [
        Fenced(token.info.strip(), token.content, token.map[1] - token.map[0] == token.content.count("\n") + 2)
        for token in tokens
        if token.type == "fence" and token.map is not None
    ]


@lru_cache(maxsize=2)
def _parser(containers: bool) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"maxNesting": MAX_NESTING})
    parser.core.ruler.enableOnly(["normalize", "block"])
    # Without the rule for indented code, a fence may be indented as deep as it likes.
    parser.block.ruler.enableOnly(["fence", *(("blockquote", "list") if containers else ()), "paragraph"])
    return parser
