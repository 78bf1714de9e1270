"""Claims about vae.bundle: what was saved is what is loaded, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae import VAE, BundleError, Rows, load_bundle, save_bundle
from vae.bundle import open_bundle
from vae.bundle_files import FORMAT_VERSION, MANIFEST, MODEL, TABLE, WEIGHTS, as_json, describe, read_bundle

FILES = (WEIGHTS, MODEL, TABLE, MANIFEST)
TABLE_JSON = {"columns": [{"name": "Größe", "mean": [0.1], "scale": 1e-300}], "key": None}
FIELDS: list[dict[str, Any]] = [
    {"name": "numeric", "likelihood": "gaussian", "valid_size": 2, "size": 2},
    {"name": "integer", "likelihood": "discretised_gaussian", "valid_size": 1, "size": 1, "half_width": [0.1]}
    | {"lower": [-3.3], "upper": [3.1]},
    {"name": "categorical", "likelihood": "categorical", "valid_size": 2, "sizes": [2, 3]},
]


def model(seed: int = 0, latent_dim: int = 2) -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = VAE(FIELDS, latent_dim, hidden_dims=[5])
        for parameter in vae.parameters():
            torch.nn.init.normal_(parameter)
        return vae


def rows() -> Rows:
    generator = torch.Generator().manual_seed(1)
    codes = torch.stack([torch.randint(0, size, (4,), generator=generator) for size in (2, 3)], 1)
    integers = torch.tensor([[-0.2], [0.0], [0.2], [3.1]])
    values = {"numeric": torch.randn(4, 2, generator=generator), "integer": integers, "categorical": codes}
    return Rows(values, {name: torch.ones_like(cells, dtype=torch.bool) for name, cells in values.items()}, torch.zeros(4))


@cache
def saved() -> dict[str, bytes]:
    """The files of a good bundle."""
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(folder, model(), TABLE_JSON)
        return read_bundle(folder)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def resealed(files: dict[str, bytes], **manifest: Any) -> dict[str, bytes]:
    """The files with a manifest that vouches for them."""
    hashes = {name: hashlib.sha256(files[name]).hexdigest() for name in (WEIGHTS, MODEL, TABLE)}
    return files | {MANIFEST: as_json({"format_version": FORMAT_VERSION, "sha256": hashes} | manifest)}


def test_a_loaded_model_gives_the_same_numbers_bit_for_bit(tmp_path: Path) -> None:
    original = model()
    sha256 = save_bundle(tmp_path / "made" / "here", original, TABLE_JSON)
    bundle = load_bundle(tmp_path / "made" / "here")
    assert bundle.sha256 == sha256
    assert bundle.table == TABLE_JSON
    assert bundle.model.architecture == original.architecture
    assert not bundle.model.training
    noise = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(2))
    for loaded, expected in zip(bundle.model.evaluate_elbo(rows(), noise), original.evaluate_elbo(rows(), noise), strict=True):
        assert torch.equal(loaded, expected)
    generated = [vae.generate(5, torch.Generator().manual_seed(3)) for vae in (bundle.model, original)]
    for name, cells in generated[0].values.items():
        assert torch.equal(cells, generated[1].values[name])


def test_a_bundle_is_four_files_and_its_sha256_is_that_of_the_manifest(tmp_path: Path) -> None:
    sha256 = save_bundle(tmp_path, model(), TABLE_JSON)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    assert hashlib.sha256((tmp_path / MANIFEST).read_bytes()).hexdigest() == sha256


def test_the_same_model_has_the_same_sha256_and_another_has_another(tmp_path: Path) -> None:
    first, again = save_bundle(tmp_path / "a", model(), TABLE_JSON), save_bundle(tmp_path / "b", model(), TABLE_JSON)
    assert first == again
    assert read_bundle(tmp_path / "a") == read_bundle(tmp_path / "b")
    assert save_bundle(tmp_path / "c", load_bundle(tmp_path / "a").model, TABLE_JSON) == first
    assert save_bundle(tmp_path / "d", model(seed=1), TABLE_JSON) != first
    assert save_bundle(tmp_path / "e", model(), TABLE_JSON | {"key": "id"}) != first


def test_a_good_bundle_opens_from_memory() -> None:
    assert open_bundle(saved()).table == TABLE_JSON
    assert open_bundle(resealed(saved())).sha256 == open_bundle(saved()).sha256


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40)
@given(data=st.data())
def test_a_changed_byte_is_refused(name: str, data: st.DataObject) -> None:
    content = bytearray(saved()[name])
    position = data.draw(st.integers(0, len(content) - 1), "position")
    content[position] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[position]), "byte")
    with pytest.raises(BundleError, match=r"(manifest|weights|model|table)\.|format version"):
        open_bundle(saved() | {name: bytes(content)})


def test_other_white_space_in_the_manifest_is_refused() -> None:
    with pytest.raises(BundleError, match=r"manifest\.json is not the file that was saved"):
        open_bundle(saved() | {MANIFEST: saved()[MANIFEST].replace(b"\n", b"\t", 1)})


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_refused(name: str) -> None:
    for length in (0, len(saved()[name]) - 1):
        with pytest.raises(BundleError, match=name):
            open_bundle(saved() | {name: saved()[name][:length]})


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, saved())
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name) as caught:
        load_bundle(folder)
    assert str(folder) in str(caught.value)


def test_an_extra_file_is_refused_even_where_the_manifest_vouches_for_it(tmp_path: Path) -> None:
    extra = {"code.pkl": b"anything"}
    with pytest.raises(BundleError, match=r"code\.pkl"):
        load_bundle(write(tmp_path, saved() | extra))
    hashes = json.loads(saved()[MANIFEST])["sha256"] | {"code.pkl": hashlib.sha256(b"anything").hexdigest()}
    with pytest.raises(BundleError, match=r"code\.pkl"):
        open_bundle(resealed(saved(), sha256=hashes) | extra)


def test_a_newer_format_is_refused_by_its_number() -> None:
    newer = resealed(saved(), format_version=FORMAT_VERSION + 1, signature="of the future")
    with pytest.raises(BundleError, match=f"format version {FORMAT_VERSION + 1}, this code reads {FORMAT_VERSION}"):
        open_bundle(newer)


DEEP = b"[" * 100_000 + b"]" * 100_000
STRANGE_HASH = b'{"format_version": 1, "sha256": {"model.json": "\\ud800"}}'
NO_NUMBER = b'{"format_version": NaN, "sha256": {}}'


@pytest.mark.parametrize(
    "content",
    [b"", b"no json", b"[]", b"7", b"{}", b'{"format_version": 1, "sha256": 7}', b"\xff\xfe", DEEP, STRANGE_HASH, NO_NUMBER],
)
def test_a_manifest_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        open_bundle(saved() | {MANIFEST: content})


def weights_of_another_model() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(folder, model(latent_dim=3), TABLE_JSON)
        return read_bundle(folder)[WEIGHTS]


def weights_of_half_a_byte() -> bytes:
    header = as_json({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}})
    return len(header).to_bytes(8, "little") + header + b"0"


@pytest.mark.parametrize(
    "weights",
    [weights_of_another_model, lambda: b"no tensors", weights_of_half_a_byte],
    ids=["another model's", "no tensors", "numbers that PyTorch has not"],
)
def test_weights_that_do_not_fit_the_architecture_are_refused(weights: Any) -> None:
    with pytest.raises(BundleError, match=r"weights\.safetensors does not fit model\.json"):
        open_bundle(resealed(saved() | {WEIGHTS: weights()}))


@pytest.mark.parametrize(
    "change",
    [
        {"network": "transformer"},
        {"prior": "flow"},
        {"dropout": 0.5},
        {"fields": [FIELDS[0] | {"likelihood": "poisson"}]},
        {"fields": ["numeric"]},
        {"fields": [FIELDS[0] | {"size": -1}]},
        {"fields": [FIELDS[0] | {"size": 10**30}]},
        {"fields": [FIELDS[2] | {"sizes": [True, True]}]},
        {"latent_dim": -1},
    ],
)
def test_an_architecture_of_other_code_is_refused(change: dict[str, Any]) -> None:
    architecture = as_json(json.loads(saved()[MODEL]) | change)
    with pytest.raises(BundleError, match=r"model\.json names no model of this code"):
        open_bundle(resealed(saved() | {MODEL: architecture}))


@pytest.mark.parametrize("name", [MODEL, TABLE])
@pytest.mark.parametrize("content", [b"{", b"\xff", b"", DEEP])
def test_files_that_are_no_json_are_refused_though_they_are_those_that_were_saved(name: str, content: bytes) -> None:
    with pytest.raises(BundleError, match=rf"^here: .*{name}.* is no JSON"):
        describe(resealed(saved() | {name: content}), "here")


@pytest.mark.parametrize("architecture", [[], {}, {"latent_dim": "2"}])
def test_an_architecture_without_latent_dimensions_is_refused(architecture: Any) -> None:
    with pytest.raises(BundleError, match=r"^here: model\.json names no model of this code"):
        describe(resealed(saved() | {MODEL: as_json(architecture)}), "here")


def test_what_is_said_of_a_bundle_is_what_opens() -> None:
    described, bundle = describe(saved()), open_bundle(saved())
    assert (described.architecture, described.table, described.sha256) == (bundle.model.architecture, bundle.table, bundle.sha256)


def test_a_folder_without_a_bundle_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="no model bundle here") as caught:
            load_bundle(folder)
        assert str(folder) in str(caught.value)


def test_a_table_that_is_no_json_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        save_bundle(tmp_path, model(), {"mean": float("nan")})
    assert list(tmp_path.iterdir()) == []
