"""Which likelihoods a column can have, by the names of the model's classes, and which of them decide how its cells are stored."""

from __future__ import annotations

# Densities of standardised numbers; gaussian_per_row: the decoder gives each row's variance.
CONTINUOUS = ("gaussian", "gaussian_per_row", "student_t", "logistics")
# Masses of each number's interval on a grid, and the same after an asinh.
MASSES = ("discretised_gaussian", "discretised_logistics")
WARPED_MASSES = ("warped_discretised_gaussian", "warped_discretised_logistics")
# Probabilities of whole numbers from 0 on; cells are the numbers themselves.
COUNTS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")
# Densities of pixels (continuous_bernoulli) and probabilities of black and white ones (bernoulli).
SHADES = ("continuous_bernoulli", "bernoulli")
NAMES = (*CONTINUOUS, *MASSES, *WARPED_MASSES, *COUNTS, *SHADES, "categorical")
# What a kind of field has where nothing is named, but for vectors of whole numbers and large images.
DEFAULTS = {
    "numeric": "gaussian",
    "spiked": "spiked_logistics",
    "integer": "discretised_logistics",
    "warped": "warped_discretised_logistics",
    "boolean": "bernoulli",
    "categorical": "categorical",
    "vector": "gaussian",
    "image": "discretised_logistics",
}
# Pixels, times channels, of the largest image that has a mixture by default: 15 numbers a pixel of all rows that are scored at once.
MAX_MIXTURE_PIXELS = 32 * 32


def default_likelihood(field_kind: str, whole: bool, size: int = 1) -> str | None:
    """Returns what a kind of field has where nothing is named, None for counts, which are named.

    whole: its types are of integers; size: its cells per row.
    """
    whole_list = whole and (field_kind == "vector" or (field_kind == "image" and size > MAX_MIXTURE_PIXELS))
    return "discretised_gaussian" if whole_list else DEFAULTS.get(field_kind)


def possible_likelihoods(kind: str, whole: bool, gridded: bool) -> tuple[str, ...]:
    """Returns what a column of a kind can have. whole: its type is of integers; gridded: its numbers are multiples of a known step."""
    match kind:
        case "numeric" if not whole:
            return CONTINUOUS + (MASSES + WARPED_MASSES if gridded else ())
        case "numeric":
            return MASSES + WARPED_MASSES
        case "count":
            return MASSES + WARPED_MASSES + COUNTS
        case "timestamp":
            return MASSES
        case "vector":
            return MASSES if whole else CONTINUOUS
        case "image":
            return MASSES + SHADES
        case _:
            return (DEFAULTS[kind],)
