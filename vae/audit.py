"""How far an encoder falls short of log p(x), and why: the inference gap in its two parts (Cremer, Li, Duvenaud 2018).

    log p(x) - ELBO(q_encoder) = [log p(x) - ELBO(q_best)] + [ELBO(q_best) - ELBO(q_encoder)]
      total gap                    approximation gap           amortisation gap

q_best is the best member of the encoder's family for the row by itself. Cells that are missing are no part of x, and which are is neither.

Shapes: B audited rows, R simulated rows, L latent dimensions, C chains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vae.annealing import Annealed, AnnealedBound, Annealing, prior_start
from vae.evidence import MAX_OUTPUTS, LogJoint, widest_layer
from vae.importance import ImportanceBound, importance_bound
from vae.local_search import LocalSearch, best_in_family, mean_elbo
from vae.model import VAE
from vae.posteriors import Posterior
from vae.row_noise import RowNoise
from vae.rows import Rows
from vae.simulation import simulate

MAX_PARETO_K = 0.7  # Vehtari et al. (2024)
# Two estimates disagree where they are more standard errors apart than this, and more nats than anyone reads.
MAX_STANDARD_ERRORS, NEGLIGIBLE_NATS = 3.0, 0.01


@dataclass(frozen=True)
class AuditPlan:
    """How much is spent on every row.

    num_elbo_samples: for the ELBO of the encoder and of the best of its family, the same noise for both.
    annealing_start: "posterior", the best of the family, or "prior", the Gaussian of the prior's moments, which finds modes that
        the former left out, and takes more temperatures.
    num_simulated_rows: for each audited row numbered below this, a row is simulated for the bidirectional check.
    """

    num_elbo_samples: int = 1000
    num_importance_samples: int = 5000
    search: LocalSearch = field(default_factory=LocalSearch)
    annealing: Annealing = field(default_factory=Annealing)
    annealing_start: Literal["posterior", "prior"] = "posterior"
    num_simulated_rows: int = 50


class Estimate(NamedTuple):
    """A mean over rows, and its standard error over rows, in nats; NaN where there are too few rows for it."""

    mean: float
    standard_error: float

    @staticmethod
    def of(numbers: Tensor) -> Estimate:
        """Returns the estimate from one number per row, [B]."""
        error = float(numbers.std()) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
        return Estimate(float(numbers.mean()), error)


class Sandwich(NamedTuple):
    """Bounds on log p(x) of simulated rows, [R] each in nats: in expectation lower <= log p(x) <= upper."""

    lower: Tensor
    upper: Tensor

    @property
    def width(self) -> Estimate:
        """Upper minus lower: what annealing misses at most, as far as simulated rows are like the audited ones."""
        return Estimate.of(self.upper - self.lower)


@dataclass(frozen=True)
class Audit:
    """What was found of each row, in nats in data units, [B] in float64, and its means over rows.

    elbo: of the encoder. best_elbo: of the best of its family. importance, annealed: two lower bounds on log p(x), in expectation.
    sandwich: of simulated rows.
    """

    elbo: Tensor
    best_elbo: Tensor
    importance: ImportanceBound
    annealed: AnnealedBound
    sandwich: Sandwich

    @property
    def is_finite(self) -> Tensor:
        """Rows of which every estimate is finite, bool [B]. The others are left out of all means."""
        estimates = (self.elbo, self.best_elbo, self.importance.log_evidence, self.annealed.log_evidence)
        return torch.stack([estimate.isfinite() for estimate in estimates]).all(0)

    @property
    def estimator(self) -> Literal["importance", "annealed"]:
        """Which bound stands for log p(x): that with the larger mean over rows. The larger row by row would be no bound."""
        better = (self.annealed.log_evidence - self.importance.log_evidence)[self.is_finite].mean() > 0
        return "annealed" if bool(better) else "importance"

    @property
    def log_evidence(self) -> Tensor:
        """The bound that stands for log p(x), [B]."""
        return (self.annealed if self.estimator == "annealed" else self.importance).log_evidence

    @property
    def total_gap(self) -> Estimate:
        """log p(x) - ELBO(q_encoder): a lower bound in expectation, as the bound that stands for log p(x) is."""
        return self._over_rows(self.log_evidence - self.elbo)

    @property
    def approximation_gap(self) -> Estimate:
        """log p(x) - ELBO(q_best): no bound, as the search may miss the best, which makes it too large, and log p(x) be underestimated."""
        return self._over_rows(self.log_evidence - self.best_elbo)

    @property
    def amortisation_gap(self) -> Estimate:
        """ELBO(q_best) - ELBO(q_encoder): a lower bound in expectation, as the search may miss the best. The same noise for both."""
        return self._over_rows(self.best_elbo - self.elbo)

    @property
    def is_suspect(self) -> Tensor:
        """Rows whose log_evidence is not to be trusted, bool [B].

        Something is not finite, a Pareto k is above 0.7, or the two bounds differ by more than their noise explains.
        """
        difference = (self.annealed.log_evidence - self.importance.log_evidence).abs()
        noise = torch.hypot(self.annealed.standard_error, self.importance.standard_error)
        disagree = difference > MAX_STANDARD_ERRORS * noise + NEGLIGIBLE_NATS
        return ~self.is_finite | ~(self.importance.pareto_k <= MAX_PARETO_K) | disagree

    @staticmethod
    def join(parts: Sequence[Audit]) -> Audit:
        """Returns the audit of all rows from those of one or more batches, in their order."""
        return Audit(
            torch.cat([part.elbo for part in parts]),
            torch.cat([part.best_elbo for part in parts]),
            ImportanceBound(*(torch.cat(tensors) for tensors in zip(*(part.importance for part in parts), strict=True))),
            AnnealedBound(*(torch.cat(tensors, -1) for tensors in zip(*(part.annealed for part in parts), strict=True))),
            Sandwich(*(torch.cat(tensors) for tensors in zip(*(part.sandwich for part in parts), strict=True))),
        )

    def _over_rows(self, numbers: Tensor) -> Estimate:
        return Estimate.of(numbers[self.is_finite])


def audit(model: VAE, rows: Rows, seed: int, plan: AuditPlan | None = None, first_row: int = 0) -> Audit:
    """Returns the audit of given rows, which are numbered from first_row on.

    It is computed in float64 on the device of the model and the rows. Every random number belongs to the seed, its purpose and the row's
    number: in whatever batches rows come, the answers for a row are the same, but for the rounding of sums in matrix products. Proposal of
    the importance weights, and start of the annealing, is the best of the family and not the encoder's posterior: log p(x) should
    not suffer from what is wrong with the encoder.

    Raises:
        ValueError: there are no rows, or too few samples to judge the weights' tail.
    """
    if not rows.num_rows:
        raise ValueError("an audit needs rows, and got none: give one at least, and two for standard errors")
    plan = plan or AuditPlan()
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    size = max(1, MAX_OUTPUTS // (max(plan.annealing.num_chains, plan.search.num_samples) * widest_layer(model)))
    parts = []
    for begin in range(0, rows.num_rows, size):
        block = rows.slice(begin, min(begin + size, rows.num_rows))
        numbers = range(first_row + begin, first_row + begin + block.num_rows)
        parts.append(audit_block(model, block, numbers, seed, plan))
    return Audit.join(parts)


def audit_block(model: VAE, rows: Rows, numbers: range, seed: int, plan: AuditPlan) -> Audit:
    """Returns the audit of rows that fit into memory at once, by a model in float64 without gradients."""

    def streams(purpose: str) -> RowNoise:
        return RowNoise(seed, purpose, numbers, rows.device)

    joint = LogJoint(model, rows)
    with torch.no_grad():
        encoder = model.posterior(rows)
    best = best_in_family(joint, encoder, plan.search, streams("search"))
    with torch.no_grad():
        noise = streams("elbo").normal(plan.num_elbo_samples, model.latent_dim)
        elbo, best_elbo = mean_elbo(joint, encoder, noise), mean_elbo(joint, best, noise)
    importance = importance_bound(joint, best, plan.num_importance_samples, streams("importance"))
    annealed = annealing_from(joint, best, plan)
    bound = annealed.forward(annealed.tuned_step_sizes(streams("pilot")), streams("annealing"))
    num_simulated = max(0, min(plan.num_simulated_rows - numbers.start, rows.num_rows))
    check = sandwich(model, rows.slice(0, num_simulated), numbers[:num_simulated], seed, plan)
    return Audit(elbo, best_elbo, importance, bound, check)


def sandwich(model: VAE, like: Rows, numbers: range, seed: int, plan: AuditPlan) -> Sandwich:
    """Returns both bounds for rows simulated from the model, one for each of `like`, which have its condition and its nulls."""

    def streams(purpose: str) -> RowNoise:
        return RowNoise(seed, "simulated " + purpose, numbers, like.device)

    if not like.num_rows:
        return Sandwich(like.log_jacobian.double(), like.log_jacobian.double())
    rows, z = simulate(model, like, streams("rows"))
    joint = LogJoint(model, rows)
    with torch.no_grad():
        encoder = model.posterior(rows)
    annealed = annealing_from(joint, best_in_family(joint, encoder, plan.search, streams("search")), plan)
    step_sizes = annealed.tuned_step_sizes(streams("pilot"))
    lower = annealed.forward(step_sizes, streams("annealing")).log_evidence
    return Sandwich(lower, annealed.reverse(z, step_sizes, streams("reverse")))


def annealing_from(joint: LogJoint, best: Posterior, plan: AuditPlan) -> Annealed:
    """Returns the annealing from where the plan says."""
    return Annealed(joint, prior_start(joint.prior, best) if plan.annealing_start == "prior" else best, plan.annealing)
