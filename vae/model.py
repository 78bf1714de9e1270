"""The model: encoder q(z|x), prior p(z) and decoder p(x|z) over the fields of a row.

A conditional model has fields c that it is told and does not model: encoder q(z|x,c), decoder p(x|z,c), a bound on log p(x|c).
Where rows have nulls, which cells are there may be modelled too: m, one flag for every nullable column or element, with p(m|z) of them.
Shapes: S samples, B rows, L latent dimensions, D cells of a field, F features of a row, C features of its condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae.categories import Categorical
from vae.checks import check_fields, require_known
from vae.convolutions import FusedDecoder, FusedEncoder, Image, is_image
from vae.input_layer import OneHot, dense, zeros_cost
from vae.likelihoods import LIKELIHOODS, Likelihood
from vae.networks import NETWORKS
from vae.null_pattern import NullPattern
from vae.posteriors import POSTERIORS, Posterior
from vae.precision import without_autocast
from vae.priors import PRIORS, LatentDistribution, Sizes
from vae.row_distribution import RowDistribution
from vae.rows import Rows

# What a field says of itself to the model, and not to its likelihood.
FIELD_KEYS = ("name", "likelihood", "valid_size", "with_flags", "null_pattern", "null_rates", "null_list_rate", "shape", "binarize")


class Bound(NamedTuple):
    """The evidence lower bound and its two parts, [B] each, in nats per row in data units; elbo = first - second.

    null_pattern: E_q[log p(m|z)] of the modelled flags, which is no part of the others: elbo + null_pattern bounds log p(x_observed, m).
    """

    elbo: Tensor
    expected_log_likelihood: Tensor
    kl: Tensor
    null_pattern: Tensor


class VAE(nn.Module):
    """A VAE over rows of several fields.

    fields: one mapping per field with "name", "likelihood" (a key of LIKELIHOODS), "valid_size" (validity flags per row: 1
        or the number of cells), the likelihood's own arguments and, optionally, "with_flags": false where training rows have no
        nulls, so that the encoder sees no flags; "null_pattern": the flags whose distribution is modelled, with "null_rates" of the
        training rows, from which it starts, and "null_list_rate" of a list that in some rows is null as a whole and in others has null
        elements, whose flags are those of its elements; "shape" of an image's cells; "binarize": whether its pixels are drawn anew as 0
        or 255. The mapping is plain JSON: the bundle stores it.
    network: a key of NETWORKS, or "conv": convolutions for fields with an image's shape, beside a residual network for the others;
        decoder_network: the decoder's, where it is another.
    posterior: a key of POSTERIORS. prior: standard, mixture or vamp, of num_prior_components; conditional: p(z|c).
    condition_fields: like fields, for what the model is conditioned on; their likelihoods only make features of them.

    Parameters are float32 or float64; bfloat16 is for the networks' products alone, by torch.autocast: densities would lose their digits.

    Raises:
        ValueError: a name that is not known, or fields that make no model.
    """

    like: Tensor

    def __init__(
        self,
        fields: Sequence[Mapping[str, Any]],
        latent_dim: int,
        hidden_dims: Sequence[int] = (256, 256),
        network: str = "mlp",
        prior: str = "standard",
        condition_fields: Sequence[Mapping[str, Any]] = (),
        posterior: str = "diagonal",
        num_prior_components: int = 100,
        decoder_network: str | None = None,
    ) -> None:
        super().__init__()
        check_fields([*fields, *condition_fields], LIKELIHOODS)
        require_known("prior", prior, PRIORS)
        require_known("posterior", posterior, POSTERIORS)
        for name in (network, decoder_network or network):
            require_known("network", name, [*NETWORKS, "conv"])
        self.architecture: dict[str, Any] = {
            "fields": [dict(field) for field in fields],
            "latent_dim": latent_dim,
            "hidden_dims": list(hidden_dims),
            "network": network,
            "prior": prior,
            "posterior": posterior,
            "num_prior_components": num_prior_components,
            "decoder_network": decoder_network,
        } | ({"condition_fields": [dict(field) for field in condition_fields]} if condition_fields else {})
        self.latent_dim = latent_dim
        self.flag_sizes = {field["name"]: num_flags(field) for field in [*fields, *condition_fields]}
        self.likelihoods = nn.ModuleDict({field["name"]: build_likelihood(field) for field in fields})
        self.conditions = nn.ModuleDict({field["name"]: without_parameters(build_likelihood(field)) for field in condition_fields})
        likelihoods = self._likelihoods()
        self.condition_size = self._num_features(self._conditions())
        self.null_pattern = NullPattern(fields)
        self.binarised = {field["name"]: field["size"] for field in fields if field.get("binarize")}
        self.posterior_family = POSTERIORS[posterior]
        num_features = self._num_features(likelihoods) + self.condition_size
        self.output_sizes = [likelihood.num_outputs for likelihood in likelihoods.values()]
        num_outputs = sum(self.output_sizes) + self.null_pattern.num_outputs
        sizes = (num_features, self.posterior_family.num_outputs(latent_dim)), (latent_dim + self.condition_size, num_outputs)
        self.encoder, self.decoder = build_networks(network, decoder_network or network, hidden_dims, *sizes, self._images())
        begins_with_weights = network == "linear" or (network != "conv" and len(hidden_dims) > 0)  # an InputLayer, which takes parts
        categorical = any(isinstance(part, Categorical) for part in (likelihoods | self._conditions()).values())
        self.has_one_hot = begins_with_weights and categorical
        self.prior = PRIORS[prior](Sizes(latent_dim, num_features, self.condition_size, hidden_dims, num_prior_components))
        # Where the parameters are, and of their type: every step asks several times, and to look for a parameter takes its time.
        self.register_buffer("like", torch.empty(0), persistent=False)

    def _images(self) -> list[tuple[Image, Image, int]]:
        """Returns the fields that can be convolved: where each begins among the features and among the outputs, outputs per cell."""
        found, feature, output = [], 0, 0
        shapes = {field["name"]: field.get("shape") for field in self._field_mappings()}
        for name, likelihood in self._likelihoods().items():
            if is_image(shapes[name]) and likelihood.num_features == likelihood.size:
                shape, per_cell = tuple(shapes[name] or ()), likelihood.num_outputs // likelihood.size
                found.append((Image(feature, shape), Image(output, shape), per_cell))
            feature += likelihood.num_features + self.flag_sizes[name]
            output += likelihood.num_outputs
        return found

    def _field_mappings(self) -> list[dict[str, Any]]:
        fields: list[dict[str, Any]] = self.architecture["fields"]
        return fields

    def _likelihoods(self) -> dict[str, Likelihood]:
        return dict(self.likelihoods.items())  # type: ignore[arg-type]

    def _conditions(self) -> dict[str, Likelihood]:
        return dict(self.conditions.items())  # type: ignore[arg-type]

    def _num_features(self, fields: Mapping[str, Likelihood]) -> int:
        return sum(likelihood.num_features + self.flag_sizes[name] for name, likelihood in fields.items())

    @property
    def device(self) -> torch.device:
        return self.like.device

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def num_binarised(self) -> int:
        """The pixels of a row that are drawn anew as 0 or 255."""
        return sum(self.binarised.values())

    def features(self, rows: Rows) -> Tensor:
        """Returns what the encoder sees, [B, F + C]: per field its cells, 0 where missing, then, where it has them, observed flags."""
        return self._features(rows, self._likelihoods() | self._conditions())

    def condition(self, rows: Rows) -> Tensor | None:
        """Returns what encoder and decoder are told of the condition, [B, C], from rows with these fields; None without a condition."""
        return self._features(rows, self._conditions()) if self.condition_size else None

    def _features(self, rows: Rows, fields: Mapping[str, Likelihood]) -> Tensor:
        return dense(self._parts(rows, fields))

    def _parts(self, rows: Rows, fields: Mapping[str, Likelihood]) -> list[Tensor | OneHot]:
        parts: list[Tensor | OneHot] = []
        for name, likelihood in fields.items():
            valid, flag_size = rows.valid[name], self.flag_sizes[name]
            found = likelihood.feature_parts(rows.values[name], valid)
            parts += [part if isinstance(part, OneHot) else part.to(self.dtype) for part in found]
            if flag_size:
                flags = valid if valid.shape[1] == flag_size else valid.any(1, keepdim=True).expand(-1, flag_size)
                parts.append(flags.to(self.dtype))
        return parts

    def posterior(self, rows: Rows) -> Posterior:
        """Returns q(z|x), of a conditional model q(z|x,c), with mean and scale [B, L]."""
        if self.has_one_hot and zeros_cost(rows.log_jacobian):
            return self.encode(self._parts(rows, self._likelihoods() | self._conditions()))
        return self.encode(self.features(rows))

    def encode(self, features: Tensor | Sequence[Tensor | OneHot]) -> Posterior:
        """Returns the posteriors of rows of which the encoder sees features [B, F + C]."""
        return self.posterior_family.from_outputs(self.encoder(features).to(self.dtype), self.latent_dim)

    def latent_prior(self, condition: Tensor | None = None) -> LatentDistribution:
        """Returns p(z), or p(z|c) for each of the condition's rows [B, C] where the prior is conditional."""
        prior: LatentDistribution = self.prior(self.encode, condition)
        return prior

    def likelihood(self, z: Tensor, condition: Tensor | None = None) -> RowDistribution:
        """Returns p(x|z) for z [B, L] or [S, B, L]; of a conditional model p(x|z,c) for its `condition` of rows, [B, C]."""
        if (condition is not None) != (self.condition_size > 0):
            raise ValueError(f"the model is told {self.condition_size} features of a condition; condition is {condition}")
        likelihoods = self._likelihoods()
        inputs = z if condition is None else torch.cat([z, condition.expand(*z.shape[:-1], -1)], -1)
        outputs = self.decoder(inputs).to(self.dtype)
        *parts, flags = outputs.split([*self.output_sizes, self.null_pattern.num_outputs], -1)
        fields = {name: likelihood(part) for (name, likelihood), part in zip(likelihoods.items(), parts, strict=True)}
        return RowDistribution(fields, self.null_pattern(flags))

    def elbo(self, rows: Rows, noise: Tensor) -> Bound:
        """Returns the one-sample bound, with the KL in closed form where there is one; noise [B, L] is standard normal.

        Of several samples, [S, B, L], the expectations are [S, B]. Raises ValueError for noise of another shape.
        """
        if noise.shape[-2:] != (rows.num_rows, self.latent_dim):
            raise ValueError(f"noise is of shape {list(noise.shape)}; {rows.num_rows} rows need [{rows.num_rows}, {self.latent_dim}]")
        q_z, condition = self.posterior(rows), self.condition(rows)
        z, kl = q_z.rsample_with_kl(noise, self.latent_prior(condition))
        p_x = self.likelihood(z, condition)
        with without_autocast(z):
            log_likelihood = p_x.log_prob(rows)
            return Bound(log_likelihood - kl, log_likelihood, kl, p_x.null_pattern_log_prob(rows))

    def evaluate_elbo(self, rows: Rows, noise: Tensor, q_z: Posterior | None = None) -> Bound:
        """Returns the bound for reporting: the same expectation with less noise. q_z: posterior(rows), from who has it already.

        log p(x,z) - log q(z|x), averaged over noise [S, B, L], has the ELBO as its expectation and no variance at all where
        q is the exact posterior (Roeder et al. 2017); the expected log-likelihood is this plus the KL.
        Raises ValueError for noise of another shape.
        """
        if noise.dim() != 3 or noise.shape[1:] != (rows.num_rows, self.latent_dim):
            raise ValueError(f"noise is of shape {list(noise.shape)}; {rows.num_rows} rows need [S, {rows.num_rows}, {self.latent_dim}]")
        q_z = self.posterior(rows) if q_z is None else q_z
        z, condition = q_z.rsample(noise), self.condition(rows)
        p_x, p_z = self.likelihood(z, condition), self.latent_prior(condition)
        elbo = (p_x.log_prob(rows) + p_z.log_prob(z) - q_z.log_prob_of(z, noise)).mean(0)
        kl = q_z.kl(p_z, z, noise)
        null_pattern = p_x.null_pattern_log_prob(rows)
        return Bound(elbo, elbo + kl, kl, null_pattern if null_pattern.dim() == 1 else null_pattern.mean(0))

    def forward(self, rows: Rows, noise: Tensor) -> Bound:
        """The same as elbo; what DistributedDataParallel wraps."""
        return self.elbo(rows, noise)

    @torch.no_grad()
    def generate(self, num_rows: int, generator: torch.Generator, condition: Tensor | None = None) -> Rows:
        """Returns new rows: z from the prior, then every cell from p(x|z), or p(x|z,c) for the rows' `condition` [num_rows, C].

        Cells are in their field's storage, all of them drawn; flags are drawn where they are modelled, and true elsewhere.
        Raises ValueError for a condition that is not that of as many rows.
        """
        if self.condition_size and (condition is None or condition.shape != (num_rows, self.condition_size)):
            found = None if condition is None else f"of shape {list(condition.shape)}"
            raise ValueError(f"condition is {found}; {num_rows} rows need [{num_rows}, {self.condition_size}]")
        z = self.latent_prior(condition).sample(num_rows, generator).to(self.device, self.dtype)
        p_x = self.likelihood(z, condition)
        values = {name: cells.sample(generator) for name, cells in p_x.fields.items()}
        sizes = {field["name"]: int(field["valid_size"]) for field in self._field_mappings()}
        valid = {name: torch.ones(num_rows, size, dtype=torch.bool, device=self.device) for name, size in sizes.items()}
        rows = Rows(values, valid, torch.zeros(num_rows, dtype=self.dtype, device=self.device))
        return rows._replace(valid=p_x.sample_valid(rows, generator))


