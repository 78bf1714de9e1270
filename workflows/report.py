"""The report beside generated rows: how each column compares with the training rows, and how many rows are copies.

It is the same for any number of actors: units' summaries are merged in the units' order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data.column import Column
from data.decoding import numbers_to_arrow
from data.encoding import TableEncoding
from data.marginals import LEVELS, Marginal, categories_of, marginals, total_variation
from data.output import OutputFolder
from data.statistics import TableSummary, merge_all
from data.types import is_temporal
from workflows.generation_task import SUMMARY

REPORT_JSON, REPORT_MARKDOWN = "_report.json", "_report.md"
# Categories of a column, the most frequent first, that the Markdown shows.
MAX_CATEGORIES_SHOWN = 10
NOT_ANONYMOUS = (
    "Synthetic is not anonymous: these rows are drawn from a model of real ones, and may resemble or repeat some of them. "
    "No copies, and marginals that agree, do not prove that nobody is told of."
)
OVER_ALL_ROWS = "The condition is fixed, and the real figures are over all training rows: they differ where the condition matters."
DRAWN = "Conditions were drawn column by column from the training rows' marginals, so their combinations may be ones that no real row has."
NO_MARGINALS = "The model was trained by a version that kept no marginals of the training rows: there are no real figures."
OTHER_IS_NULL = "What is left of the frequencies to 1 are nulls and rare values, which are one category, other, and come out as null."


class RowsSummary:
    """What all generated rows hold, merged from units that come in any order, in the order of their rows."""

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[int, TableSummary]] = {}
        self.num_rows = 0
        self.total: TableSummary | None = None

    def taken_from(self, results: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields the units' records without their summaries, which it keeps."""
        for record in results:
            self.waiting[record["first_row"]] = record["num_rows"], record[SUMMARY]
            while self.num_rows in self.waiting:
                num_rows, summary = self.waiting.pop(self.num_rows)
                self.total = merge_all([summary] if self.total is None else [self.total, summary])
                self.num_rows += num_rows
            yield {key: value for key, value in record.items() if key != SUMMARY}


