"""A report as one HTML page that needs nothing else: pictures and styles are in it, so it opens from a folder and in MLflow's viewer."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.figure import Figure

DOTS_PER_INCH = 110
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid #d8d8d8; padding-bottom: .2rem; }
p { max-width: 48rem; margin: .5rem 0; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #ececec; vertical-align: top; overflow-wrap: anywhere; }
td.number { text-align: right; white-space: nowrap; }
.lead { color: #555; }
.good, .bad { border-left: .3rem solid; padding: .3rem .8rem; }
.good { border-color: #2e8b57; background: #eef7f1; }
.bad { border-color: #c0392b; background: #fbeeec; }
"""


@dataclass(frozen=True)
class Table:
    """Rows under a header; numbers are set right."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Block:
    """A part of the page: what it shows in words, pictures with what they say to who cannot see them, and tables.

    verdict: True or False sets the words off as good or bad news.
    """

    heading: str
    words: str = ""
    pictures: Sequence[tuple[Figure, str]] = ()
    tables: Sequence[Table] = ()
    verdict: bool | None = None


def html_page(title: str, lead: str, blocks: Iterable[Block]) -> str:
    """Returns the page. Every text is escaped: columns and values are anybody's."""
    body = "\n".join(html_block(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
        f'</head>\n<body>\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n</body>\n</html>\n'
    )


def html_block(block: Block) -> str:
    parts = [f"<section>\n<h2>{escape(block.heading)}</h2>"]
    if block.words:
        mark = "" if block.verdict is None else f' class="{"good" if block.verdict else "bad"}"'
        parts += [f"<p{mark}>{escape(words)}</p>" for words in block.words.split("\n")]
    parts += [f'<img src="{data_uri(figure)}" alt="{escape(says)}">' for figure, says in block.pictures]
    parts += [html_table(table) for table in block.tables]
    return "\n".join([*parts, "</section>"])


def html_table(table: Table) -> str:
    header = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "\n".join("<tr>" + "".join(html_cell(cell) for cell in row) + "</tr>" for row in table.rows)
    return f'<div class="wide"><table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def html_cell(cell: object) -> str:
    if isinstance(cell, bool) or cell is None or not isinstance(cell, int | float):
        return f"<td>{escape('' if cell is None else str(cell))}</td>"
    return f'<td class="number">{cell:,}</td>' if isinstance(cell, int) else f'<td class="number">{cell:.5g}</td>'


def data_uri(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
