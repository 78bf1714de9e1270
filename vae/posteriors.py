"""Approximate posteriors q(z|x). Shapes: S samples, B rows, L latent dimensions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vae.gradients import of_first_order
from vae.host import may_look_at
from vae.precision import without_autocast

if TYPE_CHECKING:
    from vae.priors import LatentDistribution

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
# exp(-10) of the prior's width is far below what any decoder resolves; exp(5) far above what any prior explains.
MIN_LOG_SCALE, MAX_LOG_SCALE = -10.0, 5.0


class DiagonalGaussian:
    """q(z|x) = N(mean, diag(scale^2)); mean, log_scale and scale, its exponential, are [B, L].

    encoded: the encoder outputs that name it, [B, 2 L], where it was made of them: then log_scale is bounded once it is asked for.
    """

    def __init__(self, mean: Tensor, log_scale: Tensor, encoded: Tensor | None = None) -> None:
        self.mean, self.given_log_scale, self.encoded = mean, log_scale, encoded
        # Not functools.cached_property, whose lock torch.compile cannot follow (Python 3.11).
        self._log_scale = log_scale if encoded is None else None
        self._scale: Tensor | None = None

    @property
    def log_scale(self) -> Tensor:
        if self._log_scale is None:
            self._log_scale = self.given_log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)
        return self._log_scale

    @property
    def scale(self) -> Tensor:
        if self._scale is None:
            self._scale = self.log_scale.exp()
        return self._scale

    @staticmethod
    def num_outputs(latent_dim: int) -> int:
        """Returns the encoder outputs that name a posterior."""
        return 2 * latent_dim

    @staticmethod
    def from_outputs(outputs: Tensor, latent_dim: int) -> DiagonalGaussian:
        """Returns the posterior that an encoder's [B, 2 L] outputs name; the log scale is bounded."""
        mean, log_scale = outputs.chunk(2, -1)
        return DiagonalGaussian(mean, log_scale, outputs)

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
        return torch.addcmul(self.mean, self.scale, noise)

    def rsample_with_kl(self, noise: Tensor, prior: LatentDistribution) -> tuple[Tensor, Tensor]:
        """Returns z, as rsample does, and kl(prior, z)."""
        if prior.is_standard and self.encoded is not None and noise.shape == self.mean.shape:
            z, kl = SampleWithKL.apply(self.encoded, noise)  # type: ignore[no-untyped-call]
            return z, kl
        return sampled_with_kl(self, noise, prior)

    def standardise(self, z: Tensor) -> Tensor:
        """Returns the noise of which rsample makes z, [B, L] or [S, B, L]."""
        return (z - self.mean) * torch.exp(-self.log_scale)

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log q(z|x) in nats, [B] or [S, B]."""
        return (-0.5 * self.standardise(z).square() - self.log_scale - LOG_SQRT_2PI).sum(-1)

    def log_prob_of(self, z: Tensor, noise: Tensor) -> Tensor:
        """Returns log q(z|x) in nats of z = rsample(noise), [B] or [S, B]."""
        return self.log_prob(z)

    def path_log_prob(self, z: Tensor, noise: Tensor) -> Tensor:
        """Returns the same as a function of z alone: no gradient flows through what q is made of."""
        return self.detach().log_prob(z)

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

    def kl(self, prior: LatentDistribution, z: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Returns KL(q(z|x) || p(z)) in nats, [B]: in closed form where there is one, else by z = rsample(noise), [B, L] or [S, B, L]."""
        if prior.is_standard:
            return standard_kl(self.mean, self.log_scale, self.scale)
        by_dimension = self.kl_by_dimension(prior)
        return by_dimension.sum(-1) if by_dimension is not None else estimated_kl(self, prior, z, noise)


def is_bounded(log_scale: Tensor) -> bool:
    """Whether all are seen to be within the bounds; where it is not for the host to look, they may be."""
    if log_scale.numel() == 0 or not may_look_at(log_scale):
        return False
    least, most = log_scale.aminmax()
    return bool(least >= MIN_LOG_SCALE) and bool(most <= MAX_LOG_SCALE)


def standard_kl(mean: Tensor, log_scale: Tensor, scale: Tensor) -> Tensor:
    """Returns the sum of kl_by_dimension for the standard normal prior, [..] of [.., L], in fewer passes."""
    return mean.square().addcmul_(scale, scale).sub_(1).sub_(log_scale, alpha=2).sum(-1).mul_(0.5)


