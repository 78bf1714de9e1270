"""What keeps a model version from becoming champion: each gate returns its reasons, none where it is passed. Pure functions.

A candidate may be better, equal, or worse within its standard error; see `comparison_faults`. Shapes: n rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.encoding import TableEncoding
from data.fields import DENSITIES
from data.moments import Moments
from data.split import knows_rows
from vae.model import VAE
from vae.rows import Rows
from workflows.evaluate_config import GatesConfig
from workflows.totals import Estimate, Totals, estimates, merged

# How files that may hold pickled objects are named, and how pickles of protocol 2 to 5 begin.
PICKLE_NAMES = (".pkl", ".pickle", ".joblib", ".dill", ".pt", ".pth", ".ckpt", ".bin")
PICKLE_STARTS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
MAX_NAMED = 5

Reasons = list[str]


@dataclass(frozen=True)
class Comparison:
    """Candidate minus champion on the same rows, which neither was trained on, in nats per row.

    difference: of the log-evidence bounds, None where there is no such row. num_not_finite: rows where one of the two is no number.
    """

    champion_version: str
    difference: Estimate | None
    num_not_finite: int

    @staticmethod
    def of(champion_version: str, pairs: Iterable[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Comparison:
        """Returns the comparison of candidate's and champion's bounds [n] of the same rows, which come in parts."""
        moments: Moments | None = None
        num_not_finite = 0
        for candidate, champion in pairs:
            finite = np.isfinite(candidate) & np.isfinite(champion)
            num_not_finite += int((~finite).sum())
            if finite.any():
                moments = merged(moments, Moments.of((candidate[finite] - champion[finite])[:, None]))
        return Comparison(champion_version, None if moments is None else estimates(moments)[0], num_not_finite)


def comparison_faults(comparison: Comparison, gates: GatesConfig) -> Reasons:
    """Refused is what is worse by more than the allowance at the upper end of the 95 % interval: what is worse beyond doubt."""
    against, difference = f"champion version {comparison.champion_version}", comparison.difference
    if comparison.num_not_finite:
        return [f"{comparison.num_not_finite} rows have no finite log-evidence bound under the version or {against}"]
    num_rows = difference.num_rows if difference is not None else 0
    if difference is None or num_rows < gates.min_rows:
        needed = f"{gates.min_rows} are needed (gates.min_rows)"
        return [f"only {num_rows} rows that neither the version nor {against} was trained on; {needed}"]
    lower, upper = difference.interval
    if upper >= -gates.max_loss_nats_per_row:
        return []
    found = f"{difference.mean:.4g} nats per row against {against} (95 % interval {lower:.4g} to {upper:.4g}, {num_rows} rows)"
    return [f"worse than the champion: {found}; allowed is a loss of {gates.max_loss_nats_per_row:g} (gates.max_loss_nats_per_row)"]


def score_faults(totals: Totals, gates: GatesConfig) -> Reasons:
    """Refused are scores of too few rows, of rows of the training, and such as are no numbers."""
    unseen = totals.num_rows - totals.num_trained_on
    reasons = []
    if totals.num_not_finite:
        reasons.append(f"{totals.num_not_finite} of {totals.num_rows} rows have a score that is no finite number")
    if unseen < gates.min_rows:
        reasons.append(f"only {unseen} of {totals.num_rows} rows were not trained on; {gates.min_rows} are needed (gates.min_rows)")
    return reasons


def collapse_faults(totals: Totals, gates: GatesConfig) -> Reasons:
    """Refused is a model whose latent variables say nothing of the rows."""
    kl, active, reasons = totals.scores["kl_nats"].mean, totals.active_units, []
    if not kl >= gates.min_kl_nats_per_row:
        reasons.append(f"collapsed: the KL is {kl:.3g} nats per row; {gates.min_kl_nats_per_row:g} are needed (gates.min_kl_nats_per_row)")
    if active < gates.min_active_units:
        reasons.append(f"collapsed: {active} active units; {gates.min_active_units} are needed (gates.min_active_units)")
    return reasons


def gap_faults(gaps: Mapping[str, Estimate], limits: Mapping[str, float | None]) -> Reasons:
    """Refused is a gap that exceeds its limit beyond doubt: by the lower end of its 95 % interval."""
    beyond = [(name, gap, limits.get(name)) for name, gap in gaps.items()]
    return [
        f"the {name.split('_')[0]} gap is {gap.mean:.3g} nats per row (95 % interval from {gap.interval[0]:.3g}); "
        f"{limit:g} are allowed (gates.max_{name})"
        for name, gap, limit in beyond
        if limit is not None and not gap.interval[0] <= limit
    ]


def weight_faults(model: VAE) -> Reasons:
    """Refused are weights that are NaN or infinite."""
    bad = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())]
    more = f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
    return [f"weights that are no finite numbers: {', '.join(bad[:MAX_NAMED])}{more}"] if bad else []


def schema_faults(candidate: TableEncoding, champion: TableEncoding) -> Reasons:
    """Refused are other modelled or condition columns than the champion's, or other types: their bounds are of different things.

    So are categories that only the champion tells apart: the candidate has them in one with others, or does not see their cells at all.
    """
    mine, theirs = types_of(candidate), types_of(champion)
    differences = [f"{name} is {mine.get(name, 'not there')}, was {theirs.get(name, 'not there')}" for name in mine | theirs]
    different = [text for name, text in zip(mine | theirs, differences, strict=True) if mine.get(name) != theirs.get(name)]
    if different:
        return [f"other columns than the champion's: {'; '.join(different)}"]
    known = {column.name: column.categories for column in candidate.columns}
    told = {column.name: column.categories for column in champion.columns if column.name in champion.inputs}
    lost = {name: [value for value in values if value not in known[name]] for name, values in told.items()}
    named = [f"{name}: {', '.join(map(repr, values[:MAX_NAMED]))} ({len(values)} in all)" for name, values in lost.items() if values]
    return [f"categories that only the champion tells apart: {'; '.join(named)}"] if named else []


def types_of(encoding: TableEncoding) -> dict[str, str]:
    """Returns what is compared of each input column: its type, what it is to the model, and of what its log-likelihood is."""
    found = {}
    for column in (column for column in encoding.columns if column.name in encoding.inputs):
        kind = str(encoding.schema.field(column.name).type).split(", indices")[0].replace("dictionary<values=", "")
        of_what = column.field_kind
        if column.kind in ("numeric", "count", "timestamp"):
            step = 1.0 if column.integer else column.resolution  # of whole numbers all masses are per whole number
            of_what = "density" if column.field_kind in DENSITIES else f"masses in steps of {step:g}"
            if column.field_kind == "spiked":
                of_what += f" but at {', '.join(f'{atom:g}' for atom, _ in column.atoms)}"
        found[column.name] = f"{kind} ({of_what}{', condition' if column.condition else ''})"
    return found


def split_faults(record: Mapping[str, Any], fingerprint: str, who: str) -> Reasons:
    """Refused is what cannot be told apart: rows of a table of which it is not known which the training had. record: table.json."""
    if knows_rows(record, fingerprint):
        return []
    return [
        f"which of these rows {who} was trained on cannot be known: it was trained without a key, on other files; "
        "evaluate on its training table, or train with --data.key"
    ]


def pickle_faults(files: Mapping[str, bytes]) -> Reasons:
    """Refused are files that loading could make run code. files: name -> how it begins."""
    found = sorted(name for name, start in files.items() if name.lower().endswith(PICKLE_NAMES) or start.startswith(PICKLE_STARTS))
    return [f"files that may hold pickled objects: {', '.join(found[:MAX_NAMED])}"] if found else []


def embedding_faults(embed: Callable[[Rows], NDArray[Any]], rows: Rows, chunk_rows: int) -> Reasons:
    """Refused is a model that gives some rows other embeddings when they are computed again, read in other pieces."""
    pieces = Rows.cat([rows.slice(begin, begin + 7) for begin in range(0, rows.num_rows, 7)])
    for begin in range(0, rows.num_rows, chunk_rows):
        first, second = (embed(read.slice(begin, begin + chunk_rows).contiguous()) for read in (rows, pieces))
        different = int((first.view(np.uint8) != second.view(np.uint8)).reshape(len(first), -1).any(1).sum())
        if different:
            return [f"not reproducible: {different} of {len(first)} rows were embedded otherwise the second time"]
    return []


def finite_faults(metrics: Mapping[str, float]) -> Reasons:
    """Refused are metrics that are no numbers; standard errors of a single row are infinite."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    return [f"metrics that are no finite numbers: {', '.join(bad[:MAX_NAMED])}"] if bad else []
