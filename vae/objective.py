"""What is maximised. Shapes: K importance samples, B rows of this worker, L latent dimensions.

The plain ELBO is what is reported, whatever is optimised: every objective returns it beside its loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae.checks import require_known
from vae.model import VAE, Bound
from vae.rows import Rows

# Takes a tensor and returns its sum over all workers.
SumOverWorkers = Callable[[Tensor], Tensor]


def alone(own: Tensor) -> Tensor:
    return own


@dataclass(frozen=True)
class Objective:
    """kind: "elbo", or "iwae", the importance-weighted bound of num_importance_samples (Burda, Grosse, Salakhutdinov 2016).

    free_bits: nats per latent dimension below which the mean KL over the global batch costs nothing (Kingma et al. 2016); where the KL has
    no parts by dimension, L times that below which all of it does not.
    doubly_reparameterised: of "iwae", the encoder's gradient of lower variance (Tucker et al. 2019).

    Raises:
        ValueError: what would be ignored: another kind, fewer samples than one, free bits of "iwae", whose bound has no KL of its own.
    """

    kind: str = "elbo"
    num_importance_samples: int = 1
    free_bits: float = 0.0
    doubly_reparameterised: bool = True

    def __post_init__(self) -> None:
        require_known("the kind of objective", self.kind, ("elbo", "iwae"))
        if self.num_importance_samples < 1:
            raise ValueError(f"num_importance_samples is {self.num_importance_samples}; the bound needs one at least")
        if self.kind == "iwae" and self.free_bits:
            raise ValueError(f"free_bits is {self.free_bits}; it must be 0 with iwae, whose bound has no KL of its own")

    @property
    def num_samples(self) -> int:
        """Samples of z per row."""
        return self.num_importance_samples if self.kind == "iwae" else 1


class Loss(nn.Module):
    """A model and what is to be minimised of it: what DistributedDataParallel wraps."""

    def __init__(self, model: VAE, objective: Objective, sum_over_workers: SumOverWorkers = alone) -> None:
        super().__init__()
        self.model, self.objective, self.sum_over_workers = model, objective, sum_over_workers

    def forward(self, rows: Rows, noise: Tensor, beta: float | Tensor) -> tuple[Tensor, Bound]:
        """Returns the loss summed over rows, and the plain bound; noise [B, L] or [B, K, L], beta: the KL's weight."""
        if self.objective.kind == "iwae":
            return self._importance_weighted(rows, noise, beta)
        if not self.objective.free_bits:
            bound: Bound = self.model(rows, noise)
            return -(bound.expected_log_likelihood + bound.null_pattern - beta * bound.kl).sum(), bound
        return self._with_free_bits(rows, noise, beta)

    def _with_free_bits(self, rows: Rows, noise: Tensor, beta: float | Tensor) -> tuple[Tensor, Bound]:
        q_z, condition = self.model.posterior(rows), self.model.condition(rows)
        z = q_z.rsample(noise)
        p_x, p_z = self.model.likelihood(z, condition), self.model.latent_prior(condition)
        parts = q_z.kl_by_dimension(p_z)
        parts = q_z.kl(p_z, z, noise)[:, None] if parts is None else parts
        log_likelihood, null_pattern, kl = p_x.log_prob(rows), p_x.null_pattern_log_prob(rows), parts.sum(-1)
        free = self.objective.free_bits * (q_z.mean.shape[-1] / parts.shape[-1])
        own = torch.cat([parts.detach().double().sum(0), parts.new_full((1,), float(rows.num_rows)).double()])
        sums = self.sum_over_workers(own)
        costs = (sums[:-1] / sums[-1] > free).to(parts.dtype)  # max(free, mean) has the mean's gradient above it, and none below
        loss = -(log_likelihood + null_pattern).sum() + beta * (parts * costs).sum()
        return loss, Bound(log_likelihood - kl, log_likelihood, kl, null_pattern)

    def _importance_weighted(self, rows: Rows, noise: Tensor, beta: float | Tensor) -> tuple[Tensor, Bound]:
        q_z, condition = self.model.posterior(rows), self.model.condition(rows)
        noise = (noise if noise.dim() == 3 else noise[:, None]).movedim(1, 0)
        z = q_z.rsample(noise)
        p_x, p_z = self.model.likelihood(z, condition), self.model.latent_prior(condition)
        reparameterised_twice = self.objective.doubly_reparameterised
        log_q = q_z.path_log_prob(z, noise) if reparameterised_twice else q_z.log_prob_of(z, noise)
        log_ratio = p_z.log_prob(z) - log_q
        log_likelihood, null_pattern = p_x.log_prob(rows), p_x.null_pattern_log_prob(rows)
        log_w = log_likelihood + null_pattern + beta * log_ratio
        if reparameterised_twice:
            weights = log_w.detach().softmax(0)
            if z.requires_grad:
                # Of w (1 - beta + beta w), the gradient's factor in z, the loss below has one w. It is w^2 for the bound itself, beta 1.
                factor = 1 - beta + beta * weights[..., None]
                z.register_hook(lambda gradient: gradient * factor.to(gradient.dtype))  # type: ignore[no-untyped-call]
            loss = -(weights * log_w).sum()
        else:
            loss = -(torch.logsumexp(log_w, 0) - math.log(len(log_w))).sum()
        elbo = (log_likelihood + log_ratio).detach().mean(0)
        kl = q_z.kl(p_z, z, noise).detach()
        return loss, Bound(elbo, elbo + kl, kl, null_pattern.detach().mean(0) if null_pattern.dim() > 1 else null_pattern)
