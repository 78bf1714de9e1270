"""Which rows of a table are scored under which model: what evaluate.py checks before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from data.encoding import TableEncoding
from data.listing import DataError
from data.output import OutputFolder, output_name
from data.split import SplitRule, knows_rows
from data.table import Table
from vae.bundle import Bundle, open_bundle
from workflows.checks import ConfigError
from workflows.errors import logger
from workflows.evaluate_config import EvaluateConfig
from workflows.evaluation import Evaluated, output_schema
from workflows.file_job import FileJob, open_input
from workflows.pinned import PinnedModel


@dataclass(frozen=True)
class Scoring:
    """A model version, and the job that scores the table's rows under it. what: job.what, typed."""

    pinned: PinnedModel
    bundle: Bundle
    encoding: TableEncoding
    what: Evaluated
    job: FileJob

    @property
    def files(self) -> list[str]:
        """The names of the table's files in the output."""
        return [output_name(file.relative_path) for file in self.job.table.files]


def candidate_scoring(config: EvaluateConfig, pinned: PinnedModel) -> Scoring:
    """Returns the scoring of the version asked for. Raises BundleError, ConfigError, DataError, OutputError where things do not fit."""
    bundle = open_bundle(pinned.files, where=config.model)
    encoding = TableEncoding.from_json(bundle.table)
    key = config.data.key or encoding.key
    table = input_table(config, encoding, [key, encoding.key])
    rule = SplitRule.of(bundle.table, table.fingerprint)
    side = chosen_side(config.data.split, rule)
    if side != "all" and not knows_rows(bundle.table, table.fingerprint):
        logger.warning("these are other files than those of the training, which had no key: rows that it knows may be among those scored")
    return scoring(config, pinned, bundle, encoding, table, key, (rule, side))


def champion_scoring(config: EvaluateConfig, candidate: Scoring, pinned: PinnedModel, bundle: Bundle) -> Scoring:
    """Returns the scoring of the candidate's rows under another version. Raises DataError where the table does not fit it."""
    encoding, what = TableEncoding.from_json(bundle.table), candidate.what
    table = input_table(config, encoding, [what.key, what.chosen.key, encoding.key])
    return scoring(config, pinned, bundle, encoding, table, what.key, (what.chosen, what.side))


def chosen_side(asked: str | None, rule: SplitRule) -> str:
    """Returns the side that is scored. Raises ConfigError where the model's training left no such rows."""
    if asked is None:
        there = [side for side in ("test", "validation") if rule.fraction(side) > 0]
        if not there:
            raise ConfigError(
                "the model was trained on all rows of this table, without a test or validation split; give a table that the training did "
                "not read, with --data.split all"
            )
        return there[0]
    if rule.fraction(asked) <= 0:
        there = [side for side in ("train", "validation", "test") if rule.fraction(side) > 0]
        raise ConfigError(
            f"data.split is {asked!r}, and the model's training left no such rows of this table; it has {', '.join(there)}, all"
        )
    return asked


def input_table(config: EvaluateConfig, encoding: TableEncoding, keys: Sequence[str | None]) -> Table:
    """Returns the table with the columns that are needed. Raises DataError."""
    more = [name for name in dict.fromkeys([*keys, config.evaluate.label]) if name is not None]
    return open_input(config.data, [*encoding.inputs, *more], partial(check_schema, encoding, more, config.evaluate.label))


def check_schema(
    encoding: TableEncoding, more: Sequence[str], label: str | None, schema: pa.Schema, where: str, spelled: Collection[str]
) -> None:
    """Raises DataError for a file that does not fit the model, or lacks a key column or the label."""
    encoding.check_schema(schema, where, spelled)
    for name in more:
        if name not in schema.names:
            option = "evaluate.label" if name == label else "data.key"
            raise DataError(f"{where}: the column {name!r} ({option}) is missing; it has {schema.names}")


def scoring(
    config: EvaluateConfig,
    pinned: PinnedModel,
    bundle: Bundle,
    encoding: TableEncoding,
    table: Table,
    key: str | None,
    chosen: tuple[SplitRule, str],
) -> Scoring:
    rule, side = chosen
    own, label = SplitRule.of(bundle.table, table.fingerprint), config.evaluate.label
    more = dict.fromkeys(name for name in (key, own.key, rule.key, label) if name is not None and name not in encoding.inputs)
    reads = pa.schema([*encoding.schema_of(encoding.inputs), *(table.schema.field(name) for name in more)])
    types = [None if name is None else reads.field(name).type for name in (key, label)]
    what = Evaluated(table.filesystem, reads, key, types[0], label, types[1], rule, side, own, config.num_importance_samples)
    root = OutputFolder.open(config.output.path).below(f"split={side}")
    schema = output_schema(bundle.model, encoding, what)
    if len(set(schema.names)) < len(schema.names):
        raise ConfigError(f"data.key is {key!r}, which is the name of another column of the scores: {schema.names}; name another key")
    claim = claimed(pinned, what)
    job = FileJob("evaluate", table, root, claim, pinned, "workflows.evaluation:Evaluator", what, schema, config.data, config.output.prune)
    return Scoring(pinned, bundle, encoding, what, job)


def claimed(pinned: PinnedModel, what: Evaluated) -> dict[str, Any]:
    """Returns what versions have in common whose scores lie side by side: the rows, and how they are scored."""
    return {
        "job": "evaluate",
        "model_name": pinned.name,
        "columns": [what.key or "source_file", what.label],
        "split": [what.side, what.chosen.key, what.chosen.validation_fraction, what.chosen.test_fraction],
        "num_importance_samples": what.num_importance_samples,
    }
