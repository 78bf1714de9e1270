"""Numbers with atoms: values that have a probability each, beside a density of all others.

Shapes: S samples, B rows, D cells, A atoms of a cell at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vae.cells import uniform_like
from vae.mixtures import Components, Logistics, LogisticsCells

# Of the atoms together and of the rest: what training rows never held may come.
MIN_SHARE = 1e-4
# Scores are bounded for their differences to be finite, and sums of these with a log-density.
MAX_SCORE = 1e30


class SpikedCells(LogisticsCells):
    """A mixture's density, and log-probabilities [.., B, D, 1 + A]: first that of no atom, then those of the `atoms` [D, A] (NaN: none).

    log_prob is a log-probability on an atom and a log-density elsewhere; sum and integral of both are 1 together.
    """

    def __init__(self, components: Components, log_shares: Tensor, atoms: Tensor) -> None:
        super().__init__(components)
        self.log_shares, self.atoms = log_shares, atoms

    def log_prob(self, values: Tensor) -> Tensor:
        on_atom = values[..., None] == self.atoms
        log_share = torch.where(on_atom, self.log_shares[..., 1:], 0.0).sum(-1)
        return torch.where(on_atom.any(-1), log_share, self.log_shares[..., 0] + super().log_prob(values))

    @property
    def mean(self) -> Tensor:
        shares = self.log_shares.exp()
        return shares[..., 0] * super().mean + (shares[..., 1:] * self.atoms.nan_to_num()).sum(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Returns one draw of every cell: which atom it is, or none, by inversion, and of none a number of the density."""
        rest = super().sample(generator)[..., None]
        sums = self.log_shares.exp().cumsum(-1)
        chosen = (sums <= uniform_like(rest, generator) * sums[..., -1:]).sum(-1, keepdim=True)
        return torch.cat([rest, self.atoms.nan_to_num().expand(*rest.shape[:-1], -1)], -1).gather(-1, chosen).squeeze(-1)


class SpikedLogistics(Logistics):
    """Numbers many of which are exactly some values: these have probabilities, the others a mixture of logistics.

    atom_shares: of each cell, the stored values and their shares of the rows, from which the probabilities start. (Models that had them
    as numbers among their features named them otherwise, and are refused.)
    """

    atoms: Tensor
    start: Tensor
    flagged: Tensor
    cell_of: Tensor

    def __init__(
        self,
        size: int,
        atom_shares: Sequence[Sequence[Sequence[float]]],
        num_components: int = 5,
        min_log_scale: Sequence[float] | None = None,
    ) -> None:
        super().__init__(size, num_components, min_log_scale)
        if len(atom_shares) != size or not all(atom_shares):
            raise ValueError(f"spiked_logistics: atoms of {size} cells are needed, one or more each; they are {atom_shares}")
        most = max(map(len, atom_shares))
        places, start = torch.full((size, most), torch.nan), torch.full((size, 1 + most), -torch.inf)
        for cell, found in enumerate(atom_shares):
            values, shares = torch.tensor(found, dtype=torch.float32).unbind(1)
            places[cell, : len(found)] = values
            start[cell, : 1 + len(found)] = torch.cat([1 - shares.sum(0, keepdim=True), shares]).clamp(min=MIN_SHARE).log()
        self.register_buffer("atoms", places, persistent=False)
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("flagged", (~places.isnan()).flatten().nonzero().squeeze(1), persistent=False)
        self.register_buffer("cell_of", torch.cat([torch.arange(size), self.flagged // most]), persistent=False)
        self.num_features, self.num_rest = len(self.cell_of), self.num_outputs
        self.num_outputs += start.numel()

    def features(self, values: Tensor) -> Tensor:
        """Returns the numbers, 0 of those on an atom, which may be far from them, and a flag for each atom, [B, D + all atoms]."""
        on_atom = values[..., None] == self.atoms
        flags = on_atom.flatten(-2).index_select(-1, self.flagged)
        return torch.cat([values.masked_fill(on_atom.any(-1), 0.0), flags.to(values.dtype)], -1)

    def observed_features(self, values: Tensor, valid: Tensor) -> Tensor:
        return super().observed_features(values, valid.expand(values.shape)[:, self.cell_of])

    def cell_of_feature(self) -> Tensor:
        return self.cell_of

    def forward(self, outputs: Tensor) -> SpikedCells:
        rest, shares = torch.split(outputs, [self.num_rest, self.start.numel()], -1)
        scores = shares.reshape(*shares.shape[:-1], *self.start.shape).clamp(-MAX_SCORE, MAX_SCORE)
        log_shares = torch.log_softmax(self.start + scores, -1)
        return SpikedCells(self.components(rest), log_shares, self.atoms)
