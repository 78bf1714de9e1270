"""Estimates of log p(x) from importance weights w = p(x,z) / q(z|x), z from q(z|x), and which cells they owe it to.

Shapes: S samples, B rows, D cells of a field, L latent dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae.model import VAE
from vae.posteriors import FullGaussian, Posterior
from vae.priors import GaussianMixture, VampPrior
from vae.rows import Rows

# Numbers of a layer that are made at once: what keeps many samples of wide rows within memory. It decides the last bits, so it is fixed.
MAX_OUTPUTS = 2**23


class LogJoint:
    """log p(x,z) of given rows as a function of z; of a conditional model log p(x,z|c). The null pattern is no part of it.

    at_once: the samples of z per row that keep within memory.
    """

    def __init__(self, model: VAE, rows: Rows) -> None:
        self.model, self.rows, self.condition = model, rows, model.condition(rows)
        self.prior = model.latent_prior(self.condition)
        self.at_once = samples_at_once(model, rows)

    def __call__(self, z: Tensor) -> Tensor:
        """Returns log p(x_observed|z) + log p(z) in nats in data units, [B] or [S, B]."""
        return self.model.likelihood(z, self.condition).log_prob(self.rows) + self.prior.log_prob(z)


def log_weights(model: VAE, rows: Rows, q_z: Posterior, num_samples: int, generator: torch.Generator) -> Tensor:
    """Returns log p(x,z) - log q(z|x) in nats for samples z of q, [S, B].

    Their mean is the ELBO, and log-mean-exp of K of them the importance-weighted bound (Burda et al. 2016), in expectation.
    """
    joint = LogJoint(model, rows)
    parts = []
    for begin in range(0, num_samples, joint.at_once):
        size = (min(joint.at_once, num_samples - begin), rows.num_rows, model.latent_dim)
        noise = torch.randn(size, generator=generator, dtype=model.dtype).to(model.device)
        z = q_z.rsample(noise)
        parts.append(joint(z) - q_z.log_prob_of(z, noise))
    return torch.cat(parts)


@torch.no_grad()
def log_evidence_bound(model: VAE, rows: Rows, num_importance_samples: int, generator: torch.Generator) -> Tensor:
    """Returns the importance-weighted bound on log p(x) of every row, in nats in data units, [B] in float64 (Burda et al. 2016).

    In expectation a lower bound that does not decrease with the number of samples. Memory does not depend on that number, and it has
    no gradient: vae.objective has those. Raises ValueError for less than one sample.
    """
    if num_importance_samples < 1:
        raise ValueError(f"num_importance_samples is {num_importance_samples}; the bound needs one at least")
    q_z = model.posterior(rows)
    size = samples_at_once(model, rows)
    total: Tensor | None = None
    for begin in range(0, num_importance_samples, size):
        part = log_weights(model, rows, q_z, min(size, num_importance_samples - begin), generator).double().logsumexp(0)
        total = part if total is None else torch.logaddexp(total, part)
    assert total is not None
    return total - math.log(num_importance_samples)


def samples_at_once(model: VAE, rows: Rows) -> int:
    """Returns the samples per row whose decoder outputs and hidden layers keep within MAX_OUTPUTS, one at least."""
    return max(1, MAX_OUTPUTS // max(1, rows.num_rows * widest_layer(model)))


def widest_layer(model: VAE) -> int:
    """Returns the numbers of the widest layer for one z, the decoder's or a mixture prior's densities.

    Of convolutions only their hidden_dims and outputs are known here.
    """
    hidden_dims: list[int] = model.architecture["hidden_dims"]
    return max(sum(model.output_sizes), *hidden_dims, width_of_mixture(model), 1)


def width_of_mixture(model: VAE) -> int:
    """Returns the numbers that the density of one z under the prior takes: one a component, of full covariances L; 0 of no mixture."""
    if not isinstance(model.prior, GaussianMixture | VampPrior):
        return 0
    is_full = isinstance(model.prior, VampPrior) and model.posterior_family is FullGaussian
    return int(model.architecture["num_prior_components"]) * (model.latent_dim if is_full else 1)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """Returns the log of the mean weight over samples, [B] from [S, B]."""
    return torch.logsumexp(log_w, 0) - math.log(log_w.shape[0])


def surprisal(model: VAE, rows: Rows, q_z: Posterior, num_samples: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Returns -E_q[log p(cell|z)] in nats in stored units, 0 where a cell is missing: field -> [B, D]."""
    condition = model.condition(rows)
    total: dict[str, Tensor] = {}
    for _ in range(num_samples):
        noise = torch.randn(rows.num_rows, model.latent_dim, generator=generator, dtype=model.dtype).to(model.device)
        for name, log_prob in model.likelihood(q_z.rsample(noise), condition).cell_log_probs(rows).items():
            total[name] = total[name] - log_prob if name in total else -log_prob
    return {name: cells / num_samples for name, cells in total.items()}
