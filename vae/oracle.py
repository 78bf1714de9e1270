"""Exact answers that training must reach, in float64: probabilistic PCA, the free-form posterior, and quadrature over z.

Shapes: N rows, D features, L latent dimensions, G grid points or quadrature nodes in all. Log-densities are in nats, and
tensors are on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


class PPCA(NamedTuple):
    """z ~ N(0, I), x|z ~ N(weight z + mean, variance I), so that p(x) = N(mean, C) with C = weight weight^T + variance I.

    weight: [D, L]; mean: [D]; variance: []; mean_log_evidence: [], the fitted rows' mean of log p(x) in nats.
    """

    weight: Tensor
    mean: Tensor
    variance: Tensor
    mean_log_evidence: Tensor

    @property
    def covariance(self) -> Tensor:
        """C, the covariance of x, [D, D]."""
        return self.weight @ self.weight.mT + self.variance * torch.eye(self.weight.shape[0], dtype=torch.float64)

    @property
    def inner(self) -> Tensor:
        """M = weight^T weight + variance I, [L, L]."""
        return self.weight.mT @ self.weight + self.variance * torch.eye(self.weight.shape[1], dtype=torch.float64)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Returns log p(x) = log N(x; mean, C) in nats, [N], for x [N, D].

        M stands in for C: log|C| = (D - L) log variance + log|M|, and C^-1 r = (r - weight M^-1 weight^T r) / variance.
        """
        num_features, latent_dim = self.weight.shape
        residual = x.double() - self.mean
        explained = self.posterior(x)[0] @ self.weight.mT
        squared_distance = (residual * (residual - explained)).sum(-1) / self.variance
        log_determinant = (num_features - latent_dim) * self.variance.log() + torch.logdet(self.inner)
        return -0.5 * (num_features * LOG_2PI + log_determinant + squared_distance)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean M^-1 weight^T (x - mean), [N, L], and covariance variance M^-1, [L, L], of p(z|x) for x [N, D]."""
        inverse = torch.linalg.inv(self.inner)
        return (x.double() - self.mean) @ self.weight @ inverse, self.variance * inverse


def fit_ppca(x: Tensor, latent_dim: int) -> PPCA:
    """Returns the maximum-likelihood model of x [N, D], at the rotation R = I (Tipping & Bishop 1999, appendix A).

        variance = mean(l_{L+1..D}),  weight = U_L (diag(l_1..l_L) - variance I)^(1/2),
        mean_log_evidence = -1/2 (D log 2 pi + sum_{j<=L} log l_j + (D - L) log variance + D),

    with l_1 >= ... >= l_D and U the eigenvalues and eigenvectors of the sample covariance (divisor N). At R = I the matrix M
    is diag(l_1..l_L), so the exact posterior is a diagonal Gaussian (Lucas et al. 2019).

    Raises:
        ValueError: latent_dim is not in 1..D-1, or latent_dim components explain x entirely (its density is unbounded).
    """
    num_rows, num_features = x.shape
    if not 1 <= latent_dim < num_features:
        raise ValueError(f"latent_dim is {latent_dim}; for {num_features} features it must be in 1..{num_features - 1}")
    mean = x.double().mean(0)
    centred = x.double() - mean
    ascending, vectors = torch.linalg.eigh(centred.mT @ centred / num_rows)
    kept, rest = ascending.flip(0).tensor_split([latent_dim])
    variance = rest.mean()
    if not variance > num_features * torch.finfo(torch.float64).eps * kept[0]:
        raise ValueError(
            f"{latent_dim} components explain {num_rows} rows of {num_features} features entirely, and the likelihood has no "
            "maximum: lower latent_dim, or add rows or features"
        )
    weight = vectors.flip(1)[:, :latent_dim] * (kept - variance).clamp(min=0).sqrt()
    log_determinant = kept.log().sum() + (num_features - latent_dim) * variance.log()
    return PPCA(weight, mean, variance, -0.5 * (num_features * LOG_2PI + log_determinant + num_features))


class FreeForm(NamedTuple):
    """The minimiser over all densities: q, shaped as the grid, and the multiplier lambda of its constraint, []."""

    q: Tensor
    multiplier: Tensor


def free_form_posterior(log_joint: Tensor, cell_volume: float) -> FreeForm:
    """Returns the q that minimises J[q] = integral q (log q - log p(x,z)) dz under integral q dz = 1, and lambda.

    log_joint holds log p(x,z) on a grid of any shape, whose cells have equal volume. Euler-Lagrange gives
    q = exp(log p(x,z) - (1 + lambda)). Lambda is the root of the constraint's residual, integral q dz - 1, found by Newton:
    the residual falls and is convex in lambda, so from any start below the root (here, where the largest cell alone holds
    mass 1) the steps rise to it and never pass it. Every exponent stays below 0. Nothing is divided by a sum: that
    1 + lambda is the log evidence is for a test to find out.

    Raises:
        ValueError: the joint is NaN or infinite somewhere, or zero everywhere.
    """
    log_mass = log_joint.double() + math.log(cell_volume)
    if not log_mass.max().isfinite():  # max passes NaN on
        raise ValueError(f"the largest log p(x,z) on the grid is {log_joint.max().item()}; it must be finite")
    multiplier = log_mass.max() - 1
    for _ in range(100):  # at most log(number of cells) steps of about 1, and then a few that square the error
        total = torch.exp(log_mass - (1 + multiplier)).sum()
        step = (total - 1) / total  # residual / -(d residual / d lambda)
        multiplier = multiplier + step
        if step.abs() < 1e-9:  # which leaves an error of about 1e-18
            return FreeForm(torch.exp(log_joint.double() - (1 + multiplier)), multiplier)
    raise AssertionError(f"Newton's last step was still {step.item()}")


def latent_grid(latent_dim: int, points_per_dim: int, limit: float = 9.0) -> tuple[Tensor, float]:
    """Returns the points [G, L] of a uniform grid on [-limit, limit]^L, and the volume of a cell.

    The prior's mass beyond 9 is under 1e-18. Sums over the grid times the volume converge faster than any power of the
    spacing once that is well below the posterior's width (the trapezoidal rule on a smooth function that vanishes at the ends).
    """
    axis = torch.linspace(-limit, limit, points_per_dim, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim), (2 * limit / (points_per_dim - 1)) ** latent_dim


def grid_log_evidence(log_likelihood: Callable[[Tensor], Tensor], points: Tensor, cell_volume: float) -> Tensor:
    """Returns log p(x) = log integral p(x|z) N(z; 0, I) dz in nats, by the sum over a grid of `latent_grid`.

    log_likelihood maps z [G, L] to log p(x|z), [G] or [G, N]; the answer is [] or [N].
    """
    log_prior = -0.5 * (points.square() + LOG_2PI).sum(-1)
    return torch.logsumexp(log_likelihood(points).double().movedim(0, -1) + log_prior, -1) + math.log(cell_volume)


def gauss_hermite_log_evidence(log_likelihood: Callable[[Tensor], Tensor], num_nodes: int, latent_dim: int = 1) -> Tensor:
    """Returns log p(x) = log integral p(x|z) N(z; 0, I) dz in nats, by a product Gauss-Hermite rule of num_nodes^L nodes.

    log_likelihood maps z [G, L] to log p(x|z), [G] or [G, N]; the answer is [] or [N]. Exact where p(x|z) is a polynomial of
    degree below 2 num_nodes in each z; a posterior narrower than the nodes' spacing, about pi / sqrt(num_nodes), needs
    `grid_log_evidence`.

    Raises:
        ValueError: num_nodes is not in 1..300. From 375 on NumPy 2.4's weights overflow; its manual vouches for 100.
    """
    if not 1 <= num_nodes <= 300:
        raise ValueError(f"num_nodes is {num_nodes}; it must be in 1..300. A finer rule than that is `grid_log_evidence`")
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(num_nodes))
    points = torch.cartesian_prod(*[nodes] * latent_dim).reshape(-1, latent_dim)
    log_weights = torch.cartesian_prod(*[weights.log() - 0.5 * LOG_2PI] * latent_dim).reshape(-1, latent_dim).sum(-1)
    return torch.logsumexp(log_likelihood(points).double().movedim(0, -1) + log_weights, -1)
