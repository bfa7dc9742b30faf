"""Bare addresses in a text: https://…, http://…, www.… and mail addresses become links, as links in brackets do.

The rule is GitHub's extended autolinks (https://github.github.com/gfm/#autolinks-extension-), with one addition: an
address ends at the punctuation of Chinese and Japanese, after which these scripts write no space.
"""

import re

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

# Where an address may begin. The text rule stops here, so that the rule below sees it.
_BEGIN = r"(?:https?://|www\.|(?<![A-Za-z0-9._+\-])[A-Za-z0-9._+\-]{1,64}@(?=[A-Za-z0-9]))"
_TOP = r"(?:[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])|[^\W\d_A-Za-z]{2,63})"  # not com的 in example.com的
_HOST = rf"(?:[^\W_](?:[\w-]{{0,62}}[^\W_])?\.){{1,12}}{_TOP}"
# Spaces, controls, quotes and brackets that no address contains, and CJK punctuation.
_ENDS = '\x00-\x20\x7f-\xa0<>"`\\\\{}|^\u2000-\u200b\u2018-\u201f\u2028\u2029\u3000-\u3003\u3008-\u3011\u3014-\u301f'
_ENDS += "\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f\uff3b\uff3d\uff5b-\uff65\u00ab\u00bb"
_WEB = re.compile(
    rf"(?:https?://(?:{_HOST}|localhost|\d{{1,3}}(?:\.\d{{1,3}}){{3}}|\[[0-9a-f:.]+\])|www\.{_HOST})(?::\d+)?",
    re.IGNORECASE,
)
_REST = re.compile(rf"[/?#][^{_ENDS}]*")
_MAIL = re.compile(rf"[A-Za-z0-9._+\-]{{1,64}}@{_HOST}")
_TRAILING = re.compile(r"(?:[?!.,:*_~;'\"]|&[A-Za-z0-9]+;)\Z")
MAX_ADDRESS = 2000


def use_bare_addresses(parser: MarkdownIt) -> None:
    """Teach a parser to link bare addresses."""
    stops = parser.inline.terminator_re.pattern
    parser.inline.terminator_re = re.compile(rf"{stops}|(?<![^\W_]){_BEGIN}|(?<=[^\x00-\x7f])(?:https?://|www\.)", re.I)
    parser.inline.ruler.before("text", "bare_address", _bare_address)


def _bare_address(state: StateInline, silent: bool) -> bool:
    text = _address_at(state.src, state.pos, state.posMax)
    if text is None or state.linkLevel > 0:
        return False
    scheme = "" if "://" in text[:8] else "mailto:" if "@" in text.partition("/")[0] else "https://"
    url = state.md.normalizeLink(scheme + text)
    if not state.md.validateLink(url):
        return False
    if not silent:
        state.push("link_open", "a", 1).attrs = {"href": url}
        state.push("text", "", 0).content = text
        state.push("link_close", "a", -1)
    state.pos += len(text)
    return True


def _address_at(source: str, start: int, end: int) -> str | None:
    """The address that begins at `start`, without the punctuation of the sentence behind it."""
    if start > 0 and source[start - 1].isascii() and (source[start - 1].isalnum() or source[start - 1] == "/"):
        return None
    end = min(end, start + MAX_ADDRESS)
    if found := _WEB.match(source, start, end):
        rest = _REST.match(source, found.end(), end)
        return _without_trailing(source[start : rest.end() if rest else found.end()], found.end() - start)
    if found := _MAIL.match(source, start, end):
        return found[0]
    return None


def _without_trailing(text: str, least: int) -> str:
    """GitHub's rule: punctuation at the end, and a closing bracket that nothing in the address opens, are not of it."""
    while len(text) > least:
        opener = {")": "(", "]": "["}.get(text[-1])
        if opener and text.count(text[-1]) > text.count(opener):
            text = text[:-1]
        elif found := _TRAILING.search(text):
            text = text[: max(found.start(), least)]
        else:
            break
    return text
