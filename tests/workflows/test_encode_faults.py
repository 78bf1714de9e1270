"""encode.py under SIGKILL at random moments: every row once, nothing half written, the bytes of an undisturbed run."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.running import LONG_S, Trained, run_job, running_job, wait_until

NUM_FILES = 12
ROWS = 1200


def write_input(folder: Path, rows: pa.Table, version: int) -> None:
    """Writes files of which every other differs by version: its rows, and so their keys. One is cut into units."""
    folder.mkdir(exist_ok=True)
    for number in range(NUM_FILES):
        changes = number % 2
        num_rows = ROWS * (6 if number == 1 else 1) - 10 * version * changes
        keys = pa.array(range(number * 100_000, number * 100_000 + num_rows))
        table = pa.concat_tables([rows] * 5).slice(0, num_rows).set_column(0, "id", keys)
        if changes or version == 0:
            pq.write_table(table, folder / f"part-{number:02d}.parquet", row_group_size=ROWS)


class Reader:
    """Reads the output again and again, as whoever uses it would, and notes what it must not see."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults, self.num_reads = folder, set[str](), 0
        self.lengths = [{ROWS * (6 if n == 1 else 1) - 10 * version * (n % 2) for version in (0, 1)} for n in range(NUM_FILES)]

    def read(self) -> None:
        dataset = ds.dataset(self.folder, format="parquet", exclude_invalid_files=False)
        keys = dataset.to_table(columns=["id"])["id"].to_pylist() if dataset.files else []
        self.num_reads += 1
        if len(set(keys)) != len(keys):
            self.faults.add("a key came twice")
        for number, lengths in enumerate(self.lengths):
            found = sorted(key - number * 100_000 for key in keys if key // 100_000 == number)
            if found and (len(found) not in lengths or found != list(range(len(found)))):
                self.faults.add(f"file {number} was seen with {len(found)} rows, not {lengths}")

    @contextmanager
    def reading(self) -> Iterator[None]:
        ended = threading.Event()

        def loop() -> None:
            while not ended.is_set():
                try:
                    self.read()
                except FileNotFoundError:  # the folder is not there yet
                    time.sleep(0.01)
                except Exception as error:  # whatever it is, a reader must not meet it
                    self.faults.add(repr(error))

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.fixture(scope="module")
def versions(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """The output files of an undisturbed run over each version of the input, and the inputs' folders beside them."""
    outputs = []
    for version in (0, 1):
        folder = tmp_path_factory.mktemp(f"version{version}")
        for earlier in range(version + 1):
            write_input(folder / "in", pq.read_table(trained.table), earlier)
        assert run_job(trained.folder, "encode.py", *options(folder, None)).code == 0
        outputs.append(files_of(folder))
    return outputs


def options(folder: Path, address: str | None) -> list[object]:
    scores = ["--output.columns", "[mean, scale, log_evidence_bound]", "--num_importance_samples", 40, "--data.max_unit_rows", ROWS]
    given = ["--model", "models:/digits@candidate", "--data.path", folder / "in", "--output.path", folder / "out", *scores]
    return [*given, "--cluster.num_actors", 2, *(["--cluster.address", address] if address else [])]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out/model_version=1").glob("*.parquet")}


def actors() -> list[psutil.Process]:
    """Returns the encoding actors of the tests' cluster."""
    return [process for process in psutil.process_iter() if process_title(process).startswith("ray::Worker")]


def process_title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_for_work(output: Path, process: psutil.Popen, written: int) -> None:
    """Returns when so many files have been staged or written, or the job ended."""
    seen: set[str] = set()
    deadline = time.monotonic() + LONG_S
    while len(seen) < written and process.poll() is None:
        assert time.monotonic() < deadline
        for folder in (output / "model_version=1", output / "model_version=1/_staging"):
            if folder.is_dir():
                seen |= {f"{path.name} {path.stat().st_mtime_ns}" for path in folder.iterdir() if path.is_file() and path.exists()}
        time.sleep(0.002)


def test_a_job_that_is_stopped_says_so_and_nothing_of_retries(trained: Trained, ray_address: str, tmp_path: Path) -> None:
    write_input(tmp_path / "in", pq.read_table(trained.table), 0)
    log = trained.folder / "log.txt"
    written = log.stat().st_size if log.exists() else 0
    with running_job(trained.folder, "encode.py", *options(tmp_path, ray_address)) as process:
        wait_for_work(tmp_path / "out", process, 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG_S) == 75
    first, *_, last = log.read_bytes()[written:].decode().splitlines()
    assert "12 of 12 files to do" in first
    assert last == "stopped; the same command with the same names goes on from what was saved"
    assert "retr" not in log.read_bytes()[written:].decode()
    assert run_job(trained.folder, "encode.py", *options(tmp_path, ray_address)).code == 0
    keys = ds.dataset(tmp_path / "out/model_version=1").to_table()["id"].to_pylist()
    assert sorted(keys) == sorted(ds.dataset(tmp_path / "in").to_table()["id"].to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_killed_whenever_every_row_comes_once(
    trained: Trained, ray_address: str, versions: list[dict[str, bytes]], seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    rows = pq.read_table(trained.table)
    write_input(tmp_path / "in", rows, 0)
    reader = Reader(tmp_path / "out/model_version=1")
    with reader.reading():
        for version in (0, 1):
            write_input(tmp_path / "in", rows, version)
            with running_job(trained.folder, "encode.py", *options(tmp_path, ray_address)) as process:
                wait_until(actors)  # there is work for them each time
                wait_for_work(tmp_path / "out", process, chance.randrange(0 if version else 1, 20))
                time.sleep(chance.random() * 0.2)
                if chance.random() < 0.5:
                    process.kill()
                else:
                    for actor in actors()[: chance.randint(1, 2)]:
                        with suppress(psutil.NoSuchProcess):
                            actor.kill()
                process.wait(LONG_S)
            again = run_job(trained.folder, "encode.py", *options(tmp_path, ray_address))
            assert again.code == 0, again.stderr
            assert files_of(tmp_path) == versions[version]
    assert reader.faults == set()
    assert reader.num_reads > 10
    keys = ds.dataset(tmp_path / "out/model_version=1").to_table()["id"].to_pylist()
    assert sorted(keys) == sorted(ds.dataset(tmp_path / "in").to_table()["id"].to_pylist())
    assert not (tmp_path / "out/model_version=1/_staging").exists()
