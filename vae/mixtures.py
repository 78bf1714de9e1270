"""Mixtures of logistics: densities of numbers, and masses of integers on a grid. Shapes: S samples, B rows, D cells, K components."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae.cells import MAX_LOG_SCALE, MIN_LOG_SCALE, CellDistribution, Likelihood, uniform_like
from vae.grids import Grid, LinearGrid, WarpedGrid
from vae.heaps import Heaps, log_shares
from vae.logistic_mass import log_logistic_density
from vae.mixture_mass import log_mixture_mass, log_mixture_mass_by_hand

MAX_BASE_LOGIT = 1e3
# A component on a spike starts with this log scale in half-widths of its interval, in which it has all but 0.1 % of its mass.
SPIKE_LOG_WIDTH = -2.0


class Components(NamedTuple):
    """A mixture's parameters, [.., B, K, D] each; log_weights are normalised over K."""

    log_weights: Tensor
    location: Tensor
    log_scale: Tensor

    @property
    def mean(self) -> Tensor:
        """The expected value, [.., B, D]."""
        return (self.log_weights.exp() * self.location).sum(-2)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Returns one draw of every cell, [.., B, D]."""
        return self.draw(generator)[0]

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns one draw of every cell, and the component that it is of, [.., B, D]: a logistic number of this, by inversion."""
        sums = self.log_weights.exp().cumsum(-2)
        first = sums[..., :1, :]
        below = sums <= uniform_like(first, generator) * sums[..., -1:, :]
        component = below.sum(-2, keepdim=True)
        location, log_scale = self.location.gather(-2, component), self.log_scale.gather(-2, component)
        # Float64, whose uniform numbers reach as far out as anyone looks; 0 is not one of them.
        uniform = uniform_like(first.double(), generator).clamp_(min=2.0**-54)
        return (location + log_scale.exp() * torch.logit(uniform).to(location.dtype)).squeeze(-2), component.squeeze(-2)


class Mixture(Likelihood):
    """What likelihoods of mixtures share: decoder outputs [.., B, 3 K D] to components, around a base [K, D] that rows share.

    The base is a mixture of mean 0 and variance 1, as standardised cells have, whose components start at the normal
    quantiles of equal shares: what starts alike would stay alike. Where a cell has a spike, the first component starts on it and moves
    in units of its width: gradients would not find so narrow a place, nor an optimiser's steps stay there.
    """

    min_log_scale: Tensor
    anchor: Tensor
    reach: Tensor

    def __init__(self, size: int, num_components: int, min_log_scale: Sequence[float]) -> None:
        super().__init__()
        self.size = self.num_features = size
        self.num_outputs = 3 * num_components * size
        self.shape = (3, num_components, size)
        shares = (torch.arange(num_components, dtype=torch.float64) + 0.5) / num_components
        location = torch.special.ndtri(shares)
        # A logistic of scale s has the variance (pi s)^2 / 3.
        log_scale = 0.5 * math.log(3 * (1 - float(location.square().mean()))) - math.log(math.pi)
        self.logits = nn.Parameter(torch.zeros(num_components, size))
        self.location = nn.Parameter(location.float()[:, None].repeat(1, size))
        self.log_scale = nn.Parameter(torch.full((num_components, size), log_scale))
        self.register_buffer("min_log_scale", torch.tensor(min_log_scale, dtype=torch.float32), persistent=False)
        self.register_buffer("anchor", torch.zeros(num_components, size), persistent=False)
        self.register_buffer("reach", torch.ones(num_components, size), persistent=False)
        self.has_spikes = False

    @torch.no_grad()
    def start_on(self, spikes: Sequence[Sequence[float] | None] | None, grid: Grid) -> None:
        """Puts the first component on the spike of each cell that has one: the stored value and its share of the rows."""
        found = [(cell, *spike) for cell, spike in enumerate(spikes or []) if spike is not None]
        if not found or self.shape[1] == 1:
            return
        self.has_spikes = True
        cells = torch.tensor([cell for cell, _, _ in found])
        value, share = torch.tensor([pair for _, *pair in found], dtype=torch.float32).unbind(1)
        everywhere = self.anchor.new_zeros(1, self.size)
        everywhere[0, cells] = value
        log_scale = grid.interval(everywhere).half_width.expand(1, -1)[0, cells].log() + SPIKE_LOG_WIDTH
        self.anchor[0, cells], self.reach[0, cells] = value, log_scale.exp()
        self.location[0, cells], self.log_scale[0, cells] = 0.0, log_scale
        self.logits[0, cells] = torch.log(share * (self.shape[1] - 1) / (1 - share))

    def components(self, outputs: Tensor) -> Components:
        """Returns the mixtures that decoder outputs name."""
        logits, location, log_scale = outputs.reshape(*outputs.shape[:-1], *self.shape).unbind(-3)
        log_scale = torch.maximum(self.log_scale + log_scale, self.min_log_scale).clamp(max=MAX_LOG_SCALE)
        # The base is bounded for the sum to be finite: beyond, a component has no weight anyhow.
        log_weights = torch.log_softmax(self.logits.clamp(-MAX_BASE_LOGIT, MAX_BASE_LOGIT) + logits, -2)
        location = self.location + location
        if self.has_spikes:
            location = self.anchor + self.reach * location
        return Components(log_weights, location, log_scale)


