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
from workflows.training import for_table, open_tables, prepare


def tune(config: SearchConfig) -> dict[str, Any]:
    started = time.monotonic()
    base = config.with_values(config.draw()[0])  # what trials share: the data, the run, the registry, the cluster
    refuse_lost_defaults(base)
    table, validation_table = open_tables(base)
    this = Run.open(config.run.storage_path, config.run.name, search_identity(config, table, validation_table))
    if this.result is not None:
        logger.info("search %s is finished; nothing to do", this.name)
        return this.result
    registry = Registry(config.registry.tracking_uri)
    if this.mlflow_run_id is None:
        registry.open_experiment(config.registry.experiment)  # it answers, or nothing is begun
    with this.held() as held:
        trials = trials_of(config, this)
        if not is_settled(trials, held):
            num_workers = config.cluster.num_workers * (config.tune.max_concurrent_trials or 1)
            with connected(config.cluster.address, num_workers * config.cluster.cpus_per_worker):
                workers = claim_workers(config.cluster)
                refuse_local_checkpoints(this)
                prepared = prepare(base, table, validation_table)
                base = for_table(base, prepared)
                for trial in trials:
                    trial.config = for_table(trial.config, prepared)
                record_start(base, this, registry, prepared, job="tune", given=config.resolved())
                with registry.running(str(this.mlflow_run_id)):
                    record_trials(trials, registry, prepared, str(this.mlflow_run_id))
                    search(config, this, trials, prepared, workers, held, registry)
                    finish_best(trials, prepared, workers, held, registry)
        with registry.running(str(this.mlflow_run_id)):
            return record_search_end(this, trials, registry, held, validation_table or table, started)
