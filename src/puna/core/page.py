"""Pieces of an HTML report: the page itself, sections, tables, key figures. Everything but markup is escaped here.

A page is one file that loads nothing. `page.css` next to this file is the common style, light and dark; pages add their
own rules and those of the plots (`core.plots.STYLE`).
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from puna.version import __version__

STYLE = Path(__file__).with_name("page.css")


class Html(str):
    """Text that is markup already and is not escaped."""


def document(title: str, css: str, body: str, *, origin: str, script: str = "") -> str:
    """A complete page that loads nothing, enforced by its policy. origin: what it was drawn from, for the footer.

    script: Puna's own JavaScript; the page's policy names its hash, so that no other script can run.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"; script-src 'sha256-{digest}'" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'"
        f'{allowed}">\n'
        f"<title>{escape(title)} · Puna</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}{css}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n"
        f"<footer>Drawn by Puna {escape(__version__)} from {escape(origin)}.</footer>\n"
        f"{f'<script>{script}</script>' if script else ''}</body>\n</html>\n"
    )


def section(title: str, text: str, body: str) -> str:
    """A section with a heading; text and body are markup."""
    lead = f"<p class='note'>{text}</p>" if text else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{lead}\n{body}\n</section>"


def figures(pairs: Sequence[tuple[str, str]]) -> str:
    """Key figures in a row, each (value, what it is)."""
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for value, name in pairs)
    return f'<dl class="figures">{cells}</dl>'


def named(name: str, note: str) -> Html:
    """A name with a small note below it."""
    small = f"<small>{escape(note)}</small>" if note else ""
    return Html(escape(name) + small)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[int] = (),
    drawing: int | None = None,
    ours: int | None = None,
    head: bool = True,
) -> str:
    """An HTML table, which scrolls by itself where it is wider than the page. Cells are escaped unless they are Html.

    The first cell of a row is its header.

    numeric: right-aligned columns. drawing: a column of bars. ours: the row to highlight.
    """

    def cell(index: int, text: str) -> str:
        kind = ' class="number"' if index in numeric else ' class="drawing"' if index == drawing else ""
        tag, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
        # On a phone, rows of bars have no header; the label then says what a number is.
        label = f' data-label="{escape(columns[index])}"' if index in numeric and text and columns[index] else ""
        return f"<{tag}{scope}{kind}{label}>{text if isinstance(text, Html) else escape(text)}</{tag}>"

    header = "".join(
        f'<th scope="col"{" class=number" if index in numeric else ""}>{escape(name)}</th>' if name else "<td></td>"
        for index, name in enumerate(columns)
    )
    body = "".join(
        f"<tr{' class=ours' if at == ours else ''}>{''.join(cell(i, text) for i, text in enumerate(row))}</tr>"
        for at, row in enumerate(rows)
    )
    kind = "" if drawing is None else ' class="bars"'
    whole = f"<table{kind}>{f'<thead><tr>{header}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"
    return f'<div class="scroll">{whole}</div>'
