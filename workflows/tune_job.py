"""One search, from the table to the best trial's registered model."""

from __future__ import annotations

import time
from typing import Any

from workflows.cluster import claim_workers, connected
from workflows.errors import logger
from workflows.ranking import finish_best, is_settled, record_search_end
from workflows.record import record_start, refuse_local_checkpoints, refuse_lost_defaults
from workflows.registry import Registry
from workflows.runs import Run
from workflows.search import record_trials, search, search_identity, trials_of
from workflows.space import SearchConfig
from workflows.training import check_columns, open_tables, prepare_each


def tune(config: SearchConfig) -> dict[str, Any]:
    started = time.monotonic()
    base = config.with_values(config.draw()[0])  # what trials share: the data, the run, the registry, the cluster
    refuse_lost_defaults(base)
    table, validation_table = open_tables(base)
    for values in config.draw():
        check_columns(config.with_values(values), table)
    this = Run.open(config.run.storage_path, config.run.name, search_identity(config, table, validation_table))
    if this.result is not None:
        logger.info("search %s is finished; nothing to do", this.name)
        return this.result
    registry = Registry(config.registry.tracking_uri)
    if this.mlflow_run_id is None:
        registry.open_experiment(config.registry.experiment)  # it answers, or nothing is begun
    else:
        registry.refuse_lost_run(this.mlflow_run_id)
    with this.held() as held:
        trials = trials_of(config, this)
        if not is_settled(trials, held):
            num_workers = config.cluster.num_workers * (config.tune.max_concurrent_trials or 1)
            with connected(config.cluster.address, num_workers * config.cluster.cpus_per_worker):
                workers = claim_workers(config.cluster)
                refuse_local_checkpoints(this)
                for trial, prepared in zip(trials, prepare_each([t.config for t in trials], table, validation_table), strict=True):
                    trial.take(prepared)
                record_start(trials[0].config, this, registry, trials[0].table, job="tune", given=config.resolved())
                with registry.running(str(this.mlflow_run_id)):
                    record_trials(trials, registry, str(this.mlflow_run_id))
                    search(config, this, trials, workers, held, registry)
                    finish_best(trials, workers, held, registry)
        with registry.running(str(this.mlflow_run_id)):
            return record_search_end(this, trials, registry, held, validation_table or table, started)
