"""Claims about workflows.training.must_stream: rows that fit are held, others streamed; what it advises is enough, and no less would be."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import assume, event, given
from hypothesis import strategies as st

from data.columns import Rules, decide_columns
from data.encoding import TableEncoding
from data.plan import Plan
from data.shard import bytes_per_row
from data.split import TRAIN, VALIDATION
from data.statistics import summarise_table
from workflows.checks import ConfigError
from workflows.config import TrainConfig
from workflows.job import parse
from workflows.training import must_stream


def encoded(table: pa.Table) -> TableEncoding:
    columns = decide_columns(table.schema, summarise_table(table, (len(table), 0, 0)), None, {}, Rules())
    return TableEncoding(table.schema, tuple(columns), None)


ENCODING = encoded(pa.table({"x": np.random.default_rng(0).normal(size=50), "y": np.random.default_rng(1).normal(size=50)}))
ROW_BYTES = bytes_per_row(ENCODING)
CONFIG = parse(TrainConfig, ["--data.path", "table"])


def streamed(plan: Plan, num_validation_rows: int, num_workers: int, max_bytes: int) -> bool:
    config = replace(CONFIG, cluster=replace(CONFIG.cluster, num_workers=num_workers))
    prepared: Any = SimpleNamespace(encoding=ENCODING, num_rows={TRAIN: plan.num_rows, VALIDATION: num_validation_rows})
    return must_stream(config, prepared, plan, max_bytes)


plans = st.builds(
    Plan,
    num_rows=st.integers(1, 5000),
    num_shards=st.integers(1, 8),
    global_batch_size=st.just(16),
    seed=st.just(0),
    shuffle_window_rows=st.integers(1, 6000),
)


@given(plan=plans, num_validation_rows=st.integers(0, 5000), num_workers=st.integers(1, 8), max_bytes=st.integers(1, 12_000 * ROW_BYTES))
def test_what_is_advised_is_enough_and_no_less_would_be(plan: Plan, num_validation_rows: int, num_workers: int, max_bytes: int) -> None:
    """A worker's rows are the whole table's where it is alone; with more workers they are fewer."""
    try:
        result = streamed(plan, num_validation_rows, num_workers, max_bytes)
    except ConfigError as error:
        said = str(error)
    else:
        event(f"streamed: {result}")
        if num_workers == 1:
            held = sum(-(-count // plan.num_shards) * plan.num_shards for count in (plan.num_rows, num_validation_rows))
            assert result is (held * ROW_BYTES > max_bytes)
        return
    rows = re.search(r"set --data\.shuffle_window_rows (\d+), raise", said)
    event(f"advice: {rows is not None}")
    if rows is not None:
        assert streamed(replace(plan, shuffle_window_rows=int(rows[1])), num_validation_rows, num_workers, max_bytes)
        more = replace(plan, shuffle_window_rows=int(rows[1]) + 1)
        assume(more.shuffle_window_rows < plan.shuffle_window_rows)
        assert refused(more, num_validation_rows, num_workers, max_bytes)
    else:
        least = int(re.search(r"; ([\d,]+) are needed at least: raise --run\.shard_memory_bytes", said)[1].replace(",", ""))  # type: ignore[index]
        narrow = replace(plan, shuffle_window_rows=1)
        assert not refused(narrow, num_validation_rows, num_workers, least)
        assert refused(narrow, num_validation_rows, num_workers, least - 1)


def refused(plan: Plan, num_validation_rows: int, num_workers: int, max_bytes: int) -> bool:
    try:
        streamed(plan, num_validation_rows, num_workers, max_bytes)
    except ConfigError:
        return True
    return False
