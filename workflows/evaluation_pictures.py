"""Pictures of an evaluation: scores of rows and columns, latents, gaps, generated columns. Shapes: N rows, L latent dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

NUM_BINS = 60
# Columns that a picture shows; a table has all.
MAX_COLUMNS = 24
MAX_CATEGORIES = 12
BLUE, ORANGE, GREY = "#3b6ea5", "#d9822b", "#9a9a9a"


def score_histogram(elbo: NDArray[np.float64], bound: NDArray[np.float64]) -> Figure:
    """Returns how ELBO and log-evidence bound [N] are spread over rows; the lowest percent is drawn in the first bar."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    both = np.concatenate([elbo, bound])
    low, high = np.percentile(both, 1), both.max()
    edges = np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)
    for values, name, colour in ((elbo, "ELBO", BLUE), (bound, "log-evidence bound", ORANGE)):
        axes.hist(np.maximum(values, low), list(edges), histtype="step", color=colour, label=name, linewidth=1.6)
        axes.axvline(values.mean(), color=colour, linestyle=":", linewidth=1.2)
    axes.set(title="scores of rows (dotted: means; first bar: all that is lower)", xlabel="nats per row", ylabel="rows")
    axes.legend(loc="upper left")
    return figure


def column_bars(model: Mapping[str, float], independent: Mapping[str, float] | None) -> Figure:
    """Returns log-likelihoods by column in nats per row, the lowest first, beside those of independent columns where they are known."""
    names = sorted(model, key=lambda name: model[name])[:MAX_COLUMNS]
    figure = Figure(figsize=(9, 0.8 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots()
    places, height = np.arange(len(names)), 0.8 if independent is None else 0.4
    axes.barh(places, [model[name] for name in names], height, color=BLUE, label="the model")
    if independent is not None:
        axes.barh(places + 0.4, [independent[name] for name in names], height, color=GREY, label="independent columns")
        axes.legend()
    more = f" (the lowest {MAX_COLUMNS} of {len(model)})" if len(model) > MAX_COLUMNS else ""
    axes.set(title=f"log-likelihood by column{more}", xlabel="nats per row")
    axes.set_yticks(places + (0 if independent is None else 0.2), [shortened(name) for name in names])
    axes.invert_yaxis()
    return figure


def latent_bars(kl: Sequence[float] | None, variance: Sequence[float]) -> Figure:
    """Returns KL by latent dimension [L], the largest first, or the variance of posterior means where the KL has no such parts."""
    values, what = (variance, "variance of posterior means over rows") if kl is None else (kl, "KL in nats per row")
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(-np.asarray(values))
    axes.bar(np.arange(len(order)), np.asarray(values)[order], color=BLUE)
    axes.set(title="what each latent dimension carries", xlabel="latent dimension, the largest first", ylabel=what)
    if len(order) <= 40:
        axes.set_xticks(np.arange(len(order)), [str(index) for index in order], fontsize=7)
    return figure


def gap_waterfall(elbo: float, amortisation: float, approximation: float, log_evidence: float) -> Figure:
    """Returns the steps from the encoder's ELBO over the best of its family to log p(x), in nats per row."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    steps = [("amortisation gap", elbo, amortisation, ORANGE), ("approximation gap", elbo + amortisation, approximation, BLUE)]
    for place, (name, start, width, colour) in enumerate(steps):
        axes.barh(place, width, left=start, color=colour)
        axes.annotate(f" {width:+.3g}", (max(start, start + width), place), va="center")
        axes.text(0.005, place - 0.47, name, transform=axes.get_yaxis_transform(), fontsize=9, va="top")
    for value, name in ((elbo, "ELBO of the encoder"), (log_evidence, "log p(x), from below")):
        axes.axvline(value, color="black", linewidth=0.8, linestyle=":")
        axes.annotate(f"{name}\n{value:.4g}", (value, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
    span = max(abs(log_evidence - elbo), abs(amortisation), abs(approximation), 1e-6)
    axes.set_xlim(min(elbo, log_evidence) - 0.4 * span, max(elbo + amortisation, log_evidence) + 0.6 * span)
    axes.set(xlabel="nats per row", ylim=(1.6, -0.6))
    axes.set_yticks([])
    return figure


def marginal_panels(real: Mapping[str, Mapping[str, Any]], generated: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Returns one panel a column: categories' frequencies or numbers' quantiles, real rows beside generated ones.

    real, generated: column -> what data.marginals says of it, with "categories" where it has frequencies.
    """
    names = [name for name in real if real[name].get("frequencies") or real[name].get("quantiles")][:MAX_COLUMNS]
    across = 4
    down = max(1, -(-len(names) // across))
    figure = Figure(figsize=(10, 2.5 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for panel in panels[len(names) :]:
        panel.axis("off")
    for panel, name in zip(panels, names, strict=False):
        if real[name].get("frequencies"):
            frequencies_panel(panel, real[name], generated[name])
        else:
            quantiles_panel(panel, real[name], generated[name])
        panel.set_title(shortened(name), fontsize=9)
        panel.tick_params(labelsize=7)
    if names:
        panels[0].legend(fontsize=7)
    return figure


def frequencies_panel(axes: Axes, real: Mapping[str, Any], generated: Mapping[str, Any]) -> None:
    order = np.argsort([-share for share in real["frequencies"]], kind="stable")[:MAX_CATEGORIES]
    places = np.arange(len(order))
    for shift, side, colour, label in ((0.0, real, GREY, "real"), (0.4, generated, BLUE, "generated")):
        axes.bar(places + shift, [side["frequencies"][index] for index in order], 0.4, color=colour, label=label)
    axes.set_xticks(places + 0.2, [shortened(str(real["categories"][index]), 16) for index in order], rotation=90)


def quantiles_panel(axes: Axes, real: Mapping[str, Any], generated: Mapping[str, Any]) -> None:
    levels = np.linspace(0, 1, len(real["quantiles"]))
    for side, colour, label, width in ((real, GREY, "real", 3.0), (generated, BLUE, "generated", 1.2)):
        if side.get("quantiles"):
            axes.plot(side["quantiles"], levels, color=colour, label=label, linewidth=width)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(3))  # long numbers run into each other


def literal(text: str) -> str:
    """Returns text from a table as matplotlib shows it unchanged: what lies between two dollars it would take for mathematics."""
    return text.replace("$", r"\$")


def shortened(text: str, length: int = 24) -> str:
    return literal(text if len(text) <= length else text[: length - 1] + "…")
