"""The likelihoods p(x|z) by name. One more is a class beside the others and a line here.

| name | cells, as they are stored | from the decoder | learned for all rows |
|---|---|---|---|
| gaussian | standardised numbers | location (`per_row`: and scale) | scale, per cell or one |
| student_t | standardised numbers, heavy tails | location | scale, degrees of freedom |
| logistics | standardised numbers, several modes | weights, locations, scales | the same, as a base |
| spiked_logistics | standardised numbers, many of them equal to a few | the same, and probabilities of these few | the same |
| discretised_gaussian | integers, standardised, or uint8 pixels | location | scale |
| warped_discretised_gaussian | integers with heavy tails, after asinh | location | scale |
| discretised_logistics | integers, standardised, or uint8 pixels | weights, locations, scales; heaps | the same, as a base |
| warped_discretised_logistics | integers with heavy tails, after asinh | weights, locations, scales | the same, as a base |
| bernoulli | 0 or 1 (int8), or binarised uint8 pixels | log-odds | |
| continuous_bernoulli | numbers of [0, 1], or uint8 pixels | log-odds | |
| poisson | counts in float32 | log rate | |
| negative_binomial | counts in float32 | log rate | dispersion |
| zero_inflated_negative_binomial | counts in float32 | log rate, log-odds of a zero | dispersion |
| categorical | codes in int32 | scores of all categories | embeddings of large columns |
"""

from __future__ import annotations

from vae.bernoulli import Bernoulli, ContinuousBernoulli
from vae.categories import Categorical
from vae.cells import CellDistribution, Likelihood, without_missing
from vae.continuous import Gaussian, StudentT
from vae.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from vae.discretised import DiscretisedGaussian, WarpedDiscretisedGaussian
from vae.mixtures import DiscretisedLogistics, Logistics, WarpedDiscretisedLogistics
from vae.spiked import SpikedLogistics

__all__ = ["LIKELIHOODS", "CellDistribution", "Likelihood", "without_missing"]

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "student_t": StudentT,
    "logistics": Logistics,
    "spiked_logistics": SpikedLogistics,
    "discretised_gaussian": DiscretisedGaussian,
    "warped_discretised_gaussian": WarpedDiscretisedGaussian,
    "discretised_logistics": DiscretisedLogistics,
    "warped_discretised_logistics": WarpedDiscretisedLogistics,
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomial,
    "categorical": Categorical,
}
