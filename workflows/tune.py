"""Searches the options that train best on a Parquet table, and registers the best trial's model.

    python workflows/tune.py --data.path TABLE --training.learning_rate '[1e-4, 1e-2]' --model.latent_dim '[8, 16, 32]' [train.py's options]

Reads Parquet. Writes one MLflow run with a nested one for each trial, one model version with alias `candidate`, and the trials'
checkpoints below run.storage_path. A second run with the same --run.name goes on where the first stood, or, if that finished,
does nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports start at the repository root, not in workflows/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from workflows.cluster import claim_workers, connected
from workflows.errors import logger
from workflows.job import run
from workflows.ranking import finish_best, is_settled, record_search_end
from workflows.record import record_start, refuse_lost_defaults
from workflows.registry import Registry
from workflows.runs import Run
from workflows.search import record_trials, search, search_identity, trials_of
from workflows.space import SearchConfig
from workflows.training import for_table, open_tables, prepare


def main(config: SearchConfig) -> dict[str, Any]:
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


if __name__ == "__main__":
    run(main, SearchConfig)
