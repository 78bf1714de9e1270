"""How far an evaluated model's encoder falls short of log p(x), and why: vae/audit.py on rows chosen by hash, by actors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import torch

from data.encoding import TableEncoding
from vae.audit import Audit, AuditPlan, audit
from vae.bundle import open_bundle
from workflows.actors import Shared, run_units
from workflows.batch import model_files
from workflows.blocks import audit_block
from workflows.errors import logger
from workflows.gates import gap_faults
from workflows.sections import SEED, Evaluation, Section, encoded, left_out, of_finite_weights
from workflows.totals import Estimate

# Rows that one actor audits at once.
AUDITED_TOGETHER = 40


@dataclass(frozen=True)
class AuditTask:
    """What auditing actors are told. rows: those that are audited, with the model's columns."""

    rows: pa.Table
    plan: AuditPlan
    use_gpu: bool


class Auditor:
    """Audits the inference gaps of some of the rows."""

    def __init__(self, shared: Shared) -> None:
        torch.set_num_threads(1)
        model, self.task = ray.get(shared.reference)
        bundle = open_bundle(model.files, torch.device("cuda" if self.task.use_gpu else "cpu"), model.name)
        self.model, self.encoding = bundle.model, TableEncoding.from_json(bundle.table)

    def __call__(self, unit: Mapping[str, Any]) -> dict[str, Any]:
        first, end = unit["first_row"], unit["end_row"]
        rows = encoded(self.encoding, self.task.rows.slice(first, end - first)).to(self.model.device)
        return {"first_row": first, "audit": audit(self.model, rows, SEED, self.task.plan, first)}


@of_finite_weights("audit")
def audit_section(evaluation: Evaluation) -> Section:
    """Returns how far the encoder falls short of log p(x), and why."""
    options, gates = evaluation.config.audit, evaluation.config.gates
    if not options.num_rows:
        return left_out("audit", "audit.num_rows is 0")
    rows, places = evaluation.samples.rows("scored", options.num_rows)
    logger.info("auditing the inference gaps of %d rows", len(rows))
    plan = AuditPlan(num_importance_samples=options.num_importance_samples)
    task = AuditTask(rows.select(evaluation.scoring.encoding.inputs), plan, evaluation.pool.use_gpu)
    starts = range(0, len(rows), AUDITED_TOGETHER)
    units = [{"first_row": begin, "end_row": min(begin + AUDITED_TOGETHER, len(rows))} for begin in starts]
    results = run_units("workflows.inference_gaps:Auditor", model_files(evaluation.scoring.pinned), task, units, evaluation.pool)
    found = Audit.join([result["audit"] for result in sorted(results, key=lambda result: int(result["first_row"]))])
    gaps = {"total": found.total_gap, "approximation": found.approximation_gap, "amortisation": found.amortisation_gap}
    estimates = {f"{name}_gap_nats_per_row": Estimate(*gap, len(rows)) for name, gap in gaps.items()}
    finite = found.is_finite
    means = {
        "elbo_of_the_encoder_nats_per_row": Estimate.of(found.elbo[finite].numpy()),
        "elbo_of_the_best_in_the_family_nats_per_row": Estimate.of(found.best_elbo[finite].numpy()),
        "log_evidence_nats_per_row": Estimate.of(found.log_evidence[finite].numpy()),
        "sandwich_width_nats_per_row": Estimate(*found.sandwich.width, len(found.sandwich.lower)),
    }
    suspect = found.is_suspect.numpy()
    report = {
        "num_rows": len(rows),
        "num_rows_not_finite": int((~finite).sum()),
        **{name: estimate.as_json() for name, estimate in (means | estimates).items()},
        "estimator_of_log_evidence": found.estimator,
        "num_rows_whose_estimate_is_not_to_be_trusted": int(suspect.sum()),
        "rows_whose_estimate_is_not_to_be_trusted": [
            f"{place[0]}, row {place[1]}" for place, bad in zip(places, suspect, strict=True) if bad
        ],
        "notes": [
            "The total gap is a lower bound, as log p(x) is bounded from below. The approximation gap is no bound: the search for a row's "
            "best posterior may miss it. The sandwich is of rows simulated from the model: how loosely log p(x) is known of such rows."
        ],
    }
    metrics = {name: estimate.mean for name, estimate in (means | estimates).items()}
    headline = {"gaps": {name: estimate.as_json() for name, estimate in estimates.items()}}
    return Section("audit", report, headline, metrics, tuple(gap_faults(estimates, gates.limits)), [audit_block(report)])
