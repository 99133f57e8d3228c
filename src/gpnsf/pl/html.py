"""Parts of a page: escaped text, tables, pictures inside the file, and the page around them.

No scripts, nothing from outside.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["bullets", "note", "page", "pairs", "paragraph", "picture", "shown", "table"]

DPI, LEAST_DPI = 110, 80
# pixels of a figure: large ones are drawn coarser, so that twenty factors make a page of a few
# megabytes
PIXELS = 1.2e6
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1c1c1c; background: #fff;
  max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #ddd; }
nav { background: #f6f6f4; padding: .6rem 1rem; margin: 1.2rem 0; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; list-style: none; margin: 0; padding: 0; }
a { color: #00588f; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
.note { background: #fff6e0; border-left: 4px solid #c77f00; padding: .5rem .9rem; max-width: 46rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .8rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .86rem; line-height: 1.35; }
caption { text-align: left; color: #555; padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e6e6e6; overflow-wrap: anywhere; }
thead th { border-bottom: 1px solid #888; overflow-wrap: normal; }
tbody th { font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1rem 0 1.6rem; }
img { max-width: 100%; height: auto; display: block; }
figcaption { color: #555; font-size: .86rem; max-width: 46rem; margin-top: .3rem; }
footer { margin-top: 3rem; color: #555; font-size: .86rem; }
@media print { nav { display: none; } figure, tr { break-inside: avoid; } }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="gpnsf">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1>
<p>{lead}</p></header>
<nav aria-label="Contents"><ul>
{contents}
</ul></nav>
<main>
{sections}
</main>
<footer>{footer}</footer>
</body>
</html>
"""


def page(title: str, lead: str, sections: Iterable[tuple[str, str]], *, footer: str) -> str:
    """A whole page; ``sections`` are headings, still to be escaped, and finished bodies."""
    parts = [
        (f"section-{number}", escape(heading), body)
        for number, (heading, body) in enumerate(sections, 1)
    ]
    return PAGE.format(
        title=escape(title),
        style=STYLE,
        lead=escape(lead),
        contents="\n".join(
            f'<li><a href="#{anchor}">{heading}</a></li>' for anchor, heading, _ in parts
        ),
        sections="\n".join(
            f'<section id="{anchor}"><h2>{heading}</h2>\n{body}\n</section>'
            for anchor, heading, body in parts
        ),
        footer=escape(footer),
    )


def paragraph(text: str) -> str:
    """One paragraph."""
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """A paragraph that is to be seen."""
    return f'<p class="note">{escape(text)}</p>'


def bullets(texts: Iterable[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def shown(value: object) -> str:
    """A value as text: numbers in four digits, sequences with commas, mappings as name = value."""
    value = (
        value.item() if isinstance(value, np.ndarray | np.generic) and value.ndim == 0 else value
    )
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, Integral):
        return f"{value:,}"
    if isinstance(value, Real):
        number = float(value)
        return (
            "–" if np.isnan(number) else f"{number:,.4g}" if abs(number) < 1e6 else f"{number:.4g}"
        )
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {shown(item)}" for name, item in value.items()) or "–"
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(map(shown, value)) or "–"
    return str(value)


def table(frame: pd.DataFrame, caption: str) -> str:
    """A table whose first column names its rows; columns of numbers are set to the right."""
    kinds = [' class="number"' if kind.kind in "iuf" else "" for kind in frame.dtypes]
    head = "".join(
        f'<th scope="col"{kind}>{escape(str(name))}</th>'
        for name, kind in zip(frame, kinds, strict=True)
    )
    lines = [_line([shown(value) for value in row], kinds) for row in frame.itertuples(index=False)]
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def pairs(values: Mapping[str, object], caption: str) -> str:
    """A table of names and values."""
    lines = "\n".join(_line([str(name), shown(value)], ["", ""]) for name, value in values.items())
    return f'<div class="scroll"><table><caption>{escape(caption)}</caption>\n<tbody>\n{lines}\n</tbody></table></div>'


def picture(figure: Figure, alt: str, caption: str) -> str:
    """A figure as PNG inside of the page; it is closed."""
    from matplotlib import pyplot as plt

    stream = io.BytesIO()
    dpi = float(np.clip(np.sqrt(PIXELS / np.prod(figure.get_size_inches())), LEAST_DPI, DPI))
    figure.savefig(stream, format="png", dpi=dpi, bbox_inches="tight")
    plt.close(figure)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _line(cells: list[str], kinds: list[str]) -> str:
    """A row of a table."""
    first, *rest = (escape(cell) for cell in cells)
    others = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
    return f'<tr><th scope="row">{first}</th>{others}</tr>'
