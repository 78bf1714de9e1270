"""Claims about vae.input_layer: skipping the zeros of one-hot columns changes no posterior. Shapes: B rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vae import VAE, Rows
from vae.input_layer import InputLayer, OneHot, dense

NUM_ROWS = 40
FIELDS: list[dict[str, Any]] = [
    {"name": "code", "likelihood": "categorical", "sizes": [3, 300, 1, 7], "valid_size": 4},
    {"name": "number", "likelihood": "gaussian", "size": 3, "valid_size": 3},
    {"name": "other", "likelihood": "categorical", "sizes": [2, 2], "valid_size": 2, "with_flags": False},
]
CONDITION: list[dict[str, Any]] = [{"name": "told", "likelihood": "categorical", "sizes": [5], "valid_size": 1}]


def rows_of(fields: list[dict[str, Any]]) -> Rows:
    g = torch.Generator().manual_seed(0)
    values: dict[str, torch.Tensor] = {}
    for field in fields:
        sizes = field.get("sizes")
        codes = [torch.randint(0, size, (NUM_ROWS,), generator=g, dtype=torch.int32) for size in sizes or []]
        values[field["name"]] = torch.stack(codes, 1) if sizes else torch.randn(NUM_ROWS, 3, generator=g)
    valid = {field["name"]: torch.rand(NUM_ROWS, field["valid_size"], generator=g) > 0.3 for field in fields}
    return Rows(values, valid, torch.zeros(NUM_ROWS))


def model_of(network: str, condition: list[dict[str, Any]], prior: str = "standard") -> VAE:
    torch.manual_seed(0)
    return VAE(FIELDS, 2, [16, 8], network, condition_fields=condition, prior=prior, num_prior_components=4).double()


@pytest.mark.parametrize("condition", [[], CONDITION], ids=["plain", "conditional"])
@pytest.mark.parametrize("network", ["linear", "mlp", "gated", "residual"])
def test_the_posterior_without_gradients_is_that_with_them(network: str, condition: list[dict[str, Any]]) -> None:
    """With gradients the encoder multiplies whole features; without, its first layer gets them in parts."""
    model, rows = model_of(network, condition), rows_of([*FIELDS, *condition])
    with_them, seen = model.posterior(rows), []
    layer = next(module for module in model.encoder.modules() if isinstance(module, InputLayer))
    layer.register_forward_pre_hook(lambda _, inputs: seen.append([type(part) for part in inputs[0]]))
    with torch.no_grad():
        without = model.posterior(rows)
    assert [kinds.count(OneHot) for kinds in seen] == [3 if condition else 2]
    for found, expected in ((without.mean, with_them.mean), (without.scale, with_them.scale)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", ["linear", "mlp", "gated", "residual"])
def test_a_network_without_hidden_layers_has_a_posterior_without_gradients_too(network: str) -> None:
    torch.manual_seed(0)
    model, rows = VAE(FIELDS, 2, [], network).double(), rows_of(FIELDS)
    with_them = model.posterior(rows)
    with torch.no_grad():
        without = model.posterior(rows)
    torch.testing.assert_close(without.mean, with_them.mean, rtol=1e-12, atol=1e-12)


def test_a_row_has_the_same_posterior_in_any_batch() -> None:
    model, rows = model_of("mlp", []).float(), rows_of(FIELDS)
    with torch.inference_mode():
        whole = model.posterior(rows).mean
        alone = torch.cat([model.posterior(rows.slice(row, row + 1)).mean for row in range(NUM_ROWS)])
    torch.testing.assert_close(alone, whole, rtol=1e-6, atol=1e-6)


def test_what_a_missing_cell_holds_changes_nothing_bit_for_bit() -> None:
    model, rows = model_of("mlp", []).float(), rows_of(FIELDS)
    code = torch.where(rows.valid["code"], rows.values["code"], -7)
    number = torch.where(rows.valid["number"], rows.values["number"], torch.nan)
    with torch.inference_mode():
        found = model.posterior(rows._replace(values=rows.values | {"code": code, "number": number}))
        assert torch.equal(found.mean, model.posterior(rows).mean)


def test_pseudo_inputs_of_a_vamp_prior_are_whole_features() -> None:
    model, rows = model_of("mlp", [], "vamp"), rows_of(FIELDS)
    with torch.no_grad():
        bound = model.elbo(rows, torch.zeros(NUM_ROWS, 2, dtype=torch.float64))
    torch.testing.assert_close(bound.elbo, model.elbo(rows, torch.zeros(NUM_ROWS, 2, dtype=torch.float64)).elbo.detach())


def test_parts_make_the_features_that_the_layer_multiplies() -> None:
    layer = InputLayer(9, 4).double()
    parts: list[torch.Tensor | OneHot] = [
        torch.randn(5, 2).double(),
        torch.randn(5, 1).double(),
        OneHot(torch.tensor([[0, 4]] * 5), torch.tensor([[1.0, 0.0]] * 5).double(), 6),
    ]
    features = dense(parts)
    assert features.shape == (5, 9)
    assert features[:, 3:].tolist() == [[1, 0, 0, 0, 0, 0]] * 5
    torch.testing.assert_close(layer(parts), layer(features))
