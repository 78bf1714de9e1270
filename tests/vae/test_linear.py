"""Affine maps by oneDNN are those of PyTorch, whatever the layout, and are taken only where they pay."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae import linear
from vae.linear import Linear, affine, prefers_onednn
from vae.model import VAE
from vae.objective import Loss, Objective
from vae.rows import Rows


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN for every product of float32, on any processor."""
    monkeypatch.setattr(linear, "MIN_MULTIPLICATIONS", 1)
    monkeypatch.setattr(linear, "prefers_onednn", lambda: True)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product by oneDNN: one would fail."""
    monkeypatch.setattr(linear, "product", None)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


LAYOUTS = {
    "as they are": (drawn(300, 100), drawn(120, 100), drawn(120)),
    "fewer inputs than outputs": (drawn(256, 24), drawn(96, 24), drawn(96)),
    "more inputs than outputs": (drawn(256, 96), drawn(24, 96), drawn(24)),
    "transposed": (drawn(100, 300).t(), drawn(100, 120).t(), drawn(120)),
    "every other row and column": (drawn(600, 200)[::2, 50:150], drawn(240, 200)[::2, ::2], drawn(240)[::2]),
    "one row many times": (drawn(1, 100).expand(300, 100), drawn(120, 100), drawn(120)),
    "windows of a series": (drawn(400).unfold(0, 101, 1), drawn(120, 101), drawn(120)),
    "windows of a series, fewer outputs": (drawn(400).unfold(0, 101, 1), drawn(20, 101), drawn(20)),
    "one row": (drawn(1, 100), drawn(120, 100), drawn(120)),
    "no row": (drawn(0, 100), drawn(120, 100), drawn(120)),
    "one input": (drawn(300, 1), drawn(17, 1), drawn(17)),
    "one output": (drawn(300, 7), drawn(1, 7), drawn(1)),
    "samples of rows": (drawn(5, 60, 40), drawn(30, 40), drawn(30)),
    "samples of rows, the other way round": (drawn(60, 5, 40).movedim(1, 0), drawn(30, 40), drawn(30)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("expanded", [False, True])
def test_the_map_and_its_gradients_are_those_in_float64(everywhere: None, layout: str, expanded: bool) -> None:
    found, expected = ([part.to(dtype).detach().requires_grad_() for part in LAYOUTS[layout]] for dtype in (torch.float32, torch.float64))
    outputs, reference = affine(*found), F.linear(*expected)
    torch.testing.assert_close(outputs.double(), reference, rtol=1e-4, atol=1e-4)
    by_outputs = torch.ones(()).expand(outputs.shape) if expanded else drawn(*outputs.shape)
    gradients = torch.autograd.grad(outputs, found, by_outputs)
    for gradient, exact in zip(gradients, torch.autograd.grad(reference, expected, by_outputs.double()), strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-3)
        assert gradient.is_contiguous() or not exact.is_contiguous()


@pytest.mark.parametrize("layout", ["as they are", "samples of rows"])
def test_what_follows_may_change_the_outputs_in_place(everywhere: None, layout: str) -> None:
    found, expected = ([part.detach().to(dtype).requires_grad_() for part in LAYOUTS[layout]] for dtype in (torch.float32, torch.float64))
    outputs, reference = F.relu(affine(*found), inplace=True), F.relu(F.linear(*expected))
    by_outputs = drawn(*reference.shape)
    gradients = torch.autograd.grad(outputs, found, by_outputs)
    for gradient, exact in zip(gradients, torch.autograd.grad(reference, expected, by_outputs.double()), strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layout", ["as they are", "samples of rows"])
def test_gradients_have_gradients_of_their_own(everywhere: None, layout: str) -> None:
    found, expected = ([part.detach().to(dtype).requires_grad_() for part in LAYOUTS[layout]] for dtype in (torch.float32, torch.float64))
    second = []
    for parts, outputs in ((found, affine(*found)), (expected, F.linear(*expected))):
        gradients = torch.autograd.grad(outputs.sum() + outputs.square().mean(), parts, create_graph=True)
        second.append(torch.autograd.grad(torch.stack([part.square().sum() for part in gradients]).sum(), parts, materialize_grads=True))
    for gradient, exact in zip(*second, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-3)


def test_only_what_needs_a_gradient_gets_one(everywhere: None) -> None:
    inputs, weight, bias = LAYOUTS["as they are"]
    weight = weight.clone().requires_grad_()
    outputs = affine(inputs, weight, bias)
    assert outputs.grad_fn is not None
    assert outputs.grad_fn.needs_input_grad == (False, True, False)  # type: ignore[attr-defined]
    (gradient,) = torch.autograd.grad(outputs.sum(), [weight])
    torch.testing.assert_close(gradient, inputs.sum(0).expand(weight.shape), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(affine(inputs, weight, bias), F.linear(inputs, weight, bias))


def test_without_gradients_onednn_meets_few_numbers_of_rows(everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it keeps code for every one of them: embedding meets as many as there are row groups."""
    inputs, (_, weight, bias) = drawn(4000, 100), LAYOUTS["as they are"]
    seen: set[int] = set()
    multiply = linear.product

    def product(left: Tensor, *others: Tensor) -> Tensor:
        seen.add(len(left))
        return multiply(left, *others)

    monkeypatch.setattr(linear, "product", product)
    for num_rows in [0, 1, 500, 1023, 1024, 1025, 2047, 2048, 3000, 4000]:
        with torch.no_grad():
            found = affine(inputs[:num_rows], weight, bias)
        torch.testing.assert_close(found, F.linear(inputs[:num_rows], weight, bias), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        assert affine(inputs.reshape(40, 100, 100), weight, bias).shape == (40, 100, 120)
    assert seen == {1, 256, 512, 1024, 2048, 3072}


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_stays_in_its_row(everywhere: None, number: float) -> None:
    inputs, weight, bias = LAYOUTS["as they are"]
    inputs = inputs.clone()
    inputs[7, 3] = number
    assert affine(inputs, weight, bias).isfinite().all(1).tolist() == [row != 7 for row in range(len(inputs))]


def test_a_model_has_the_same_bound_and_gradients(everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [{"name": "numeric", "likelihood": "gaussian", "size": 6, "valid_size": 6}]
    rows = Rows({"numeric": drawn(70, 6)}, {"numeric": drawn(70, 6) > -1}, torch.zeros(70, dtype=torch.float64))
    model = VAE(fields, 3, [16, 12])
    found = bound_and_gradients(model, rows)
    monkeypatch.setattr(linear, "prefers_onednn", lambda: False)
    for mine, theirs in zip(found, bound_and_gradients(model, rows), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def bound_and_gradients(model: VAE, rows: Rows) -> list[Tensor]:
    loss, bound = Loss(model, Objective())(rows, drawn(rows.num_rows, model.latent_dim), 1.0)
    return [bound.elbo, *torch.autograd.grad(loss, list(model.parameters()))]


def test_other_precisions_small_products_and_all_without_onednn_are_left_to_pytorch(never: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "prefers_onednn", lambda: True)
    layer, large = Linear(64, 64), drawn(2048, 64)
    assert torch.equal(layer(large[:50]), F.linear(large[:50], layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(large).dtype == torch.bfloat16
    with monkeypatch.context() as without:
        without.setattr(torch.backends.mkldnn, "enabled", False)
        assert torch.equal(layer(large), F.linear(large, layer.weight, layer.bias))
    assert layer.double()(large.double()).dtype == torch.float64
    with pytest.raises(TypeError):  # else this test could not fail
        layer.float()(large)


def test_a_large_product_is_part_of_a_compiled_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MIN_MULTIPLICATIONS", 1)
    torch.compiler.reset()
    inputs, weight, bias = LAYOUTS["as they are"]
    compiled = torch.compile(affine, backend="eager", fullgraph=True)
    assert torch.equal(compiled(inputs, weight, bias), F.linear(inputs, weight, bias))


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)],
)
def test_the_processor_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(linear, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for backend in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(backend, "is_available", lambda: True)
    assert prefers_onednn.__wrapped__() is expected
    monkeypatch.setattr(linear, "CPUINFO", tmp_path / "absent")
    assert prefers_onednn.__wrapped__() is False


def test_a_layer_has_the_weights_of_its_kind() -> None:
    assert Linear(3, 2).state_dict().keys() == nn.Linear(3, 2).state_dict().keys()