def build_networks(
    encoder: str,
    decoder: str,
    hidden_dims: Sequence[int],
    encoder_sizes: tuple[int, int],
    decoder_sizes: tuple[int, int],
    images: Sequence[tuple[Image, Image, int]],
) -> tuple[nn.Module, nn.Module]:
    """Returns encoder and decoder by name, given the inputs and outputs of both. Raises ValueError where there is nothing to convolve."""
    if "conv" in (encoder, decoder) and not images:
        raise ValueError("the network conv needs an image: a field with a shape H x W, H x W x C or C x H x W, C being 1 or 3")
    if "conv" in (encoder, decoder) and not hidden_dims:
        raise ValueError("the network conv needs hidden_dims, the first of which is the width of what an image becomes")
    features, outputs = [image for image, _, _ in images], [(image, per_cell) for _, image, per_cell in images]
    (num_features, num_parameters), (num_latents, num_outputs) = encoder_sizes, decoder_sizes
    reverse = list(reversed(hidden_dims))
    first: nn.Module = (
        FusedEncoder(num_features, features, hidden_dims, num_parameters)
        if encoder == "conv"
        else NETWORKS[encoder](num_features, hidden_dims, num_parameters)
    )
    second: nn.Module = (
        FusedDecoder(num_latents, outputs, reverse, num_outputs)
        if decoder == "conv"
        else NETWORKS[decoder](num_latents, reverse, num_outputs)
    )
    return first, second


def build_likelihood(field: Mapping[str, Any]) -> Likelihood:
    arguments = {key: value for key, value in field.items() if key not in FIELD_KEYS}
    return LIKELIHOODS[field["likelihood"]](**arguments)


def without_parameters(likelihood: Likelihood) -> Likelihood:
    """Returns the likelihood with nothing to learn that only a density needs: it makes features of a condition."""
    for name, _ in list(likelihood.named_parameters()):
        if not name.startswith("embedding."):
            delattr(likelihood, name)
    return likelihood


def num_flags(field: Mapping[str, Any]) -> int:
    return int(field["valid_size"]) * bool(field.get("with_flags", True))
