"""Whether a model's latents say anything of the rows: active units, rate, information, and whether the decoder listens.

    health = examine(model, rows, torch.Generator().manual_seed(0))
    print(health.words)

Shapes: B rows, L latent dimensions. Nats per row throughout, in float64.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vae.information import Information, in_float64, information, kl_by_dimension, standard_normal
from vae.model import VAE
from vae.posteriors import Posterior
from vae.priors import LatentDistribution
from vae.rows import Rows

HEALTHY, PARTLY, COLLAPSED = "healthy", "partly collapsed", "collapsed"
# A latent dimension is active where its posterior mean varies over rows by more than this (Burda, Grosse, Salakhutdinov 2016, 5.2).
ACTIVE_VARIANCE = 0.01
# Below this latents tell nobody from anybody: 0.01 nats are a correlation of 0.14 between z and what it stands for, 2 % of its variance.
COLLAPSED_NATS = 0.01
# Below this they tell little: one Gaussian dimension of which 18 % of the variance is signal.
WEAK_NATS = 0.1
# A dimension without signal at the active threshold has 0.005 nats if q is exact: one of 20 times that pays for nothing.
WASTED_NATS = 0.1
# Rows that are encoded and decoded at once.
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Health:
    """How much the latents say, and a verdict: "healthy", "partly collapsed" or "collapsed", with the reasons in plain words.

    mean_variance: Var_x(E_q[z_j]) by latent dimension; active_units: how many exceed ACTIVE_VARIANCE. Inactive dimensions that cost
        nothing are no fault: data may have fewer factors than the model has dimensions.
    kl_nats_by_dimension: None where the prior does not factorise.
    decoder_use_nats: what the decoder's expected log-likelihood loses per row when each row gets the latents of another; None: not asked.
    """

    latent_dim: int
    active_units: int
    mean_variance: list[float]
    kl_nats_by_dimension: list[float] | None
    information: Information
    decoder_use_nats: float | None
    verdict: str
    reasons: list[str]
    notes: list[str]

    @property
    def words(self) -> str:
        """The verdict in a paragraph."""
        head = "The latents are healthy." if self.verdict == HEALTHY else f"THE MODEL IS {self.verdict.upper()}."
        return " ".join([head, *self.reasons, *self.notes])

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"words": self.words}


@torch.no_grad()
def examine(model: VAE, rows: Rows, generator: torch.Generator) -> Health:
    """Returns a model's health on evaluation rows, decoder included; generator: on the CPU. Raises ValueError for fewer than 2 rows."""
    chunks = [rows.slice(begin, min(begin + ROWS_AT_ONCE, rows.num_rows)) for begin in range(0, rows.num_rows, ROWS_AT_ONCE)]
    parts = [model.posterior(chunk) for chunk in chunks]
    q_z = type(parts[0])(*map(torch.cat, zip(*(part.parameters for part in parts), strict=True)))
    conditions = [condition for condition in map(model.condition, chunks) if condition is not None]
    prior = model.latent_prior(torch.cat(conditions) if conditions else None)
    return health_of(q_z, prior, generator, decoder_use(model, rows, q_z, generator))


@torch.no_grad()
def decoder_use(model: VAE, rows: Rows, q_z: Posterior, generator: torch.Generator) -> float:
    """Returns how many nats per row log p(x|z) + log p(m|z) loses, on average, when z is a sample of another row's posterior.

    Where q is exact and q(z) is the prior this is I_q(x;z) + KL(q(z) || p(z|x)), so at least the mutual information. The condition of a
    conditional model stays the row's own.
    """
    z = q_z.rsample(standard_normal(q_z.mean, generator)).to(model.dtype)
    order = torch.randperm(rows.num_rows, generator=generator).to(z.device)
    other = torch.empty_like(z)
    other[order] = z[order.roll(1)]
    total = 0.0
    for begin in range(0, rows.num_rows, ROWS_AT_ONCE):
        end = min(begin + ROWS_AT_ONCE, rows.num_rows)
        part, condition = rows.slice(begin, end), model.condition(rows.slice(begin, end))
        own_x, other_x = (model.likelihood(latents[begin:end], condition) for latents in (z, other))
        for sign, p_x in ((1, own_x), (-1, other_x)):
            total += sign * float((p_x.log_prob(part).double() + p_x.null_pattern_log_prob(part).double()).sum())
    return total / rows.num_rows


