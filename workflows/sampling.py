"""Rows of a table chosen by hash, for what need not see all of them; the same rows whatever the actors and units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from data.hashing import Hashes, mix
from data.reading import RowReader, plain_text
from data.split import TRAIN, row_hashes, take
from data.table import RowGroup
from data.units import Unit, units_of
from workflows.actors import Pool, Shared, run_units
from workflows.batch import model_files
from workflows.evaluation import Evaluated
from workflows.scoring_job import Scoring

# Another number than the split's, so that which rows are chosen does not depend on their side.
SAMPLE_KEY = np.uint64(0xD1B54A32D192ED03)

Place = tuple[str, int]


@dataclass(frozen=True)
class Part:
    """Rows of one file: their places in it, and the hashes of which the smallest are kept."""

    output: str
    source_rows: NDArray[np.int64]
    ranks: Hashes
    rows: pa.Table


@dataclass(frozen=True)
class SampleTask:
    """What every sampling actor is told. shares: of the rows that it takes, by what they are for."""

    what: Evaluated
    max_batch_bytes: int
    shares: Mapping[str, float]


class Sampler:
    """Takes rows of a unit by the hash that their key (or place) has: "train", those of the training; "scored", those that were scored."""

    def __init__(self, shared: Shared) -> None:
        _, self.task = ray.get(shared.reference)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        unit: Unit = item["unit"]
        found: dict[str, list[Part]] = {purpose: [] for purpose in self.task.shares}
        first_row = unit.first_row
        with RowReader(self.task.what.filesystem, self.task.what.reads, self.task.max_batch_bytes) as reader:
            for index in range(unit.first_group, unit.end_group):
                file = unit.file
                partition = file.relative_path if file.partition else ""
                group = RowGroup(file.path, file.identity, index, first_row, file.row_groups[index], partition)
                for part, rows in reader.slices(group):
                    for purpose, chosen in self.parts(unit.output, part, rows):
                        found[purpose].append(chosen)
                first_row += group.num_rows
        return found

    def parts(self, output: str, part: RowGroup, rows: pa.Table) -> Iterator[tuple[str, Part]]:
        """Yields what is taken of a slice of a row group."""
        what: Evaluated = self.task.what
        ranks = mix(row_hashes(rows, part, what.own.key) ^ SAMPLE_KEY)
        places = np.arange(part.first_row, part.first_row + len(rows))
        masks = {"train": what.own.sides(rows, part) == TRAIN, "scored": what.wanted(rows, part)}
        for purpose, share in self.task.shares.items():
            mask = masks[purpose] & (ranks.astype(np.float64) * 2.0**-64 < share)
            if mask.any():
                yield purpose, Part(output, places[mask], ranks[mask], plain_text(take(rows, mask)))


@dataclass(frozen=True)
class Samples:
    """Rows of the training, and rows that were scored: all, or about twice as many as were asked for."""

    train: Sequence[Part]
    scored: Sequence[Part]

    @staticmethod
    def draw(scoring: Scoring, files: Sequence[str], num_scored: int, limit: int, pool: Pool) -> Samples:
        """Has the actors read the table once. files: the output's, of the files to read; num_scored: rows that were scored in them.

        limit: rows of each kind that are wanted.
        """
        what, table = scoring.what, scoring.job.table
        num_training = max(1.0, table.num_rows * what.own.fraction("train"))
        shares = {"train": min(1.0, 2 * limit / num_training), "scored": min(1.0, 2 * limit / num_scored)}
        data, scored = scoring.job.data, set(files)
        units = [{"unit": unit} for unit in units_of(list(table.files), data.max_unit_rows, "") if unit.output in scored]
        task = SampleTask(what, data.max_batch_bytes, shares)
        found: dict[str, list[Part]] = {purpose: [] for purpose in shares}
        for result in run_units("workflows.sampling:Sampler", model_files(scoring.pinned), task, units, pool):
            for purpose, parts in result.items():
                found[purpose] += parts
        ordered = {purpose: sorted(parts, key=lambda part: (part.output, part.source_rows[0])) for purpose, parts in found.items()}
        return Samples(ordered["train"], ordered["scored"])

    def rows(self, purpose: str, limit: int) -> tuple[pa.Table, list[Place]]:
        """Returns the rows of the smallest hashes, at most limit, in the table's order, and their places (output file, source_row)."""
        parts: Sequence[Part] = getattr(self, purpose)
        ranks = np.concatenate([part.ranks for part in parts])
        chosen = np.sort(np.argsort(ranks, kind="stable")[:limit])
        places = [(part.output, int(row)) for part in parts for row in part.source_rows]
        return pa.concat_tables([part.rows for part in parts]).take(chosen), [places[index] for index in chosen]
