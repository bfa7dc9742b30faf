"""Emphasis next to Chinese, Japanese and Korean text.

CommonMark decides by spaces and punctuation whether `**` opens or closes, and these scripts write no spaces: in
`これは**「強調」**です。` it sees neither. The rule here is markdown-it-cjk-friendly's, an amendment to CommonMark
(https://github.com/tats-u/markdown-cjk-friendly, specification and ranges of Unicode 16, 2026-11): a delimiter next to
a CJK character is judged as if the punctuation on its other side were a letter.
"""

import re

from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned

# East Asian wide, fullwidth and halfwidth characters and Hangul, without what is an emoji by default.
_CJK = re.compile(
    "[\u1100-\u11ff\u20a9\u2329\u232a\u2630-\u2637\u268a-\u268f\u2e80-\u2e99\u2e9b-\u2ef3\u2f00-\u2fd5\u2ff0-\u303e"
    "\u3041-\u3096\u3099-\u30ff\u3105-\u312f\u3131-\u318e\u3190-\u31e5\u31ef-\u321e\u3220-\u3247\u3250-\ua48c"
    "\ua490-\ua4c6\ua960-\ua97c\uac00-\ud7a3\ud7b0-\ud7c6\ud7cb-\ud7fb\uf900-\ufaff\ufe10-\ufe19\ufe30-\ufe52"
    "\ufe54-\ufe66\ufe68-\ufe6b\uff01-\uffbe\uffc2-\uffc7\uffca-\uffcf\uffd2-\uffd7\uffda-\uffdc\uffe0-\uffe6"
    "\uffe8-\uffee\U00016fe0-\U00016fe4\U00016ff0-\U00016ff6\U00017000-\U00018cd5\U00018cff-\U00018d1e"
    "\U00018d80-\U00018df2\U0001aff0-\U0001aff3\U0001aff5-\U0001affb\U0001affd\U0001affe\U0001b000-\U0001b122"
    "\U0001b132\U0001b150-\U0001b152\U0001b155\U0001b164-\U0001b167\U0001b170-\U0001b2fb\U0001d300-\U0001d356"
    "\U0001d360-\U0001d376\U0001f200\U0001f202\U0001f210-\U0001f219\U0001f21b-\U0001f22e\U0001f230\U0001f231"
    "\U0001f237\U0001f23b\U0001f240-\U0001f248\U0001f260-\U0001f265\U00020000-\U0003fffd]"
)
_TEXT_VARIATION = re.compile("[\ufe00-\ufe0e]")  # selects a form of the character before; U+FE0F asks for an emoji
_IDEOGRAPH_VARIATION = re.compile("[\U000e0100-\U000e01ef]")
_WIDE_QUOTES = {mark + "\ufe01" for mark in "‘’“”"}  # a quotation mark in its East Asian form


class CjkFriendlyState(StateInline):
    """markdown-it's state of a paragraph, with another rule for what can open and close emphasis."""

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        """Count the markers at `start`, and say whether they can open or close emphasis."""
        end = start
        while end < self.posMax and self.src[end] == self.src[start]:
            end += 1
        after = self.src[end] if end < self.posMax else " "
        last = self.src[start - 1] if start > 0 else " "
        before = last
        if _TEXT_VARIATION.match(last) and start > 1 and not isWhiteSpace(ord(self.src[start - 2])):
            before = self.src[start - 2]
        space_before, space_after = isWhiteSpace(ord(before)), isWhiteSpace(ord(after))
        if space_before or space_after:
            return Scanned(not space_after, not space_before, end - start)
        opens, closes = _punctuation(before), _punctuation(after)
        if canSplitWord:
            friendly = bool(_CJK.match(after)) or _cjk_before(before, last)
            opens, closes = opens or friendly or not closes, closes or friendly or not opens
        return Scanned(opens, closes, end - start)


def _punctuation(char: str) -> bool:
    return isMdAsciiPunct(ord(char)) or isPunctChar(char)


def _cjk_before(before: str, last: str) -> bool:
    """before: the character in front of the marker; last: the same, or the selector of its form."""
    if before != last:
        return bool(_CJK.match(before)) or before + last in _WIDE_QUOTES
    return bool(_CJK.match(last) or _IDEOGRAPH_VARIATION.match(last))
