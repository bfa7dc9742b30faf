"""Writes a tree of MathML as text, from a short list of elements and attributes.

Browsers draw MathML Core (https://www.w3.org/TR/mathml-core/). What latex2mathml writes beyond it is put in Core's
terms: frames, columns and rows by classes of the page's style sheet, bold letters by their own characters.
"""

import re
import unicodedata
from html import escape, unescape
from xml.etree.ElementTree import Element

_TOKENS = {"mi", "mn", "mo", "mtext", "ms"}
_LAYOUT = {"mrow", "msup", "msub", "msubsup", "munder", "mover", "munderover", "mfrac", "msqrt", "mroot", "mtable"}
_LAYOUT |= {"mtr", "mtd", "mstyle", "mpadded", "mphantom", "mspace", "mmultiscripts", "mprescripts", "merror"}
ELEMENTS = {"math", *_TOKENS, *_LAYOUT}
CLASSES = {"boxed", "struck", "left", "right", "center", "ruled"}
TRUTHS = {"stretchy", "fence", "accent", "accentunder", "displaystyle", "symmetric", "largeop", "movablelimits"}
LENGTHS = {"width", "height", "depth", "lspace", "rspace", "minsize", "maxsize", "linethickness"}
MAX_EM = 20.0  # so that no formula pushes the text around it away
_CHILDREN = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
_LENGTH = re.compile(r"\+?(-?\d*\.?\d+)(em|ex)?")
FIXED = {"mathvariant": {"normal"}, "scriptlevel": {"0", "1", "2"}}
_OPERATORS = {*"¬∥‖", *"⟨⟩⟵⟶⟷⟸⟹⟺"}  # besides Unicode's mathematical symbols
_LETTERS = {*"∞∂∇∅∀∃"}  # symbols that are set like letters
_LIMITS = {*"∑∏∐⋃⋂⨁⨂⋁⋀⨆"} | {"lim", "max", "min", "sup", "inf", "argmax", "argmin"}


def mathml(root: Element) -> str:
    """A `math` element of latex2mathml's as text. Raises ValueError when a part is missing."""
    display = "block" if root.get("display") == "block" else "inline"
    inner = "".join(_written(child) for child in _rows(list(root)))
    return f'<math display="{display}">{inner}</math>'


def _written(element: Element) -> str:
    name = element.tag
    if name == "menclose":
        kind = "boxed" if element.get("notation") in ("box", "roundedbox") else "struck"
        return f'<mrow class="{kind}">{_children(element)}</mrow>'
    if name not in ELEMENTS:
        return f"<mrow>{_children(element)}</mrow>"
    if name in _TOKENS and not len(element):
        return _token(element)
    if name in _TOKENS:  # \mathop{…}
        return f"<mrow>{_children(element)}</mrow>"
    if len(element) != _CHILDREN.get(name, len(element)):
        raise ValueError(f"{name} has {len(element)} parts.")
    attributes = _attributes(element)
    if name in ("msub", "msup", "msubsup") and len(element) and _text(element[0]) in _LIMITS:
        name = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}[name]
    if name == "mtable" and "solid" in (element.get("columnlines", "") + element.get("rowlines", "")):
        attributes += ' class="ruled"'
    if name == "mtd" and element.get("columnalign") in CLASSES:
        attributes += f' class="{element.get("columnalign")}"'
    return f"<{name}{attributes}>{_children(element)}</{name}>"


def _children(element: Element) -> str:
    own = escape(unescape(element.text or "").strip())
    children = list(element)
    if element.tag in ("mrow", "mstyle", "mpadded", "mphantom", "mtd"):
        children = _rows(children)
    return (f"<mtext>{own}</mtext>" if own else "") + "".join(_written(child) for child in children)


def _rows(children: list[Element]) -> list[Element]:
    r"""Lines that end with \\ as the rows of a table: Core breaks no lines."""
    rows: list[list[Element]] = [[]]
    for child in children:
        if len(children) == 1 and child.tag == "mrow":
            child[:] = _rows(list(child))
        if child.tag == "mspace" and child.get("linebreak"):
            rows.append([])
        else:
            rows[-1].append(child)
    if len(rows) == 1:
        return children
    table = Element("mtable")
    for row in filter(None, rows):
        cell = Element("mtd", columnalign="left")
        cell.extend(row)
        line = Element("mtr")
        line.append(cell)
        table.append(line)
    return [table]


def _token(element: Element) -> str:
    name, text = element.tag, _text(element)
    attributes = _attributes(element)
    if element.get("mathvariant") == "bold" and name != "mtext":
        text = "".join(_bold(char) for char in text)
    if name == "mi" and len(text) == 1 and text not in _LETTERS:
        if unicodedata.category(text) in ("Sm", "Ps", "Pe") or text in _OPERATORS:
            name = "mo"
        elif re.match(r"&#x000[0-9A-F]{2};", element.text or ""):
            attributes = ' mathvariant="normal"'  # latex2mathml writes an upright letter as a reference
    elif name == "mo" and (text in _LETTERS or text.isalpha()):
        name = "mi"
    space = ' lspace="0" rspace="0.167em"' if name == "mi" and len(text) > 1 and text.isalpha() else ""
    if space:  # a function's name: TeX leaves a thin space behind it
        return f'<mo stretchy="false"{space}>{escape(text)}</mo>'
    return f"<{name}{attributes}>{escape(text)}</{name}>"


def _text(element: Element) -> str:
    return unescape(element.text or "")


def _attributes(element: Element) -> str:
    found = ""
    for name, value in element.attrib.items():
        if (name in TRUTHS and value in ("true", "false")) or value in FIXED.get(name, ()):
            found += f' {name}="{value}"'
        elif name in LENGTHS and (length := _LENGTH.fullmatch(value.strip())):
            number = max(-1.0, min(float(length[1]), MAX_EM))
            found += f' {name}="{number:g}{length[2] or ("em" if number else "")}"'
    return found


def _bold(char: str) -> str:
    """The mathematical bold letter or digit of an ASCII one (Unicode, block Mathematical Alphanumeric Symbols)."""
    for first, last, base in (("A", "Z", 0x1D400), ("a", "z", 0x1D41A), ("0", "9", 0x1D7CE)):
        if first <= char <= last:
            return chr(base + ord(char) - ord(first))
    return char
