"""A variational autoencoder for rows of mixed type, in plain PyTorch: no Ray, no MLflow, no Parquet.

from vae import VAE, load_bundle
bundle = load_bundle("path/to/bundle")
q_z = bundle.model.posterior(rows)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae.bundle import Bundle, load_bundle, save_bundle
    from vae.bundle_files import BundleError
    from vae.evidence import log_evidence_bound
    from vae.model import VAE, Bound
    from vae.rows import Rows

__all__ = ["VAE", "Bound", "Bundle", "BundleError", "Rows", "load_bundle", "log_evidence_bound", "save_bundle"]

# PyTorch takes a second to load: a name's module is imported where the name is used first, vae.bundle_files without it.
MODULES = {
    "VAE": "vae.model",
    "Bound": "vae.model",
    "Bundle": "vae.bundle",
    "BundleError": "vae.bundle_files",
    "Rows": "vae.rows",
    "load_bundle": "vae.bundle",
    "log_evidence_bound": "vae.evidence",
    "save_bundle": "vae.bundle",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'vae' has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
