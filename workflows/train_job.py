"""One training, from the table to the registered model."""

from __future__ import annotations

import time
from typing import Any

from workflows.cluster import claim_workers, connected
from workflows.config import TrainConfig
from workflows.errors import logger
from workflows.narration import Narrator
from workflows.record import identity, metrics_log, record_end, record_start, refuse_local_checkpoints, refuse_lost_defaults
from workflows.registry import Registry
from workflows.runs import Run
from workflows.training import fit, for_table, open_tables, prepare


def train(config: TrainConfig) -> dict[str, Any]:
    started = time.monotonic()
    refuse_lost_defaults(config)
    table, validation_table = open_tables(config)
    this = Run.open(config.run.storage_path, config.run.name, identity(config, table, validation_table))
    if this.result is not None:
        logger.info("run %s is finished; nothing to do", this.name)
        return this.result
    registry = Registry(config.registry.tracking_uri)
    if this.mlflow_run_id is None:
        registry.open_experiment(config.registry.experiment)  # it answers, or nothing is begun
    else:
        registry.refuse_lost_run(this.mlflow_run_id)
    with this.held() as checkpoints:
        if checkpoints.finished() is None:
            logger.info("run %s: %d rows in %d files", this.name, table.num_rows, len(table.files))
            with connected(config.cluster.address, config.cluster.num_workers * config.cluster.cpus_per_worker):
                workers = claim_workers(config.cluster)
                refuse_local_checkpoints(this)
                prepared = prepare(config, table, validation_table)
                config = for_table(config, prepared)
                record_start(config, this, registry, prepared)
                with registry.running(str(this.mlflow_run_id)), metrics_log(this, registry) as log:
                    fit(config, prepared, this, checkpoints, workers, Narrator(config, log).hear)
        with registry.running(str(this.mlflow_run_id)), metrics_log(this, registry) as log:
            return record_end(config, this, registry, checkpoints, validation_table or table, log, started)
