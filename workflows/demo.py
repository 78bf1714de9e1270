"""Shows the whole workflow on UCI digits: table, train (2 workers), encode, generate, pictures.

    python workflows/demo.py        (or: make demo)

Writes ./demo (table, embeddings, generated rows, pictures), ./runs and ./mlflow.db. A second run adds a model version.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: imports start at the repository root, not in workflows/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import pyarrow.dataset as ds

from data.column import Column
from workflows.digits import write_digits
from workflows.pictures import image_grid, latent_plane, save
from workflows.registry import Registry

HERE = Path(__file__).resolve().parent
FOLDER = Path("demo")
TRAINING = [
    "--model.hidden_dims",
    "[256, 128]",
    "--training.epochs",
    "80",
    "--training.global_batch_size",
    "64",
    "--training.learning_rate",
    "3e-3",
]


def main() -> None:
    table = FOLDER / "digits"
    write_digits(table)
    say(f"1. wrote {table}: UCI digits as Parquet")
    say("2. training on two workers")
    trained = job("train.py", "--data.path", str(table), "--data.key", "id", "--registry.model_name", "digits", *TRAINING)
    model = trained["model_uri"]
    say("3. embedding every row")
    encoded = job("encode.py", "--model", model, "--data.path", str(table), "--output.path", str(FOLDER / "embeddings"))
    say("4. generating rows")
    rows = FOLDER / f"generated_by_version_{trained['model_version']}"
    generated = job("generate.py", "--model", model, "--num_rows", "1000", "--output.path", str(rows))
    pictures = draw(trained, table, encoded["output_path"], rows)
    say(summary(trained, encoded, generated, pictures))


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def job(name: str, *arguments: str) -> dict[str, Any]:
    """Runs a job as a user would and returns its JSON line; exits with its code where it failed."""
    print(f"   python workflows/{name} {' '.join(a if ' ' not in a else repr(a) for a in arguments)}", flush=True)
    done = subprocess.run([sys.executable, str(HERE / name), *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def draw(trained: dict[str, Any], table: Path, embeddings: str, generated: Path) -> Path:
    """Draws what the jobs wrote, adds it to the run's pictures in MLflow, and returns a folder with all of them."""
    folder = FOLDER / "pictures"
    labels = {row["id"]: str(row["label"]) for row in ds.dataset(table).to_table(["id", "label"]).to_pylist()}
    rows = ds.dataset(embeddings).to_table()
    z_mean = np.stack(rows["z_mean"].to_numpy())
    save_to = FOLDER / "from_outputs"
    save_to.mkdir(exist_ok=True)
    save(latent_plane(z_mean, np.array([labels[i] for i in rows["id"].to_pylist()]), "label"), save_to / "embeddings.png")
    new = ds.dataset(generated).to_table()
    images = np.stack(new["image"].to_numpy()[:48])
    save(image_grid(images, Column("image", "image", "", shape=[8, 8]), "rows written by generate.py"), save_to / "generated_rows.png")
    registry = Registry(None)
    registry.log_files(trained["run_id"], save_to, "pictures")
    registry.fetch_files(trained["run_id"], "pictures", FOLDER)
    return folder


def summary(trained: dict[str, Any], encoded: dict[str, Any], generated: dict[str, Any], pictures: Path) -> str:
    validation = trained["validation"]
    return "\n".join(
        [
            f"Trained {trained['model_name']} version {trained['model_version']} (alias candidate): validation ELBO "
            f"{validation['elbo_nats_per_row']:.2f} nats per row over {validation['num_rows']} rows.",
            f"  embeddings      {encoded['output_path']}",
            f"  generated rows  {generated['output_path']}",
            f"  pictures        {pictures}/",
            "  MLflow          make ui, then http://127.0.0.1:5000: experiment vae, model digits",
        ]
    )


if __name__ == "__main__":
    main()