def make_report(
    encoding: TableEncoding,
    real: Mapping[str, Any] | None,
    summary: TableSummary,
    condition: Mapping[str, Any] | None,
    request: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the report before copies were looked for, plain JSON. real: the training rows' marginals; request: what was asked of which
    model."""
    synthetic = marginals(encoding, summary)
    notes = [NOT_ANONYMOUS, OTHER_IS_NULL]
    notes += [OVER_ALL_ROWS] if condition else [DRAWN] if encoding.conditions else []
    notes += [] if real else [NO_MARGINALS]
    modelled = [column for column in encoding.columns if column.name in synthetic["columns"]]
    return {
        **request,
        "compared_with": None,
        "notes": notes,
        "num_training_rows": real["num_rows"] if real else None,
        "quantile_levels": list(LEVELS),
        "columns": {
            column.name: compare(encoding, column, real["columns"][column.name] if real else None, synthetic["columns"][column.name])
            for column in modelled
        },
        "exact_copies": None,
    }


def compare(encoding: TableEncoding, column: Column, real: Marginal | None, synthetic: Marginal) -> dict[str, Any]:
    """Returns one column's part of the report."""
    kind = encoding.schema.field(column.name).type
    entry: dict[str, Any] = {"kind": column.kind, "type": str(kind), "condition": column.condition}
    if "frequencies" in synthetic:
        entry["categories"] = categories_of(column)
        entry["total_variation"] = total_variation(real["frequencies"], synthetic["frequencies"]) if real else None
    for name, marginal in (("real", real), ("synthetic", synthetic)):
        entry[name] = None if marginal is None else {key: readable(kind, key, value) for key, value in marginal.items() if key != "kind"}
    return entry


def readable(kind: pa.DataType, key: str, value: Any) -> Any:
    """Returns a figure of a marginal, points in time as text."""
    if value is None or not is_temporal(kind) or key not in ("mean", "quantiles"):
        return value
    numbers = value if isinstance(value, list) else [value]
    texts = [
        str(point) for point in numbers_to_arrow(np.array(numbers), kind, np.zeros(len(numbers), np.bool_)).cast(pa.string()).to_pylist()
    ]
    return texts if isinstance(value, list) else texts[0]


def as_markdown(report: Mapping[str, Any]) -> str:
    """Returns the report as a page: the notes, copies, and a table of figures, real / synthetic."""
    condition = json.dumps(report["condition"]) if report["condition"] else "none given"
    lines = [
        f"# {report['num_rows']:,} generated rows",
        "",
        f"Model {report['model_name'] or 'of a folder'} version {report['model_version']} (bundle {report['bundle_sha256'][:12]}), "
        f"seed {report['seed']}, condition: {condition}.",
        "",
        *(f"- {note}" for note in report["notes"]),
        f"- {copies_in_words(report['exact_copies'], report['num_rows'])}",
        "",
        "Figures are real / synthetic.",
        "",
        "| column | kind | nulls | mean | standard deviation | 5 %, 50 %, 95 % quantiles | total variation |",
        "|---|---|---|---|---|---|---|",
        *(table_line(name, entry) for name, entry in report["columns"].items()),
    ]
    for name, entry in report["columns"].items():
        if "categories" in entry:
            lines += ["", f"**{cell(name)}**", "", "| value | real | synthetic |", "|---|---|---|", *category_lines(entry)]
    return "\n".join(lines) + "\n"


def copies_in_words(copies: Mapping[str, Any] | None, num_rows: int) -> str:
    if copies is None:
        return "Copies of training rows were not counted; give the training table by --data.path."
    where = f"of the {copies['num_rows']:,} rows of {copies['path']}"
    return f"{copies['num_copies']:,} of {num_rows:,} rows equal some {where} in all modelled columns."


def table_line(name: str, entry: Mapping[str, Any]) -> str:
    sides = entry["real"] or {}, entry["synthetic"]
    middle = [LEVELS.index(level) for level in (0.05, 0.5, 0.95)]
    quantiles = [", ".join(figure(side["quantiles"][index]) for index in middle) if side.get("quantiles") else "" for side in sides]
    figures = [pair([figure(side.get(key)) for side in sides]) for key in ("null_rate", "mean")]
    figures.append(pair([in_unit(side.get("standard_deviation"), entry) for side in sides]))
    if "element_null_rate" in entry["synthetic"]:
        figures[0] += f", of elements {pair([figure(side.get('element_null_rate')) for side in sides])}"
    kind = entry["kind"] + (" (condition)" if entry["condition"] else "")
    return f"| {cell(name)} | {kind} | {' | '.join(figures)} | {pair(quantiles)} | {figure(entry.get('total_variation'))} |"


def in_unit(deviation: float | None, entry: Mapping[str, Any]) -> str:
    """Returns a standard deviation; of points in time with their type's unit, such as us."""
    unit = re.search(r"\[(\w+)", entry["type"]) if entry["kind"] == "timestamp" and deviation is not None else None
    return f"{figure(deviation)} {unit[1]}" if unit else figure(deviation)


def category_lines(entry: Mapping[str, Any]) -> list[str]:
    """Returns table lines of the most frequent categories, as the training rows have them where that is known."""
    synthetic = entry["synthetic"]["frequencies"]
    real: Sequence[float | None] = entry["real"]["frequencies"] if entry["real"] else [None] * len(synthetic)
    order = sorted(range(len(synthetic)), key=lambda i: -(real[i] if real[i] is not None else synthetic[i]))  # type: ignore[operator]
    return [f"| {cell(entry['categories'][i])} | {figure(real[i])} | {figure(synthetic[i])} |" for i in order[:MAX_CATEGORIES_SHOWN]]


def pair(texts: Sequence[str]) -> str:
    return " / ".join(text or "-" for text in texts) if any(texts) else ""


def figure(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def cell(value: Any) -> str:
    """Returns a value as a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def put_report(output: OutputFolder, report: Mapping[str, Any]) -> None:
    """Writes the report's two files, each whole or not at all. Raises OutputError."""
    output.put_text(REPORT_MARKDOWN, as_markdown(report))
    output.put_text(REPORT_JSON, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))


def read_report(output: OutputFolder) -> dict[str, Any]:
    """Returns the report that is there."""
    with output.filesystem.open_input_file(f"{output.path}/{REPORT_JSON}") as source:
        return dict(json.loads(source.read()))
