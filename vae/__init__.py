"""A variational autoencoder for rows of mixed type, in plain PyTorch: no Ray, no MLflow, no Parquet.

from vae import VAE, load_bundle
bundle = load_bundle("path/to/bundle")
q_z = bundle.model.posterior(rows)
"""

from vae.bundle import Bundle, BundleError, load_bundle, save_bundle
from vae.evidence import log_evidence_bound
from vae.model import VAE, Bound
from vae.rows import Rows

__all__ = ["VAE", "Bound", "Bundle", "BundleError", "Rows", "load_bundle", "log_evidence_bound", "save_bundle"]
