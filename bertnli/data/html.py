"""HTML for reports and notebooks: tables, figures, bars. Texts are escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def cell(value: Any) -> str:
    """A value as text: nothing for None, a float with four decimals."""
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else html.escape(str(value))


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; columns with a text in them are of the class `text`."""
    rows = [list(row) for row in rows]
    is_text = [any(isinstance(row[i], str) for row in rows) for i in range(len(titles))]
    marks = [' class="text" style="text-align: left"' if text else "" for text in is_text]
    head = "".join(f"<th{mark}>{html.escape(title)}</th>" for mark, title in zip(marks, titles, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{cell(value)}</td>" for mark, value in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def figures(values: Mapping[str, Any]) -> str:
    """Named numbers beside each other."""
    cells = (f"<div>{html.escape(name)}<b>{cell(value)}</b></div>" for name, value in values.items())
    return f'<div class="figures">{"".join(cells)}</div>'


def bars(shares: Mapping[str, float], marked: Iterable[str]) -> str:
    """A bar for each of the shares, from 0 to 1; the names in `marked` are bold."""
    marked = set(marked)

    def row(name: str, share: float) -> str:
        shown = html.escape(name)
        shown = f"<b>{shown}</b>" if name in marked else shown
        bar = f'<div style="background: #2563eb; height: .7em; width: {10 * share:.2f}em"></div>'
        return f'<tr><td style="text-align: left">{shown}</td><td>{share:.4f}</td><td>{bar}</td></tr>'

    return f"<table>{''.join(row(name, share) for name, share in shares.items())}</table>"
