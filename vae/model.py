"""The model: encoder q(z|x), prior p(z) and decoder p(x|z) over the fields of a row.

A conditional model has fields c that it is told and does not model: encoder q(z|x,c), decoder p(x|z,c), a bound on log p(x|c).
Shapes: S samples, B rows, L latent dimensions, D cells of a field, F features of a row, C features of its condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae.likelihoods import LIKELIHOODS, CellDistribution, Likelihood, without_missing
from vae.networks import NETWORKS
from vae.posteriors import DiagonalGaussian
from vae.priors import PRIORS
from vae.rows import Rows


class Bound(NamedTuple):
    """The evidence lower bound and its two parts, [B] each, in nats per row in data units; elbo = first - second."""

    elbo: Tensor
    expected_log_likelihood: Tensor
    kl: Tensor


class RowDistribution:
    """p(x|z): one distribution per field, independent given z."""

    def __init__(self, fields: dict[str, CellDistribution]) -> None:
        self.fields = fields

    def log_prob(self, rows: Rows) -> Tensor:
        """Returns log p(x_observed|z) in nats in data units, [B] or [S, B]; missing cells contribute exactly 0."""
        total = rows.log_jacobian
        for name, distribution in self.fields.items():
            valid = rows.valid[name]
            total = total + distribution.sum_log_prob(without_missing(rows.values[name], valid), valid)
        return total

    def cell_log_probs(self, rows: Rows) -> dict[str, Tensor]:
        """Returns log p of every cell in its stored units, 0 where it is missing: field -> [B, D] or [S, B, D]."""
        result = {}
        for name, distribution in self.fields.items():
            valid = rows.valid[name]
            log_prob = distribution.log_prob(without_missing(rows.values[name], valid))
            result[name] = torch.where(valid, log_prob, 0.0)
        return result


class VAE(nn.Module):
    """A VAE with a diagonal Gaussian posterior over rows of several fields.

    fields: one mapping per field with "name", "likelihood" (a key of LIKELIHOODS), "valid_size" (validity flags per row: 1
        or the number of cells), the likelihood's own arguments and, optionally, "with_flags": false where training rows have no
        nulls, so that the encoder sees no flags. The mapping is plain JSON: the bundle stores it.
    condition_fields: the same for what the model is conditioned on; their likelihoods only make features of them.
    """

    def __init__(
        self,
        fields: Sequence[Mapping[str, Any]],
        latent_dim: int,
        hidden_dims: Sequence[int] = (256, 256),
        network: str = "mlp",
        prior: str = "standard",
        condition_fields: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        self.architecture = {
            "fields": [dict(field) for field in fields],
            "latent_dim": latent_dim,
            "hidden_dims": list(hidden_dims),
            "network": network,
            "prior": prior,
        } | ({"condition_fields": [dict(field) for field in condition_fields]} if condition_fields else {})
        self.latent_dim = latent_dim
        self.flag_sizes = {field["name"]: num_flags(field) for field in [*fields, *condition_fields]}
        self.likelihoods = nn.ModuleDict({field["name"]: build_likelihood(field) for field in fields})
        self.conditions = nn.ModuleDict({field["name"]: without_parameters(build_likelihood(field)) for field in condition_fields})
        likelihoods = self._likelihoods()
        self.condition_size = self._num_features(self._conditions())
        build = NETWORKS[network]
        self.encoder = build(self._num_features(likelihoods) + self.condition_size, hidden_dims, 2 * latent_dim)
        num_outputs = sum(lik.num_outputs for lik in likelihoods.values())
        self.decoder = build(latent_dim + self.condition_size, list(reversed(hidden_dims)), num_outputs)
        self.prior = PRIORS[prior](latent_dim)

    def _likelihoods(self) -> dict[str, Likelihood]:
        return dict(self.likelihoods.items())  # type: ignore[arg-type]

    def _conditions(self) -> dict[str, Likelihood]:
        return dict(self.conditions.items())  # type: ignore[arg-type]

    def _num_features(self, fields: Mapping[str, Likelihood]) -> int:
        return sum(likelihood.num_features + self.flag_sizes[name] for name, likelihood in fields.items())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def features(self, rows: Rows) -> Tensor:
        """Returns what the encoder sees, [B, F + C]: per field its cells, 0 where missing, then, where it has them, observed flags."""
        return self._features(rows, self._likelihoods() | self._conditions())

    def condition(self, rows: Rows) -> Tensor | None:
        """Returns what encoder and decoder are told of the condition, [B, C], from rows with these fields; None without a condition."""
        return self._features(rows, self._conditions()) if self.condition_size else None

    def _features(self, rows: Rows, fields: Mapping[str, Likelihood]) -> Tensor:
        features = []
        for name, likelihood in fields.items():
            valid, flag_size = rows.valid[name], self.flag_sizes[name]
            features.append(likelihood.observed_features(rows.values[name], valid))
            if flag_size:
                flags = valid if valid.shape[1] == flag_size else valid.any(1, keepdim=True).expand(-1, flag_size)
                features.append(flags.to(self.dtype))
        return (torch.cat(features, 1) if len(features) > 1 else features[0]).to(self.dtype)

    def posterior(self, rows: Rows) -> DiagonalGaussian:
        """Returns q(z|x), of a conditional model q(z|x,c), parameters [B, L]."""
        return DiagonalGaussian.from_outputs(self.encoder(self.features(rows)).to(self.dtype))

    def likelihood(self, z: Tensor, condition: Tensor | None = None) -> RowDistribution:
        """Returns p(x|z) for z [B, L] or [S, B, L]; of a conditional model p(x|z,c) for its `condition` of rows, [B, C]."""
        assert (condition is not None) == (self.condition_size > 0)
        likelihoods = self._likelihoods()
        inputs = z if condition is None else torch.cat([z, condition.expand(*z.shape[:-1], -1)], -1)
        outputs = self.decoder(inputs).to(self.dtype).split([lik.num_outputs for lik in likelihoods.values()], -1)
        return RowDistribution({name: lik(out) for (name, lik), out in zip(likelihoods.items(), outputs, strict=True)})

    def elbo(self, rows: Rows, noise: Tensor) -> Bound:
        """Returns the one-sample bound with the KL in closed form; noise [B, L] is standard normal."""
        q_z = self.posterior(rows)
        log_likelihood = self.likelihood(q_z.rsample(noise), self.condition(rows)).log_prob(rows)
        kl = q_z.kl(self.prior)
        return Bound(log_likelihood - kl, log_likelihood, kl)

    def evaluate_elbo(self, rows: Rows, noise: Tensor, q_z: DiagonalGaussian | None = None) -> Bound:
        """Returns the bound for reporting: the same expectation with less noise. q_z: posterior(rows), from who has it already.

        log p(x,z) - log q(z|x), averaged over noise [S, B, L], has the ELBO as its expectation and no variance at all where
        q is the exact posterior (Roeder et al. 2017); the expected log-likelihood is this plus the closed-form KL.
        """
        q_z = self.posterior(rows) if q_z is None else q_z
        z = q_z.rsample(noise)
        elbo = (self.likelihood(z, self.condition(rows)).log_prob(rows) + self.prior.log_prob(z) - q_z.log_prob(z)).mean(0)
        kl = q_z.kl(self.prior)
        return Bound(elbo, elbo + kl, kl)

    def forward(self, rows: Rows, noise: Tensor) -> Bound:
        """The same as elbo; what DistributedDataParallel wraps."""
        return self.elbo(rows, noise)

    @torch.no_grad()
    def generate(self, num_rows: int, generator: torch.Generator, condition: Tensor | None = None) -> dict[str, Tensor]:
        """Returns new rows: z from the prior, then every cell from p(x|z), or p(x|z,c) for the rows' `condition` [num_rows, C].

        field -> [num_rows, D] in the field's storage.
        """
        z = self.prior.sample(num_rows, generator).to(self.device, self.dtype)
        return {name: cells.sample(generator) for name, cells in self.likelihood(z, condition).fields.items()}


def build_likelihood(field: Mapping[str, Any]) -> Likelihood:
    arguments = {key: value for key, value in field.items() if key not in ("name", "likelihood", "valid_size", "with_flags")}
    return LIKELIHOODS[field["likelihood"]](**arguments)


def without_parameters(likelihood: Likelihood) -> Likelihood:
    """Returns the likelihood with nothing to learn, which only a density needs: it makes features of a condition."""
    for name, _ in list(likelihood.named_parameters()):
        delattr(likelihood, name)
    return likelihood


def num_flags(field: Mapping[str, Any]) -> int:
    return int(field["valid_size"]) * bool(field.get("with_flags", True))