@torch.no_grad()
def health_of(q_z: Posterior, prior: LatentDistribution, generator: torch.Generator, decoder_use_nats: float | None = None) -> Health:
    """Returns the health that posteriors of B rows show. prior: p(z), or p(z|c) for these rows. Raises ValueError for fewer than 2 rows."""
    found = information(q_z, prior, generator)
    variance = in_float64(q_z).mean.var(0, correction=0)
    by_dimension = kl_by_dimension(q_z, prior)
    active = variance > ACTIVE_VARIANCE
    collapsed = reasons_of_collapse(found, int(active.sum()), prior.is_standard, decoder_use_nats)
    partly = reasons_of_weakness(found, active, by_dimension, decoder_use_nats)
    return Health(
        latent_dim=len(variance),
        active_units=int(active.sum()),
        mean_variance=variance.tolist(),
        kl_nats_by_dimension=by_dimension,
        information=found,
        decoder_use_nats=decoder_use_nats,
        verdict=COLLAPSED if collapsed else PARTLY if partly else HEALTHY,
        reasons=collapsed or partly,
        notes=notes_on(found, active),
    )


def reasons_of_collapse(found: Information, active_units: int, standard_prior: bool, use: float | None) -> list[str]:
    """Returns why the latents say nothing, one sentence each. Activity is on the scale of N(0, I), so it counts where that is the prior."""
    reasons = []
    if found.rate_nats < COLLAPSED_NATS:
        reasons.append(
            f"The rate is {found.rate_nats:.4f} nats per row, below {COLLAPSED_NATS}: posteriors equal the prior, whatever the row."
        )
    if found.mutual_information_nats < COLLAPSED_NATS:
        reasons.append(
            f"Rows and latents share {found.mutual_information_nats:.4f} nats, below {COLLAPSED_NATS}: "
            "all rows have the same posterior, so embeddings say nothing."
        )
    if active_units == 0 and standard_prior:
        reasons.append(f"No latent dimension is active: no posterior mean varies over rows by more than {ACTIVE_VARIANCE}.")
    if use is not None and use < COLLAPSED_NATS:
        reasons.append(
            f"The decoder loses {use:.4f} nats per row when rows get each other's latents, below {COLLAPSED_NATS}: it ignores the latents."
        )
    return reasons


def reasons_of_weakness(found: Information, active: Tensor, by_dimension: list[float] | None, use: float | None) -> list[str]:
    """Returns why the latents say less than they seem to, one sentence each. What the information may be above its limit is granted."""
    reasons = []
    if found.mutual_information_upper_nats < WEAK_NATS:
        reasons.append(f"Rows and latents share {found.mutual_information_nats:.3f} nats, below {WEAK_NATS}: embeddings say very little.")
    if found.aggregated_kl_lower_nats is not None and found.aggregated_kl_lower_nats > max(found.mutual_information_upper_nats, WEAK_NATS):
        reasons.append(
            f"Of the rate of {found.rate_nats:.2f} nats at most {found.mutual_information_upper_nats:.2f} tell rows apart; "
            "the rest is the distance of all posteriors together from the prior, so that generated rows come from elsewhere."
        )
    wasted = [j for j, nats in enumerate(by_dimension or []) if nats > WASTED_NATS and not active[j]]
    if wasted:
        reasons.append(f"Latent dimensions {wasted} cost more than {WASTED_NATS} nats per row each, and their means do not vary over rows.")
    if use is not None and use < found.mutual_information_nats - 3 * found.mutual_information_standard_error:
        reasons.append(
            f"The latents hold {found.mutual_information_nats:.2f} nats of the row, and the decoder loses only {use:.2f} without them: "
            "it does not use what the encoder tells."
        )
    return reasons


def notes_on(found: Information, active: Tensor) -> list[str]:
    """Returns what is worth saying and no fault."""
    notes = []
    inactive = int((~active).sum())
    if inactive and inactive < len(active):
        notes.append(
            f"{inactive} of {len(active)} latent dimensions are not active; data with fewer factors than dimensions leave some so."
        )
    if found.is_limited:
        notes.append(
            f"The mutual information is given as {found.mutual_information_nats:.2f} nats, and no estimate with {found.num_mixed} rows "
            f"exceeds the logarithm of their number, {found.mutual_information_limit_nats:.2f}: it may be larger, and the aggregated "
            "posterior's distance from the prior smaller, than given."
        )
    return notes
