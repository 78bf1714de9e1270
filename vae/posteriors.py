"""Approximate posteriors q(z|x). Shapes: S samples, B rows, L latent dimensions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vae.precision import without_autocast

if TYPE_CHECKING:
    from vae.priors import LatentDistribution

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
# exp(-10) of the prior's width is far below what any decoder resolves; exp(5) far above what any prior explains.
MIN_LOG_SCALE, MAX_LOG_SCALE = -10.0, 5.0


class DiagonalGaussian:
    """q(z|x) = N(mean, diag(scale^2)); mean, log_scale and scale, its exponential, are [B, L]."""

    def __init__(self, mean: Tensor, log_scale: Tensor) -> None:
        self.mean, self.log_scale, self.scale = mean, log_scale, log_scale.exp()

    @staticmethod
    def num_outputs(latent_dim: int) -> int:
        """Returns the encoder outputs that name a posterior."""
        return 2 * latent_dim

    @staticmethod
    def from_outputs(outputs: Tensor, latent_dim: int) -> DiagonalGaussian:
        """Returns the posterior that an encoder's [B, 2 L] outputs name; the log scale is bounded."""
        mean, log_scale = outputs.chunk(2, -1)
        return DiagonalGaussian(mean, log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE))

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        """What it is made of."""
        return self.mean, self.log_scale

    @property
    def outputs(self) -> Tensor:
        """The encoder outputs that name this posterior, [B, 2 L]."""
        return torch.cat([self.mean, self.log_scale], -1)

    def detach(self) -> DiagonalGaussian:
        """Returns the same distribution, through whose parameters no gradient flows."""
        return DiagonalGaussian(self.mean.detach(), self.log_scale.detach())

    def take(self, index: Tensor) -> DiagonalGaussian:
        """Returns the posteriors of the rows at `index` [n]."""
        return DiagonalGaussian(self.mean[index], self.log_scale[index])

    def rsample(self, noise: Tensor) -> Tensor:
        """Returns z = mean + scale * noise, differentiable in the parameters; noise [B, L] or [S, B, L] is standard normal."""
        return self.mean + self.scale * noise

    def standardise(self, z: Tensor) -> Tensor:
        """Returns the noise of which rsample makes z, [B, L] or [S, B, L]."""
        return (z - self.mean) * torch.exp(-self.log_scale)

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log q(z|x) in nats, [B] or [S, B]."""
        return (-0.5 * self.standardise(z).square() - self.log_scale - LOG_SQRT_2PI).sum(-1)

    def log_prob_each(self, z: Tensor) -> Tensor:
        """Returns log q(z|x) of every z [.., L] under each of these B distributions, [.., B].

        By matrix products, whose sums cancel, so in float64.
        """
        mean, log_scale, z = self.mean.double(), self.log_scale.double(), z.double()
        precision = torch.exp(-2 * log_scale)
        constants = (-0.5 * mean.square() * precision - log_scale - LOG_SQRT_2PI).sum(-1)
        return z @ (mean * precision).T - 0.5 * z.square() @ precision.T + constants

    def kl_by_dimension(self, prior: LatentDistribution) -> Tensor | None:
        """Returns KL(q(z_j|x) || p(z_j)) in nats, [B, L]; None where the prior does not factorise (Kingma & Welling 2014, appendix B)."""
        if prior.is_standard:
            return 0.5 * (self.mean.square() + torch.exp(2 * self.log_scale) - 1 - 2 * self.log_scale)
        if prior.moments is None:
            return None
        mean, log_scale = prior.moments
        squares = ((self.mean - mean) * torch.exp(-log_scale)).square() + torch.exp(2 * (self.log_scale - log_scale))
        return 0.5 * (squares - 1) + log_scale - self.log_scale

    def kl(self, prior: LatentDistribution, z: Tensor | None = None) -> Tensor:
        """Returns KL(q(z|x) || p(z)) in nats, [B]: in closed form where there is one, else by samples z of q, [B, L] or [S, B, L]."""
        if prior.is_standard:
            kl: Tensor = StandardKL.apply(self.mean, self.log_scale, self.scale.detach())  # type: ignore[no-untyped-call]
            return kl
        by_dimension = self.kl_by_dimension(prior)
        return by_dimension.sum(-1) if by_dimension is not None else estimated_kl(self, prior, z)


class StandardKL(torch.autograd.Function):
    """The sum of kl_by_dimension for the standard normal prior, [..] of mean, log_scale and its exponential [.., L], in half its passes."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_scale: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(mean, scale)
        return mean.square().addcmul_(scale, scale).sub_(1).sub_(log_scale, alpha=2).sum(-1).mul_(0.5)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        mean, scale = ctx.saved_tensors
        gradient = gradient[..., None]
        return mean * gradient, scale.square().sub_(1).mul_(gradient), None


