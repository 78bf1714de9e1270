"""Claims about vae.networks and vae.convolutions: rows do not meet, images keep their layout, every part is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vae.convolutions import Image, is_image, levels
from vae.model import VAE
from vae.networks import NETWORKS
from vae.rows import Rows

SHAPES = [(5, 7), (28, 28), (9, 9, 3), (3, 8, 12), (1, 6, 6), (4, 4, 1)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """Returns the module with parameters that are random throughout; some start at zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_a_row_has_the_same_outputs_in_any_company(name: str) -> None:
    network = stirred(NETWORKS[name](6, [8, 8, 5], 3))
    rows = randn(10, 6)
    together = network(rows)
    assert together.shape == (10, 3)
    for row in range(10):
        torch.testing.assert_close(network(rows[row : row + 1])[0], together[row])
    assert network(randn(2, 4, 6)).shape == (2, 4, 3)
    assert network(rows[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_has_a_gradient(name: str) -> None:
    network = stirred(NETWORKS[name](6, [8, 8], 3))
    torch.autograd.backward(network(randn(10, 6)).square().sum())
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def image_model(shape: tuple[int, ...], likelihood: str = "bernoulli", **more: Any) -> VAE:
    torch.manual_seed(0)
    size = torch.Size(shape).numel()
    image = {"name": "image", "likelihood": likelihood, "size": size, "valid_size": 1, "with_flags": False, "shape": list(shape)}
    fields: list[dict[str, Any]] = [
        {"name": "before", "likelihood": "gaussian", "size": 2, "valid_size": 2},
        image | more,
        {"name": "after", "likelihood": "categorical", "sizes": [3], "valid_size": 1},
    ]
    model = VAE(fields, 4, [16, 12], "conv")
    stirred(model)
    return model


def image_rows(shape: tuple[int, ...], num_rows: int = 3, storage: torch.dtype = torch.int8) -> Rows:
    g = torch.Generator().manual_seed(2)
    values = {
        "before": torch.randn(num_rows, 2, generator=g),
        "image": torch.randint(0, 2, (num_rows, torch.Size(shape).numel()), generator=g).to(storage),
        "after": torch.randint(0, 3, (num_rows, 1), generator=g, dtype=torch.int32),
    }
    valid = {"before": torch.rand(num_rows, 2, generator=g) > 0.3, "image": torch.ones(num_rows, 1, dtype=torch.bool)}
    return Rows(values, valid | {"after": torch.ones(num_rows, 1, dtype=torch.bool)}, torch.zeros(num_rows))


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_any_shape_and_a_table_are_one_model(shape: tuple[int, ...]) -> None:
    model, rows = image_model(shape), image_rows(shape)
    noise = randn(3, 4)
    bound = model.elbo(rows, noise)
    assert bound.elbo.isfinite().all()
    torch.autograd.backward(bound.elbo.sum())
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    for row in range(3):
        alone = model.elbo(rows.slice(row, row + 1), noise[row : row + 1])
        torch.testing.assert_close(alone.elbo[0], bound.elbo[row], rtol=1e-4, atol=1e-4)
    samples = randn(2, 3, 4, seed=5)
    apart = torch.stack([model.likelihood(z).log_prob(rows) for z in samples])
    torch.testing.assert_close(model.likelihood(samples).log_prob(rows), apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_pixel_keeps_its_place(shape: tuple[int, ...]) -> None:
    image = Image(0, shape)
    cells = torch.arange(2.0 * image.size).reshape(2, -1)
    stacked = image.stacked(cells)
    assert stacked.shape == (2, *image.pixels)
    assert torch.equal(image.flattened(stacked), cells)
    two = image.flattened(torch.cat([stacked, 1000 + stacked], 1))
    assert torch.equal(two, torch.cat([cells, 1000 + cells], 1))


def test_channels_first_and_last_are_the_same_image() -> None:
    pixels = randn(2, 3, 6, 5)
    first, last = Image(0, (3, 6, 5)), Image(0, (6, 5, 3))
    assert torch.equal(first.stacked(pixels.flatten(1)), last.stacked(pixels.movedim(1, -1).flatten(1)))


def test_levels_halve_an_image_down_to_a_few_pixels() -> None:
    sizes = levels(Image(0, (28, 28)))
    assert [height for _, height, _ in sizes] == [28, 14, 7, 4]
    assert sizes[0][0] < sizes[-1][0]


def test_only_images_are_convolved() -> None:
    assert [is_image(shape) for shape in [(28, 28), (3, 4, 4), (4, 4, 3), (2, 4, 4), (5,), None]] == [True] * 3 + [False] * 3
    with pytest.raises(ValueError, match="needs an image"):
        VAE([{"name": "x", "likelihood": "gaussian", "size": 2, "valid_size": 2}], 2, [8], "conv")


@pytest.mark.parametrize(
    ("likelihood", "more"),
    [
        ("gaussian", {"per_row": True}),
        ("discretised_logistics", {"half_width": [0.5], "lower": [-2.0], "upper": [2.0], "num_components": 2}),
    ],
)
def test_outputs_of_several_numbers_per_pixel_reach_their_pixel(likelihood: str, more: dict[str, Any]) -> None:
    """One pixel's log-probability depends on that pixel's outputs: those of the decoder's last convolution at its place."""
    model = image_model((6, 6), likelihood, **more)
    rows = image_rows((6, 6), storage=torch.float32)
    z = randn(3, 4)
    (last,) = (module for name, module in model.named_modules() if name == "decoder.decoders.0.out")
    captured: list[Tensor] = []

    def capture(_module: object, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        captured.append(output)

    last.register_forward_hook(capture)
    torch.autograd.backward(model.likelihood(z).cell_log_probs(rows)["image"][:, 14].sum())
    gradient = captured[0].grad
    assert gradient is not None
    where = gradient.abs().sum((0, 1)).flatten().nonzero().flatten().tolist()
    assert where == [14]
