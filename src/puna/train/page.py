"""Pieces of an HTML page: the shell, sections, tables, numbers as text. What is not markup is escaped here."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from puna import __version__


def document(title: str, css: str, body: str) -> str:
    """A whole page that asks nobody for anything, and says so to the browser."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)} · Puna</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<footer>Drawn by Puna {escape(__version__)} from metrics.jsonl.</footer>\n</body>\n</html>\n"
    )


def section(title: str, text: str, body: str) -> str:
    """A section with a heading; text and body are markup."""
    lead = f"<p class='note'>{text}</p>" if text else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{lead}\n{body}\n</section>"


class Html(str):
    """Text that is markup already; everything else is escaped."""


def named(name: str, note: Any) -> Html:
    """A name with a small note under it."""
    small = f"<small>{escape(str(note))}</small>" if note else ""
    return Html(escape(str(name)) + small)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[int] = (),
    drawing: int | None = None,
    ours: int | None = None,
    head: bool = True,
) -> str:
    """An HTML table; cells are escaped unless they are Html. The first cell of a row is its header."""

    def cell(index: int, text: str) -> str:
        kind = ' class="number"' if index in numeric else ' class="drawing"' if index == drawing else ""
        tag, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
        # On a phone rows of bars have no head; the label then says what a number is.
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
    return f"<table{kind}>{f'<thead><tr>{header}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def number(value: float | None, form: str) -> str:
    """The value in a format such as ".3f"; a dash for None."""
    return "–" if value is None else format(value, form)


def or_dash(value: float | None, form: Callable[[float], str]) -> str:
    """form(value); a dash for None."""
    return "–" if value is None else form(value)


def count_or_share(value: Any) -> str:
    """A count as it is, a share (float) in percent."""
    if value is None:
        return "–"
    return f"{value:.1%}" if isinstance(value, float) else str(value)


def format_flops(value: float) -> str:
    """3.81e11 -> \'381 GFLOP/s\'."""
    return f"{value / 1e12:.3g} TFLOP/s" if value >= 1e12 else f"{value / 1e9:.3g} GFLOP/s"