class FullGaussian(NamedTuple):
    """q(z|x) = N(mean, factor factor^T); mean [B, L], factor [B, L, L] lower triangular with a positive diagonal (Cholesky)."""

    mean: Tensor
    factor: Tensor

    @staticmethod
    def num_outputs(latent_dim: int) -> int:
        """Returns the encoder outputs that name a posterior."""
        return 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    @staticmethod
    def from_outputs(outputs: Tensor, latent_dim: int) -> FullGaussian:
        """Returns the posterior that [B, num_outputs] name: means, bounded logarithms of the factor's diagonal, what is below it."""
        mean, log_diagonal = outputs[..., : 2 * latent_dim].chunk(2, -1)
        below = outputs[..., 2 * latent_dim :]
        diagonal = log_diagonal.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE).exp()
        row, column = torch.tril_indices(latent_dim, latent_dim, -1, device=outputs.device)
        factor = torch.diag_embed(diagonal)
        factor[..., row, column] = below * diagonal[..., row]  # relative to the row's own scale
        return FullGaussian(mean, factor)

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        """What it is made of."""
        return self.mean, self.factor

    @property
    def outputs(self) -> Tensor:
        """The encoder outputs that name this posterior, [B, num_outputs]."""
        latent_dim = self.mean.shape[-1]
        row, column = torch.tril_indices(latent_dim, latent_dim, -1, device=self.mean.device)
        below = (self.factor / self.factor.diagonal(dim1=-2, dim2=-1)[..., None])[..., row, column]
        return torch.cat([self.mean, self.log_diagonal, below], -1)

    @property
    def scale(self) -> Tensor:
        """The standard deviation of each latent dimension, [B, L]."""
        return self.factor.square().sum(-1).sqrt()

    @property
    def log_diagonal(self) -> Tensor:
        return self.factor.diagonal(dim1=-2, dim2=-1).log()

    def detach(self) -> FullGaussian:
        """Returns the same distribution, through whose parameters no gradient flows."""
        return FullGaussian(self.mean.detach(), self.factor.detach())

    def take(self, index: Tensor) -> FullGaussian:
        """Returns the posteriors of the rows at `index` [n]."""
        return FullGaussian(self.mean[index], self.factor[index])

    def rsample(self, noise: Tensor) -> Tensor:
        """Returns z = mean + factor noise, differentiable in the parameters; noise [B, L] or [S, B, L] is standard normal."""
        with without_autocast(noise):
            return self.mean + (self.factor @ noise[..., None]).squeeze(-1)

    def standardise(self, z: Tensor) -> Tensor:
        """Returns the noise of which rsample makes z, [B, L] or [S, B, L]."""
        return solve_triangular(self.factor, z - self.mean)

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log q(z|x) in nats, [B] or [S, B]."""
        return (-0.5 * self.standardise(z).square() - self.log_diagonal - LOG_SQRT_2PI).sum(-1)

    def log_prob_each(self, z: Tensor) -> Tensor:
        """Returns log q(z|x) of every z [.., L] under each of these B distributions, [.., B], in float64."""
        wide = FullGaussian(self.mean.double(), self.factor.double())
        return wide.log_prob(z.double()[..., None, :])

    def kl_by_dimension(self, prior: LatentDistribution) -> Tensor | None:
        """Returns None: this posterior does not factorise."""
        return None

    def kl(self, prior: LatentDistribution, z: Tensor | None = None) -> Tensor:
        """Returns KL(q(z|x) || p(z)) in nats, [B]: in closed form where there is one, else by samples z of q, [B, L] or [S, B, L]."""
        if prior.moments is None:
            return estimated_kl(self, prior, z)
        mean, log_scale = prior.moments
        inverse = torch.exp(-log_scale)
        squares = ((self.mean - mean) * inverse).square() + self.factor.square().sum(-1) * inverse.square()
        return (0.5 * (squares - 1) + log_scale - self.log_diagonal).sum(-1)


Posterior = DiagonalGaussian | FullGaussian
POSTERIORS: dict[str, type[Posterior]] = {"diagonal": DiagonalGaussian, "full": FullGaussian}


def estimated_kl(q_z: Posterior, prior: LatentDistribution, z: Tensor | None) -> Tensor:
    """Returns log q(z|x) - log p(z), averaged over samples z of q where there are several, [B]."""
    assert z is not None, "this prior has no closed form: samples are needed"
    difference = q_z.log_prob(z) - prior.log_prob(z)
    return difference if difference.dim() == 1 else difference.mean(0)


def solve_triangular(factor: Tensor, right: Tensor) -> Tensor:
    """Returns factor^-1 right for lower triangular [.., L, L] and [.., L], broadcast."""
    with without_autocast(right):
        solved: Tensor = torch.linalg.solve_triangular(factor, right.to(factor.dtype)[..., None], upper=False).squeeze(-1)
    return solved
