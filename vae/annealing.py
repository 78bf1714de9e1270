"""Annealed importance sampling of log p(x) by Hamiltonian Monte Carlo, forward (a lower bound) and in reverse (an upper bound).

In the coordinates u of z = mean + scale u, where the start q(z) is N(u; 0, I), step t of T samples from

    p_t(u) ~ N(u; 0, I) w(u)^beta_t,    w = p(x,z) / q(z),    0 = beta_0 < .. < beta_T = 1,

with the energy |u|^2 / 2 - beta_t log w(u) (Neal 2001, "Annealed importance sampling"). Step sizes are tuned by a pilot run of chains
and random numbers of its own, row by row and temperature by temperature, and then fixed: no transition depends on the chains that are
weighed, and every one leaves its p_t invariant, so the mean weight is unbiased for p(x).

Shapes: C chains, B rows, L latent dimensions, T temperatures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vae.evidence import LogJoint, log_mean_exp
from vae.importance import error_of_log_mean
from vae.posteriors import DiagonalGaussian, Posterior
from vae.priors import LatentDistribution, Mixture
from vae.row_noise import RowNoise

FIRST_STEP_SIZE = 0.5  # in standard deviations of q
ADAPTATION_RATE = 0.2  # of the logarithm of a step size, per unit of acceptance
JITTER = 0.5  # every transition's step is up to so much longer or shorter: orbits that close on themselves lead nowhere
STEEPNESS = 4.0  # of the sigmoid that temperatures follow, as in Grosse, Ghahramani, Adams (2015)


@dataclass(frozen=True)
class Annealing:
    """num_chains: per row. num_temperatures: T; a chain makes T - 1 transitions of num_leapfrog_steps gradients each.

    target_acceptance: what the pilot run of num_pilot_chains per row tunes step sizes to.
    """

    num_chains: int = 8
    num_temperatures: int = 200
    num_leapfrog_steps: int = 5
    target_acceptance: float = 0.8
    num_pilot_chains: int = 4

    def __post_init__(self) -> None:
        if self.num_temperatures < 2:
            raise ValueError(
                f"num_temperatures is {self.num_temperatures}; annealing needs 2 at least, between which it makes a transition"
            )

    def betas(self) -> list[float]:
        """Returns beta_0 .. beta_T: densest at both ends."""
        ends = [1 / (1 + math.exp(-STEEPNESS * (2 * t / self.num_temperatures - 1))) for t in range(self.num_temperatures + 1)]
        return [(end - ends[0]) / (ends[-1] - ends[0]) for end in ends]


class AnnealedBound(NamedTuple):
    """log_weights: [C, B], in nats. acceptance: [B], the mean probability with which transitions were accepted."""

    log_weights: Tensor
    acceptance: Tensor

    @property
    def log_evidence(self) -> Tensor:
        """The log of the mean weight over chains, [B]: forward, in expectation a lower bound on log p(x)."""
        return log_mean_exp(self.log_weights)

    @property
    def standard_error(self) -> Tensor:
        """The standard error of log_evidence, [B], by the delta method; infinite with one chain."""
        num_chains = len(self.log_weights)
        if num_chains == 1:
            return torch.full_like(self.log_weights[0], torch.inf)
        squared_sum, sum_squares = 2 * self.log_weights.logsumexp(0), (2 * self.log_weights).logsumexp(0)
        return error_of_log_mean(torch.exp(squared_sum - sum_squares), num_chains)


class State(NamedTuple):
    """Where chains are: u and the gradient of log w there, [C, B, L], and log w, [C, B]."""

    u: Tensor
    log_w: Tensor
    gradient: Tensor


class Annealed:
    """The distributions between q and the posterior, for all rows of a joint."""

    def __init__(self, joint: LogJoint, start: Posterior, annealing: Annealing) -> None:
        self.joint, self.start, self.annealing = joint, start.detach(), annealing
        self.betas = annealing.betas()
        self.latent_dim = start.mean.shape[-1]

    def state(self, u: Tensor) -> State:
        """Returns the state at u [C, B, L]."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            z = self.start.rsample(u)
            log_w = self.joint(z) - self.start.log_prob_of(z, u)
            (gradient,) = torch.autograd.grad(log_w.sum(), [u])
        return State(u.detach(), log_w.detach(), gradient)

    def transition(self, state: State, beta: float, step_size: Tensor, noise: RowNoise) -> tuple[State, Tensor]:
        """Returns the state after one Metropolis-Hastings step with Hamiltonian dynamics (Neal 2011), and its acceptance, [C, B].

        step_size [B]. A path that leaves the numbers is rejected.
        """
        num_chains = len(state.u)
        p = noise.normal(num_chains, self.latent_dim)
        step = (step_size * (1 + JITTER * (2 * noise.uniform(num_chains) - 1)))[..., None]
        energy = self.energy(state, p, beta)
        new = state
        p = p - 0.5 * step * (new.u - beta * new.gradient)
        for number in range(self.annealing.num_leapfrog_steps):
            new = self.state(new.u + step * p)
            is_last = number == self.annealing.num_leapfrog_steps - 1
            p = p - (0.5 if is_last else 1.0) * step * (new.u - beta * new.gradient)
        acceptance = torch.exp(energy - self.energy(new, p, beta)).nan_to_num(nan=0.0).clamp(max=1)
        accepted = noise.uniform(num_chains) < acceptance
        chosen = (torch.where(accepted.reshape(*accepted.shape, *[1] * (a.dim() - 2)), a, b) for a, b in zip(new, state, strict=True))
        return State(*chosen), acceptance

    def energy(self, state: State, p: Tensor, beta: float) -> Tensor:
        return 0.5 * (state.u.square() + p.square()).sum(-1) - beta * state.log_w

    def tuned_step_sizes(self, noise: RowNoise) -> Tensor:
        """Returns a step size for each transition and row, [T - 1, B], from a pilot run, by Robbins and Monro's rule."""
        num_chains = self.annealing.num_pilot_chains
        state = self.state(noise.normal(num_chains, self.latent_dim))
        log_step = torch.full_like(state.log_w[0], math.log(FIRST_STEP_SIZE))
        found = []
        for beta in self.betas[1:-1]:
            state, acceptance = self.transition(state, beta, log_step.exp(), noise)
            log_step = log_step + ADAPTATION_RATE * (acceptance.mean(0) - self.annealing.target_acceptance)
            found.append(log_step.exp())
        return torch.stack(found)

    def forward(self, step_sizes: Tensor, noise: RowNoise) -> AnnealedBound:
        """Returns weights of chains from q to the posterior: their mean is unbiased for p(x), and its log a lower bound in expectation."""
        betas = self.betas
        state = self.state(noise.normal(self.annealing.num_chains, self.latent_dim))
        log_weights, accepted = (betas[1] - betas[0]) * state.log_w, torch.zeros_like(state.log_w)
        for t in range(1, self.annealing.num_temperatures):
            state, acceptance = self.transition(state, betas[t], step_sizes[t - 1], noise)
            log_weights = log_weights + (betas[t + 1] - betas[t]) * state.log_w
            accepted = accepted + acceptance
        return AnnealedBound(log_weights, accepted.mean(0) / (self.annealing.num_temperatures - 1))

    def reverse(self, z: Tensor, step_sizes: Tensor, noise: RowNoise) -> Tensor:
        """Returns an upper bound on log p(x) in expectation, in nats, [B]: all chains from one exact posterior sample z [B, L] back to q.

        The mean of 1 / w over chains is unbiased for 1 / p(x) (Grosse, Ghahramani, Adams 2015, "Sandwiching the marginal likelihood
        using bidirectional Monte Carlo").
        """
        betas = self.betas
        state = self.state(self.start.standardise(z).expand(self.annealing.num_chains, -1, -1))
        log_weights = (betas[-1] - betas[-2]) * state.log_w
        for t in range(self.annealing.num_temperatures - 1, 0, -1):
            state, _ = self.transition(state, betas[t], step_sizes[t - 1], noise)
            log_weights = log_weights + (betas[t] - betas[t - 1]) * state.log_w
        return -log_mean_exp(-log_weights)


def prior_start(prior: LatentDistribution, like: Posterior) -> DiagonalGaussian:
    """Returns the Gaussian of independent dimensions with the means and variances of p(z), or p(z|c), for each of the rows of `like`.

    It is p(z) itself where that is a normal one; annealing is valid from any.
    """
    if prior.moments is not None:
        mean, log_scale = (part.to(like.mean) for part in prior.moments)
    else:
        assert isinstance(prior, Mixture)
        weights, components = prior.log_weights.softmax(0).to(like.mean), prior.components
        mean = weights @ components.mean
        log_scale = 0.5 * (weights @ (components.scale.square() + (components.mean - mean).square())).log()
    return DiagonalGaussian(mean.expand_as(like.mean), log_scale.expand_as(like.mean))
