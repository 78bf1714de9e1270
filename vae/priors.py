"""Priors p(z), or p(z|c) of a condition c: modules that return distributions. Shapes: B rows, L latent dimensions, K components.

An unconditional prior's distribution gives any number of rows, a conditional one's a row for each row of the condition.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vae.linear import Linear
from vae.posteriors import DiagonalGaussian, Posterior

# Pseudo-inputs begin near the average row, whose standardised features are 0, and this far apart.
PSEUDO_INPUT_SCALE = 0.1
# Means of a mixture's components begin this far apart, in standard deviations of the components.
MIXTURE_SCATTER = 0.1
# Between 3 and 30 held-out ELBOs are alike (benchmarks/README.md).
GAIN = 10.0


class LatentDistribution(Protocol):
    """A distribution over z. moments: the means and log scales of independent normal dimensions, [L] or [B, L]; None: it is not that."""

    @property
    def is_standard(self) -> bool: ...

    @property
    def moments(self) -> tuple[Tensor, Tensor] | None: ...

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log p(z) in nats, over the last dimension of z [.., L]."""

    def sample(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Returns num_rows draws, [num_rows, L], on the generator's device."""


class Sizes(NamedTuple):
    """What a prior may need to know of the model. num_features: of what the encoder sees, the condition's included."""

    latent_dim: int
    num_features: int = 0
    condition_size: int = 0
    hidden_dims: Sequence[int] = ()
    num_components: int = 1


# The model's encoder, from what it sees of rows [K, F] to their posteriors.
Encode = Callable[[Tensor], Posterior]


class Prior(nn.Module, ABC):
    """A prior: what is learned of it, and its distribution."""

    @abstractmethod
    def forward(self, encode: Encode, condition: Tensor | None) -> LatentDistribution:
        """Returns p(z), or p(z|c) for the condition's rows [B, C]."""


class Standard(Prior):
    """N(0, I)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.distribution = StandardNormal(sizes.latent_dim)

    def forward(self, encode: Encode, condition: Tensor | None) -> LatentDistribution:
        return self.distribution


class StandardNormal:
    """p(z) = N(0, I)."""

    is_standard = True

    def __init__(self, latent_dim: int) -> None:
        self.latent_dim = latent_dim

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(()), torch.zeros(())

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log p(z) in nats, over the last dimension of z [..., L]."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Returns num_rows draws, [num_rows, L], on the generator's device."""
        return torch.randn(num_rows, self.latent_dim, generator=generator, device=generator.device)


class Mixture(NamedTuple):
    """sum_k weight_k N_k(z): K Gaussians, and the logarithms of their weights, [K]."""

    components: Posterior
    log_weights: Tensor

    @property
    def is_standard(self) -> bool:
        return False

    @property
    def moments(self) -> None:
        return None

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log p(z) in nats, over the last dimension of z [.., L]."""
        each = self.components.log_prob_each(z) + self.log_weights.double()
        return torch.logsumexp(each, -1).to(z.dtype)

    def sample(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Returns num_rows draws, [num_rows, L]; components by inverting the weights' distribution function."""
        ends = self.log_weights.double().softmax(0).cumsum(0).to(generator.device)
        uniform = torch.rand(num_rows, generator=generator, device=generator.device, dtype=torch.float64)
        index = torch.searchsorted(ends, uniform * ends[-1], right=True).clamp(max=len(ends) - 1)
        shape = (num_rows, self.components.mean.shape[-1])
        noise = torch.randn(shape, generator=generator, device=generator.device)
        mean = self.components.mean
        return self.components.take(index.to(mean.device)).rsample(noise.to(mean))


class GaussianMixture(Prior):
    """p(z): a mixture of K diagonal Gaussians, all of which are learned (Dilokthanakul et al. 2016). It starts as about N(0, I).

    Its parameters are a GAIN-th of what they stand for: Adam moves each by about its learning rate a step, which is too slow in units of z
    for components that are to follow the encoder.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.scaled_mean = nn.Parameter(MIXTURE_SCATTER / GAIN * torch.randn(sizes.num_components, sizes.latent_dim))
        self.scaled_log_scale = nn.Parameter(torch.zeros(sizes.num_components, sizes.latent_dim))
        self.scaled_logits = nn.Parameter(torch.zeros(sizes.num_components))

    def forward(self, encode: Encode, condition: Tensor | None) -> LatentDistribution:
        outputs = GAIN * torch.cat([self.scaled_mean, self.scaled_log_scale], -1)
        components = DiagonalGaussian.from_outputs(outputs, self.scaled_mean.shape[-1])
        return Mixture(components, (GAIN * self.scaled_logits).log_softmax(0))

    @torch.no_grad()
    def set(self, mixture: Mixture) -> None:
        """Takes over a mixture of as many diagonal Gaussians."""
        mean, log_scale = mixture.components.parameters
        for mine, given in ((self.scaled_mean, mean), (self.scaled_log_scale, log_scale), (self.scaled_logits, mixture.log_weights)):
            mine.copy_(given / GAIN)


class VampPrior(Prior):
    """p(z) = 1/K sum_k q(z|u_k): the posteriors of K learned pseudo-inputs u_k (Tomczak & Welling 2018)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.pseudo_inputs = nn.Parameter(PSEUDO_INPUT_SCALE * torch.randn(sizes.num_components, sizes.num_features))

    def forward(self, encode: Encode, condition: Tensor | None) -> LatentDistribution:
        count = len(self.pseudo_inputs)
        return Mixture(encode(self.pseudo_inputs), self.pseudo_inputs.new_full((count,), -math.log(count)))


class Normal(NamedTuple):
    """Independent normal dimensions; mean and log_scale are [B, L]."""

    mean: Tensor
    log_scale: Tensor

    @property
    def is_standard(self) -> bool:
        return False

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.log_scale

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log p(z) in nats, over the last dimension of z [.., B, L]."""
        return DiagonalGaussian(self.mean, self.log_scale).log_prob(z)

    def sample(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Returns one draw for each of the num_rows rows of the condition, [num_rows, L]."""
        assert num_rows == len(self.mean)
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.mean + self.log_scale.exp() * noise.to(self.mean)


class ConditionalNormal(Prior):
    """p(z|c) = N(mean(c), diag(scale(c)^2)) by a network of one hidden layer that starts as N(0, I) (Sohn, Lee, Yan 2015)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        if not sizes.condition_size:
            raise ValueError("the conditional prior needs a condition, and the model has none")
        width = sizes.hidden_dims[-1] if sizes.hidden_dims else sizes.latent_dim
        self.hidden, self.out = Linear(sizes.condition_size, width), Linear(width, 2 * sizes.latent_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.latent_dim = sizes.latent_dim

    def forward(self, encode: Encode, condition: Tensor | None) -> LatentDistribution:
        assert condition is not None
        outputs = self.out(torch.relu(self.hidden(condition))).to(condition.dtype)
        told = DiagonalGaussian.from_outputs(outputs, self.latent_dim)
        return Normal(told.mean, told.log_scale)


PRIORS: dict[str, type[Prior]] = {"standard": Standard, "mixture": GaussianMixture, "vamp": VampPrior, "conditional": ConditionalNormal}