class LogisticsCells(CellDistribution):
    """The density of a mixture of logistics."""

    def __init__(self, components: Components) -> None:
        self.components = components

    def log_prob(self, values: Tensor) -> Tensor:
        log_weights, location, log_scale = self.components
        return torch.logsumexp(log_weights + log_logistic_density(values[..., None, :], location, log_scale), -2)

    @property
    def mean(self) -> Tensor:
        return self.components.mean

    def sample(self, generator: torch.Generator) -> Tensor:
        return self.components.sample(generator)


class Logistics(Mixture):
    """Numbers of several modes. min_log_scale: per cell, how narrow a component may become; never below MIN_LOG_SCALE.

    Where values repeat, a density grows without limit as a component closes in on one: min_log_scale is what stops it.
    """

    def __init__(self, size: int, num_components: int = 5, min_log_scale: Sequence[float] | None = None) -> None:
        lowest = [MIN_LOG_SCALE] * size if min_log_scale is None else [max(number, MIN_LOG_SCALE) for number in min_log_scale]
        super().__init__(size, num_components, lowest)

    def forward(self, outputs: Tensor) -> LogisticsCells:
        return LogisticsCells(self.components(outputs))


class LogisticsMassCells(CellDistribution):
    """The mass that a mixture of logistics has in the interval of each cell's value."""

    def __init__(self, components: Components, grid: Grid) -> None:
        self.components, self.grid = components, grid

    def log_prob(self, values: Tensor) -> Tensor:
        return log_mixture_mass(self.grid.interval(values), *self.components)

    def sum_log_prob(self, values: Tensor, valid: Tensor) -> Tensor:
        return torch.where(valid, log_mixture_mass_by_hand(self.grid.interval(values), *self.components), 0.0).sum(-1)

    @property
    def mean(self) -> Tensor:
        """The mixture's mean in storage; after a warp, that of the warped number."""
        return self.grid.to_storage(self.components.mean)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Returns stored numbers; where these lie between those of integers, each rounds (in data units) to k with probability P(k)."""
        return self.grid.to_storage(self.components.sample(generator))


class HeapedMassCells(LogisticsMassCells):
    """The same where some cells' integers are rounded to multiples of a coarser step, with the log-probabilities log_shares [.., B, H] that
    they are and that they are not."""

    def __init__(self, components: Components, grid: Grid, heaps: Heaps, log_shares: tuple[Tensor, Tensor]) -> None:
        super().__init__(components, grid)
        self.heaps, self.log_shares = heaps, log_shares

    def log_prob(self, values: Tensor) -> Tensor:
        return self.log_masses(values, log_mixture_mass)

    def sum_log_prob(self, values: Tensor, valid: Tensor) -> Tensor:
        return torch.where(valid, self.log_masses(values, log_mixture_mass_by_hand), 0.0).sum(-1)

    def log_masses(self, values: Tensor, log_mass: Callable[..., Tensor]) -> Tensor:
        cells = self.heaps.cells
        intervals, is_multiple, told = self.heaps.intervals(values)
        log_weights, *parts = (part.index_select(-1, cells) for part in self.components)
        rounded, unrounded = self.heaps.log_weights(log_weights, told, self.log_shares)
        coarse = log_mass(intervals, rounded, *parts)
        all_weights = self.components.log_weights.expand(*unrounded.shape[:-1], -1).index_copy(-1, cells, unrounded)
        fine = log_mass(self.grid.interval(values), all_weights, *self.components[1:])
        alone = fine.index_select(-1, cells)
        return fine.index_copy(-1, cells, torch.where(is_multiple & told, torch.logaddexp(coarse, alone), alone))

    def sample(self, generator: torch.Generator) -> Tensor:
        drawn, component = self.components.draw(generator)
        return self.heaps.rounded(self.grid.to_storage(drawn), component, self.log_shares[0], generator)


class LogisticsMass(Mixture):
    """Integers of several modes or with spikes: each has the mass of its interval. The other arguments are the grid's.

    heaps: as Heaps takes them; None where no cell has some.
    """

    grid: Grid
    make_grid: type[Grid]

    def __init__(
        self,
        size: int,
        *grid: Any,
        num_components: int = 5,
        spikes: Sequence[Sequence[float] | None] | None = None,
        heaps: Sequence[Sequence[float] | None] | None = None,
        **more_of_grid: Any,
    ) -> None:
        made = self.make_grid(size, *grid, **more_of_grid)
        super().__init__(size, num_components, made.min_log_scale())
        self.grid = made
        self.start_on(spikes, made)
        self.heaps, self.num_of_mixtures = None, self.num_outputs
        if heaps is not None:
            self.heaps = Heaps(made, heaps, self.reach != 1)
            self.heap_scores = nn.Parameter(self.heaps.start)
            self.num_outputs += len(self.heaps.start)

    def features(self, values: Tensor) -> Tensor:
        return self.grid.features(values)

    def forward(self, outputs: Tensor) -> LogisticsMassCells:
        if self.heaps is None:
            return LogisticsMassCells(self.components(outputs), self.grid)
        mixtures, scores = outputs.tensor_split([self.num_of_mixtures], -1)
        return HeapedMassCells(self.components(mixtures), self.grid, self.heaps, log_shares(self.heap_scores + scores))


class DiscretisedLogistics(LogisticsMass):
    """On a LinearGrid."""

    grid: LinearGrid
    make_grid = LinearGrid


class WarpedDiscretisedLogistics(LogisticsMass):
    """Heavy-tailed integers, on a WarpedGrid."""

    grid: WarpedGrid
    make_grid = WarpedGrid
