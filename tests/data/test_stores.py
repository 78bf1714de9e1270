"""What lies in an object store is found, written whole and put once, and a store that does not answer is not taken for a bad file."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

import data.stores
from data.listing import DataError, find_files
from data.output import OutputError, OutputFolder
from data.stores import StoreError, address, put_by_bid, put_if_absent, refuse_silence, silence
from data.table import open_table
from tests.object_store import BUCKET, ObjectStore

TABLE = pa.table({"a": [1, 2, 3]})


def put(store: ObjectStore, path: str, content: bytes = b"") -> None:
    with store.filesystem().open_output_stream(f"{BUCKET}/{path}") as stream:
        stream.write(content)


def put_table(store: ObjectStore, path: str) -> None:
    with store.filesystem().open_output_stream(f"{BUCKET}/{path}") as stream:
        pq.write_table(TABLE, stream)


def names_below(store: ObjectStore, path: str) -> list[str]:
    found = store.filesystem().get_file_info(fs.FileSelector(f"{BUCKET}/{path}", recursive=True))
    return sorted(info.path.removeprefix(f"{BUCKET}/{path}/") for info in found if info.type == fs.FileType.File)


FILES = ["a.parquet", "b.parquet", "_c.parquet", "2026-11-22/a.parquet", "2026-11-22/x/b.parquet", "2026-11-23/a.parquet", "note.txt"]


@pytest.mark.parametrize(
    "pattern",
    ["*.parquet", "[ac].parquet", "2026-11-2*", "2026-*/a.parquet", "**/a.parquet", "**/x/*", "**", "*/*", "2026-11-2[3-9]/*.parquet"],
)
def test_a_glob_finds_in_an_object_store_what_it_finds_in_a_folder(store: ObjectStore, pattern: str, tmp_path: Path) -> None:
    for name in FILES:
        put(store, f"globs/{name}")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    _, local = find_files([str(tmp_path / pattern)])
    _, stored = find_files([store.uri(f"globs/{pattern}")])
    assert [file.relative_path for file in stored] == [file.relative_path for file in local]
    assert stored


def test_a_glob_that_matches_nothing_is_an_error(store: ObjectStore) -> None:
    with pytest.raises(DataError, match="no file matches"):
        find_files([store.uri("nothing/*.parquet")])


def test_a_table_in_an_object_store_is_read(store: ObjectStore) -> None:
    for name in ("date=2026-11-22/a.parquet", "date=2026-11-23/b.parquet"):
        put_table(store, f"table/{name}")
    table = open_table(store.uri("table"), ["a", "date"])
    assert table.num_rows == 6
    assert [file.relative_path for file in table.files] == ["date=2026-11-22/a.parquet", "date=2026-11-23/b.parquet"]


def test_a_path_is_named_by_its_uri_where_it_is_not_local(store: ObjectStore) -> None:
    assert address(store.filesystem(), "bucket/x") == "s3://bucket/x"
    assert address(fs.LocalFileSystem(), "/x") == "/x"


def test_output_in_an_object_store_appears_whole_or_not_at_all(store: ObjectStore) -> None:
    output = OutputFolder.open(store.uri("output"))
    output.claim({"job": "test"})
    with output.staged("a.parquet", TABLE.schema) as writer:
        writer.write_table(TABLE)
        assert not output.exists("a.parquet")
    with pytest.raises(ValueError, match="half way"), output.staged("lost.parquet", TABLE.schema):
        raise ValueError("half way")
    manifest = output.put_manifest({"units": 1}, 1)
    assert manifest == output.last_manifest() == f"{BUCKET}/output/_manifests/000001.json"
    assert names_below(store, "output") == ["_SUCCESS", "_job.json", "_manifests/000001.json", "a.parquet"]
    assert pq.read_table(f"{BUCKET}/output/a.parquet", filesystem=store.filesystem()) == TABLE
    with pytest.raises(OutputError, match="s3://bucket/output: holds another job's output"):
        output.claim({"job": "other"})


def test_of_many_who_put_a_file_one_does_and_its_content_stays(store: ObjectStore) -> None:
    filesystem = store.filesystem()
    for number in range(5):
        winners: list[int] = []
        barrier = threading.Barrier(4)

        def put_own(writer: int, number: int = number, barrier: threading.Barrier = barrier, winners: list[int] = winners) -> None:
            barrier.wait()
            try:
                put_if_absent(filesystem, f"{BUCKET}/once/{number}", str(writer).encode())
            except FileExistsError:
                return
            winners.append(writer)

        threads = [threading.Thread(target=put_own, args=(writer,)) for writer in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
        assert filesystem.open_input_file(f"{BUCKET}/once/{number}").read() == str(winners[0]).encode()
    assert names_below(store, "once") == [str(number) for number in range(5)]


@dataclass
class Turns:
    """A store in memory on which each of two jobs does one thing after the other, in the order that the schedule says.

    Where the one whose turn it is has ended, it is the other one's.
    """

    schedule: Iterator[int]
    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    clock_ns: int = 0
    turn: threading.Condition = field(default_factory=threading.Condition)
    waiting: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    now: int | None = None
    job: threading.local = field(default_factory=threading.local)

    @contextmanager
    def step(self) -> Iterator[None]:
        with self.turn:
            self.waiting.add(self.job.number)
            self.next()
            assert self.turn.wait_for(lambda: self.now == self.job.number, timeout=20)
            self.waiting.remove(self.job.number)
            self.now = None
            yield

    def next(self) -> None:
        """Lets a job do its next thing as soon as each that has not ended waits for that."""
        if self.now is None and self.waiting | self.ended == {0, 1} and self.waiting:
            wanted = next(self.schedule)
            self.now = wanted if wanted in self.waiting else min(self.waiting)
            self.turn.notify_all()

    def end(self) -> None:
        with self.turn:
            self.ended.add(self.job.number)
            self.next()

    def get_file_info(self, what: Any) -> Any:
        with self.step():
            if isinstance(what, str):
                return SimpleNamespace(type=fs.FileType.File if what in self.files else fs.FileType.NotFound)
            return [SimpleNamespace(path=path, mtime_ns=put_ns) for path, (_, put_ns) in self.files.items()]

    @contextmanager
    def open_output_stream(self, path: str) -> Iterator[io.BytesIO]:
        stream = io.BytesIO()
        yield stream
        with self.step():
            self.files[path] = (stream.getvalue(), self.clock_ns)

    def delete_file(self, path: str) -> None:
        with self.step():
            del self.files[path]


def contend(schedule: Iterable[int]) -> tuple[list[int], Turns]:
    """Returns who put the file, and the store. Once the schedule is at its end the jobs take turns."""
    turns, winners, refused = Turns(itertools.chain(schedule, itertools.cycle((0, 1)))), list[int](), list[int]()

    def work(number: int) -> None:
        turns.job.number = number
        try:
            put_by_bid(turns, "folder/file", str(number).encode())
            winners.append(number)
        except FileExistsError:
            refused.append(number)
        finally:
            turns.end()

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(winners + refused) == [0, 1], "each ended as one or the other"
    return winners, turns


def test_whatever_two_jobs_do_first_one_of_them_puts_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    # One that does not wait does six things: a look, a bid, a list, a look, the file, and the bid's end.
    for schedule in itertools.product((0, 1), repeat=9):
        winners, turns = contend(schedule)
        assert len(winners) == 1, schedule
        assert {path: content for path, (content, _) in turns.files.items()} == {"folder/file": str(winners[0]).encode()}


@given(st.lists(st.integers(0, 1), min_size=8, max_size=40))
@settings(max_examples=50)
def test_that_holds_for_longer_orders_too(schedule: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "sleep", lambda _: None)
        winners, turns = contend(schedule)
    assert len(winners) == 1
    assert list(turns.files) == ["folder/file"]


@pytest.mark.parametrize(("age_s", "is_put"), [(61, True), (59, False)])
def test_the_bid_of_a_job_that_was_killed_is_forgotten_after_a_minute(age_s: int, is_put: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.stores, "BID_EXPIRY_S", 60.0)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    turns = Turns(itertools.repeat(0), files={"folder/file.bid-": (b"", 0)}, clock_ns=age_s * 10**9, ended={1})
    turns.job.number = 0
    if is_put:
        put_by_bid(turns, "folder/file", b"own")
        assert turns.files["folder/file"][0] == b"own"
    else:
        with pytest.raises(FileExistsError):
            put_by_bid(turns, "folder/file", b"own")
        assert list(turns.files) == ["folder/file.bid-"], "its own bid is withdrawn"


@pytest.mark.parametrize(
    "answer",
    [
        "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server",
        "AWS Error SLOW_DOWN during ListObjectsV2 operation: m",
        "AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.",
        "google::cloud::Status(UNAVAILABLE: Permanent error GetObjectMetadata: EasyPerform() - CURL error [7]=Could not connect)",
    ],
)
def test_a_store_that_does_not_answer_says_nothing_of_the_file(answer: str) -> None:
    with pytest.raises(StoreError, match="the store does not answer"):
        refuse_silence(OSError(f"When getting information for key 'x' in bucket 'b': {answer}"))


@pytest.mark.parametrize(
    "answer",
    [
        "When listing objects under key 'x/' in bucket 'bucket': AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: m",
        "When reading key 'x' in bucket 'bucket': AWS Error ACCESS_DENIED during HeadObject operation: No response body.",
        "google::cloud::Status(PERMISSION_DENIED: no)",
        "Couldn't deserialize thrift: TProtocolException: Invalid data",
    ],
)
def test_what_a_store_says_of_the_file_is_the_files_fault(answer: str) -> None:
    assert silence(OSError(answer)) is None


def test_a_store_that_is_not_there_is_no_bad_data() -> None:
    nowhere = "s3://user:password@bucket/table?scheme=http&endpoint_override=127.0.0.1:9&region=us-east-1"
    with pytest.raises(StoreError, match="Could not connect"):
        open_table(nowhere)
