"""Claims about workflows.pictures: what a picture shows of images, whatever they hold."""

from __future__ import annotations

import numpy as np
import pytest

from data.column import Column
from workflows.pictures import image_grid

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
