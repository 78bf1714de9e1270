"""Whether generated rows tell who was in the training rows: exact copies, and an attack by nearest neighbours.

What is found is a leak; what is not found proves nothing. Shapes: B rows, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from data.copies import digests_of_suspected, hash_rows
from workflows.cells import Cells
from workflows.measures import Measure, roc_auc_measure

NO_GUARANTEE = (
    "This is a smoke test and no guarantee: an area near 0.5 and no copies do not show that nothing leaks, "
    "only that one simple attack on these rows found nothing."
)
# Codes of a column that distances tell apart; the rarer ones are alike.
MAX_DISTANT_CODES = 50


def num_copies(rows: pa.Table, of: pa.Table) -> int:
    """Returns how many rows equal some row of another table with the same columns and types; a null equals a null."""
    here, there = hash_rows(rows), hash_rows(of)
    suspected = np.intersect1d(here, there)
    known = {digest for _, digest, _ in digests_of_suspected(of, there, suspected)}
    return sum(count for _, digest, count in digests_of_suspected(rows, here, suspected) if digest in known)


def membership_attack(training: Cells, held_out: Cells, synthetic: Cells) -> Measure:
    """Returns the area under the ROC curve of telling training rows from held-out ones by how near the nearest generated row is.

    0.5: nothing leaks to this attack; above: generated rows are nearer to the training rows (Chen et al. 2020, GAN-Leaks, the attack of
    who has only generated rows). As many training as held-out rows.
    """
    size = min(len(training.values), len(held_out.values))
    known, unknown, made = features([training.take(np.arange(size)), held_out.take(np.arange(size)), synthetic])
    distance = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(made).kneighbors(np.concatenate([known, unknown]))[0][:, 0]
    return roc_auc_measure(np.arange(2 * size) < size, -distance)


def features(tables: list[Cells]) -> list[NDArray[np.float64]]:
    """Returns features of each table's rows whose Euclidean distance is that of the rows, [B, F].

    Numbers are in standard deviations of all tables together. Two codes are 1 apart; a missing cell is 1 from one that is there, and from
    a number's mean.
    """
    stacked = np.concatenate([cells.values for cells in tables])
    parts: list[NDArray[Any]] = []
    for column, is_code in zip(stacked.T, tables[0].is_code, strict=True):
        missing = np.isnan(column)
        parts.append(missing[:, None].astype(np.float64))
        if is_code:
            codes, counts = np.unique(column[~missing], return_counts=True)
            kept = codes[np.argsort(-counts, kind="stable")[:MAX_DISTANT_CODES]]
            parts.append((column[:, None] == kept) / np.sqrt(2))
        elif not missing.all():
            spread = np.nanstd(column)
            parts.append(np.where(missing, 0.0, (column - np.nanmean(column)) / (spread if spread > 0 else 1.0))[:, None])
    ends = np.cumsum([len(cells.values) for cells in tables])[:-1]
    return np.split(np.concatenate(parts, 1), ends)


def leakage(rows: tuple[pa.Table, pa.Table, pa.Table], cells: tuple[Cells, Cells, Cells]) -> dict[str, Any]:
    """Returns what was found, plain JSON. Both of: training, held-out and generated rows; all of them, and those for the attack.

    Copies among held-out rows say how many rows are alike anyway.
    """
    training, held_out, synthetic = rows
    return {
        "num_copies_of_training_rows": num_copies(synthetic, training),
        "num_synthetic_rows": synthetic.num_rows,
        "num_held_out_rows_that_equal_training_rows": num_copies(held_out, training),
        "num_held_out_rows": held_out.num_rows,
        "num_attacked_rows": 2 * min(len(part.values) for part in cells[:2]),
        "membership_attack_roc_auc": membership_attack(*cells),
        "note": NO_GUARANTEE,
    }