class SampleWithKL(torch.autograd.Function):
    """rsample and, to the standard normal prior, kl of the diagonal posteriors that outputs [B, 2 L] name, in half of autograd's passes."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = outputs.chunk(2, -1)
        ctx.within_bounds = is_bounded(log_scale)
        bounded = log_scale if ctx.within_bounds else log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)
        scale = bounded.exp()
        ctx.save_for_backward(outputs, scale, noise)
        return torch.addcmul(mean, scale, noise), standard_kl(mean, bounded, scale)

    @staticmethod
    @of_first_order
    def backward(ctx: Any, by_z: Tensor, by_kl: Tensor) -> tuple[Tensor, None]:
        outputs, scale, noise = ctx.saved_tensors
        mean, log_scale = outputs.chunk(2, -1)
        by_kl = by_kl[..., None]
        by_log_scale = (by_z * noise).addcmul_(scale, by_kl).mul_(scale).sub_(by_kl)
        if not ctx.within_bounds:
            by_log_scale = torch.where((log_scale >= MIN_LOG_SCALE) & (log_scale <= MAX_LOG_SCALE), by_log_scale, 0.0)
        return torch.cat([torch.addcmul(by_z, mean, by_kl), by_log_scale], -1), None


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

    def rsample_with_kl(self, noise: Tensor, prior: LatentDistribution) -> tuple[Tensor, Tensor]:
        """Returns z, as rsample does, and kl(prior, z)."""
        return sampled_with_kl(self, noise, prior)

    def standardise(self, z: Tensor) -> Tensor:
        """Returns the noise of which rsample makes z, [B, L] or [S, B, L]."""
        return solve_triangular(self.factor, z - self.mean)

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log q(z|x) in nats, [B] or [S, B]."""
        return (-0.5 * self.standardise(z).square() - self.log_diagonal - LOG_SQRT_2PI).sum(-1)

    def log_prob_of(self, z: Tensor, noise: Tensor) -> Tensor:
        """Returns log q(z|x) in nats of z = rsample(noise), [B] or [S, B].

        Of the noise, which z has only up to rounding: where the factor is ill-conditioned, as an encoder may make it for a row far from
        all others, what standardise finds is larger by any factor, and a bound on log p(x) would exceed it by as much.
        """
        return (-0.5 * noise.square() - self.log_diagonal - LOG_SQRT_2PI).sum(-1)

    def path_log_prob(self, z: Tensor, noise: Tensor) -> Tensor:
        """Returns the same as a function of z alone, whose gradient is -factor^-T noise: none flows through what q is made of."""
        with torch.no_grad(), without_autocast(noise):
            score = -torch.linalg.solve_triangular(self.factor.mT, noise[..., None], upper=True).squeeze(-1)
        log_prob: Tensor = self.log_prob_of(z, noise).detach() + ((z - z.detach()) * score).sum(-1)
        return log_prob

    def log_prob_each(self, z: Tensor) -> Tensor:
        """Returns log q(z|x) of every z [.., L] under each of these B distributions, [.., B], in float64.

        One factor solves for all z at once: a copy of it for each z would take L times the memory.
        """
        wide, points = FullGaussian(self.mean.double(), self.factor.double()), z.double().reshape(-1, z.shape[-1])
        standardised = torch.linalg.solve_triangular(wide.factor, (points - wide.mean[:, None]).mT, upper=False)
        constants = (wide.log_diagonal + LOG_SQRT_2PI).sum(-1, keepdim=True)
        log_prob: Tensor = (-0.5 * standardised.square().sum(-2) - constants).mT
        return log_prob.reshape(*z.shape[:-1], len(self.mean))

    def kl_by_dimension(self, prior: LatentDistribution) -> Tensor | None:
        """Returns None: this posterior does not factorise."""
        return None

    def kl(self, prior: LatentDistribution, z: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Returns KL(q(z|x) || p(z)) in nats, [B]: in closed form where there is one, else by z = rsample(noise), [B, L] or [S, B, L]."""
        if prior.moments is None:
            return estimated_kl(self, prior, z, noise)
        mean, log_scale = prior.moments
        inverse = torch.exp(-log_scale)
        squares = ((self.mean - mean) * inverse).square() + self.factor.square().sum(-1) * inverse.square()
        return (0.5 * (squares - 1) + log_scale - self.log_diagonal).sum(-1)


Posterior = DiagonalGaussian | FullGaussian
POSTERIORS: dict[str, type[Posterior]] = {"diagonal": DiagonalGaussian, "full": FullGaussian}


def sampled_with_kl(q_z: Posterior, noise: Tensor, prior: LatentDistribution) -> tuple[Tensor, Tensor]:
    """Returns rsample(noise) and kl(prior, z), one after the other."""
    z = q_z.rsample(noise)
    with without_autocast(z):
        return z, q_z.kl(prior, z, noise)


def estimated_kl(q_z: Posterior, prior: LatentDistribution, z: Tensor | None, noise: Tensor | None) -> Tensor:
    """Returns log q(z|x) - log p(z), averaged over samples z = rsample(noise) where there are several, [B]."""
    assert z is not None, "this prior has no closed form: samples are needed"
    assert noise is not None, "the noise of which the samples were made is needed"
    difference = q_z.log_prob_of(z, noise) - prior.log_prob(z)
    return difference if difference.dim() == 1 else difference.mean(0)


def solve_triangular(factor: Tensor, right: Tensor) -> Tensor:
    """Returns factor^-1 right for lower triangular [.., L, L] and [.., L], broadcast."""
    with without_autocast(right):
        solved: Tensor = torch.linalg.solve_triangular(factor, right.to(factor.dtype)[..., None], upper=False).squeeze(-1)
    return solved
