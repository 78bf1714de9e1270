"""The prior that the ELBO asks for once encoder and decoder are trained: a mixture of Gaussians like all rows' posteriors together.

Averaged over rows, the one part of the ELBO that knows the prior is E_q(z|x)[log p(z)], which is largest where p(z) is the aggregated
posterior, the mean of all q(z|x) (Hoffman & Johnson 2016; Tomczak & Welling 2018). Expectation maximisation (Dempster, Laird, Rubin 1977)
climbs there among mixtures, and what is generated is decoded from where rows are. Float64.

Shapes: N rows, L latent dimensions, K components.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vae.model import VAE
from vae.posteriors import DiagonalGaussian
from vae.priors import GaussianMixture, Mixture

# Every component has so many rows of the standard normal prior besides its own: one of a few rows closes in on them otherwise.
PRIOR_ROWS = 5.0
# Rows whose densities are there at once.
BATCH_ROWS = 4096


def starting_at(centers: Tensor) -> Mixture:
    """Returns the mixture of equal weights around centers [K, L], K posterior draws, from which the climb begins."""
    scale = centers.std(0, correction=0).clamp(min=0.1).log().expand_as(centers)
    return Mixture(DiagonalGaussian(centers, scale), centers.new_zeros(len(centers)).log_softmax(0))


def expected_sums(mixture: Mixture, z: Tensor) -> Tensor:
    """Returns the sum of log p(z) over draws z [N, L], and those of the components' shares, of z and of z^2 by them, [1 + K (1 + 2 L)]."""
    num_components, latent_dim = mixture.components.mean.shape
    sums = z.new_zeros(1 + num_components * (1 + 2 * latent_dim))
    for begin in range(0, len(z), BATCH_ROWS):
        part = z[begin : begin + BATCH_ROWS]
        each = mixture.components.log_prob_each(part) + mixture.log_weights
        log_prob = each.logsumexp(1)
        shares = (each - log_prob[:, None]).exp()
        found = torch.cat([shares.sum(0)[:, None], shares.T @ part, shares.T @ part.square()], 1)
        sums += torch.cat([log_prob.sum()[None], found.flatten()])
    return sums


def maximised(sums: Tensor, latent_dim: int) -> Mixture:
    """Returns the mixture that the expected sums of all rows speak for."""
    num_rows, first, second = torch.split(sums[1:].reshape(-1, 1 + 2 * latent_dim), [1, latent_dim, latent_dim], 1)
    mean = first / (num_rows + PRIOR_ROWS)
    variance = (second + PRIOR_ROWS) / (num_rows + PRIOR_ROWS) - mean.square()
    weights = (num_rows.squeeze(1) + 1).log().log_softmax(0)
    return Mixture(DiagonalGaussian(mean, 0.5 * variance.clamp(min=1e-6).log()), weights)


def with_prior(model: VAE, mixture: Mixture) -> VAE:
    """Returns the model with a mixture in place of its prior; the rest is the same."""
    components = {"prior": "mixture", "num_prior_components": len(mixture.log_weights)}
    changed = VAE(**model.architecture | components).to(model.device, model.dtype)
    prior = changed.prior
    assert isinstance(prior, GaussianMixture)
    changed.load_state_dict(changed.state_dict() | model.state_dict())
    prior.set(mixture)
    return changed
