"""Claims about workflows.pictures: what a picture shows of images, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.column import Column
from workflows.evaluation_pictures import literal, marginal_panels
from workflows.pictures import image_grid, latent_plane

COLUMN = Column("image", "image", "", shape=[8, 8])


def test_a_few_drawn_pixels_far_above_the_others_do_not_fade_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 17, (48, 64))
    pixels[0, 0] = 255
    figure = image_grid(pixels, COLUMN, "")
    assert [axes.images[0].get_clim() for axes in figure.axes] == [(0, 16)] * 48


@pytest.mark.parametrize("num_images", [0, 3])
def test_black_images_and_none_have_a_picture(num_images: int) -> None:
    figure = image_grid(np.zeros((num_images, 64)), COLUMN, "")
    assert sum(bool(axes.images) for axes in figure.axes) == num_images


def test_dollars_in_a_table_are_dollars_in_a_picture(tmp_path: Path) -> None:
    """To matplotlib they are mathematics, and these no valid ones."""
    labels = np.array(["$", "$$", "$$$", "a $ b $", "x"])
    figure = latent_plane(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), labels, "income ($)")
    figure.savefig(tmp_path / "plane.png")
    real = {"price ($, $$)": {"frequencies": [0.5, 0.5], "categories": ["$", "$$$"]}}
    marginal_panels(real, real).savefig(tmp_path / "panels.png")
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [literal(label) for label in ("$", "x", "$$", "$$$", "a $ b $")]
