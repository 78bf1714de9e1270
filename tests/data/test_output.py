"""Claims about data.output: whole files or none, one job a folder, one name an input."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.listing import DataError
from data.output import LostError, OutputError, OutputFolder, output_name
from data.stores import put_if_absent
from data.table import open_table

TABLE = pa.table({"id": [1, 2, 3], "z_mean": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6, dtype=np.float32)), 2)})
# More than a filesystem's 255 bytes: to look there fails for everybody, as a folder without permission does for all but root.
LONG = "o" * 300
RECORD = {"job": "encode", "model_name": "vae", "columns": ["id", "mean"]}


def folder(tmp_path: Path) -> OutputFolder:
    return OutputFolder.open(str(tmp_path / "out"))


def visible(tmp_path: Path) -> list[str]:
    """Returns what a reader of the output sees."""
    try:
        return [file.relative_path for file in open_table(str(tmp_path / "out")).files]
    except DataError:
        return []


def write(output: OutputFolder, name: str, table: pa.Table = TABLE) -> None:
    with output.staged(name, table.schema) as writer:
        writer.write_table(table)


def test_a_staged_file_is_seen_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    output = folder(tmp_path)
    with output.staged("a.parquet", TABLE.schema) as writer:
        writer.write_table(TABLE)
        assert visible(tmp_path) == []
        assert not output.exists("a.parquet")
    assert visible(tmp_path) == ["a.parquet"]
    assert output.exists("a.parquet")
    assert list((tmp_path / "out/_staging").iterdir()) == []
    assert pq.read_table(tmp_path / "out/a.parquet").equals(TABLE)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_staged_file_is_absent_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    output = folder(tmp_path)
    with pytest.raises((error, OutputError)), output.staged("a.parquet", TABLE.schema) as writer:  # noqa: PT012
        writer.write_table(TABLE)
        raise error("half way")
    assert visible(tmp_path) == []
    assert not (tmp_path / "out/a.parquet").exists()


def test_a_second_attempt_overwrites_itself_and_a_failed_one_leaves_what_was_there(tmp_path: Path) -> None:
    output = folder(tmp_path)
    write(output, "a.parquet")
    write(output, "a.parquet", TABLE.slice(0, 1))
    with pytest.raises(ValueError, match="half way"), output.staged("a.parquet", TABLE.schema):
        raise ValueError("half way")
    assert pq.read_table(tmp_path / "out/a.parquet").num_rows == 1
    assert visible(tmp_path) == ["a.parquet"]


def test_two_attempts_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    output = folder(tmp_path)
    with output.staged("a.parquet", TABLE.schema) as slow:
        slow.write_table(TABLE)
        write(output, "a.parquet")
        assert pq.read_table(tmp_path / "out/a.parquet").equals(TABLE)
        slow.write_table(TABLE)
    assert pq.read_table(tmp_path / "out/a.parquet").num_rows == 6
    assert visible(tmp_path) == ["a.parquet"]


def test_text_is_dictionary_encoded_and_numbers_are_not(tmp_path: Path) -> None:
    columns = {
        "text": ["x", "x", "y"],
        "number": [1, 1, 2],
        "list": [[0.5], [0.5], [0.5]],
        "large": pa.array([[1.0]] * 3, pa.large_list(pa.float64())),
    }
    table = pa.table(columns).append_column("fixed", TABLE["z_mean"])
    write(folder(tmp_path), "a.parquet", table)
    group = pq.read_metadata(tmp_path / "out/a.parquet").row_group(0)
    encodings = {column.path_in_schema.split(".")[0]: column.encodings for column in map(group.column, range(group.num_columns))}
    assert {name for name, used in encodings.items() if any("DICTIONARY" in encoding for encoding in used)} == {"text"}
    assert set(encodings) == {"text", "number", "list", "large", "fixed"}


def test_the_schemas_metadata_reaches_the_footer(tmp_path: Path) -> None:
    write(folder(tmp_path), "a.parquet", TABLE.replace_schema_metadata({"vae.model_name": "m"}))
    assert pq.read_schema(tmp_path / "out/a.parquet").metadata[b"vae.model_name"] == b"m"


def test_a_claim_holds_for_the_same_record_and_for_no_other(tmp_path: Path) -> None:
    output = folder(tmp_path)
    output.claim(RECORD)
    write(output, "a.parquet")
    output.claim(dict(reversed(RECORD.items())))
    for other, said in (
        (RECORD | {"model_name": "other"}, "model_name is 'vae', asked is 'other'"),
        (RECORD | {"seed": 1}, "seed is None, asked is 1"),
        ({"job": "encode", "model_name": "vae"}, r"columns is \['id', 'mean'\], asked is None"),
    ):
        with pytest.raises(OutputError, match=f"out: holds another job's output .{said}.; choose another output.path"):
            output.claim(other)
    assert json.loads((tmp_path / "out/_job.json").read_text()) == RECORD


def test_a_claim_refuses_foreign_files_and_leaves_them_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    pq.write_table(TABLE, tmp_path / "out/theirs.parquet")
    with pytest.raises(
        OutputError, match=r"holds Parquet files that no job of ours wrote \(theirs\.parquet\); choose an empty output\.path"
    ):
        folder(tmp_path).claim(RECORD)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs.parquet"]


def test_a_claim_leaves_nothing_but_its_record(tmp_path: Path) -> None:
    folder(tmp_path).claim(RECORD)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_job.json"]
    assert visible(tmp_path) == []


def test_of_two_claims_at_once_the_second_looks_at_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = folder(tmp_path)
    output.claim(RECORD)
    look = OutputFolder.exists
    for record, refused in ((RECORD, False), (RECORD | {"job": "generate"}, True)):
        answers = iter([False])  # the other claim came between this one's look and its put
        monkeypatch.setattr(
            OutputFolder, "exists", lambda self, name, answers=answers: next(answers, None) is not False and look(self, name)
        )
        if refused:
            with pytest.raises(OutputError, match="job is 'encode', asked is 'generate'"):
                output.claim(record)
        else:
            output.claim(record)
        assert next(answers, "used") == "used"


def test_manifests_are_numbered_and_each_number_is_put_once(tmp_path: Path) -> None:
    output = folder(tmp_path)
    assert output.newest_manifest() == ({}, 0)
    assert output.last_manifest() is None
    for number in range(1, 12):
        path = output.put_manifest({"units": number}, number)
        assert output.last_manifest() == path == str(tmp_path / f"out/_manifests/{number:06d}.json")
        assert output.newest_manifest() == ({"units": number}, number)
    with pytest.raises(FileExistsError):
        output.put_manifest({"units": "again"}, 11)
    assert output.newest_manifest() == ({"units": 11}, 11)
    assert json.loads((tmp_path / "out/_SUCCESS").read_text()) == {"manifest": "000011.json"}


def test_of_many_who_put_the_same_number_one_does_and_its_content_stays(tmp_path: Path) -> None:
    output = folder(tmp_path)
    outcomes: list[tuple[int, bool]] = []
    start = threading.Barrier(8)

    def put(writer: int) -> None:
        start.wait()
        try:
            output.put_manifest({"writer": writer, "long": "x" * 10_000}, 1)
            outcomes.append((writer, True))
        except FileExistsError:
            outcomes.append((writer, False))

    threads = [threading.Thread(target=put, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [writer for writer, won in outcomes if won]
    assert len(outcomes) == 8
    assert len(winners) == 1
    assert output.newest_manifest()[0]["writer"] == winners[0]
    assert [path.name for path in (tmp_path / "out/_manifests").iterdir()] == ["000001.json"]


def test_put_if_absent_puts_once_and_leaves_no_other_file(tmp_path: Path) -> None:
    output = folder(tmp_path)
    output.prepare()
    put_if_absent(output.filesystem, f"{output.path}/x", b"first")
    with pytest.raises(FileExistsError):
        put_if_absent(output.filesystem, f"{output.path}/x", b"second")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"x": b"first"}


def test_no_staging_is_left_after_the_manifest(tmp_path: Path) -> None:
    output = folder(tmp_path)
    output.claim(RECORD)
    with pytest.raises(ValueError, match="half way"), output.staged("lost.parquet", TABLE.schema):
        raise ValueError("half way")
    write(output, "a.parquet")
    output.put_manifest({}, 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_SUCCESS", "_job.json", "_manifests", "a.parquet"]
    assert visible(tmp_path) == ["a.parquet"]


def test_a_folder_below_is_a_folder_of_its_own(tmp_path: Path) -> None:
    root = folder(tmp_path)
    root.claim(RECORD)
    write(root.below("model_version=3"), "a.parquet")
    assert (tmp_path / "out/model_version=3/a.parquet").exists()
    assert root.newest_manifest() == ({}, 0)


@pytest.mark.parametrize("deeper", ["", "/below"])
def test_what_cannot_be_written_is_an_output_error_by_path(tmp_path: Path, deeper: str) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    output = OutputFolder.open(f"{tmp_path}/out{deeper}")
    attempts: list[Any] = [
        output.prepare,
        lambda: output.claim(RECORD),
        lambda: write(output, "a.parquet"),
        lambda: output.put_manifest({}, 1),
    ]
    for attempt in attempts:
        with pytest.raises(OutputError, match=f"{tmp_path}/out.*cannot be written"):
            attempt()


@pytest.mark.parametrize("content", [b"", b'{"job": "enc', b"\xff\xfe", b"null", b"3"])
def test_a_claim_or_a_manifest_that_is_damaged_is_said_with_its_path(tmp_path: Path, content: bytes) -> None:
    output = folder(tmp_path)
    output.claim(RECORD)
    manifest, claim = Path(output.put_manifest({"units": {}}, 1)), tmp_path / "out/_job.json"
    attempts: list[tuple[Path, Any]] = [(manifest, output.newest_manifest), (claim, lambda: output.claim(RECORD))]
    for path, attempt in attempts:
        path.write_bytes(content)
        with pytest.raises(OutputError, match=f"{path} is not what a job wrote there; restore it, or choose another output.path"):
            attempt()


def test_a_folder_that_cannot_be_looked_into_is_an_output_error_by_path(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"{tmp_path}/{LONG}: cannot be read: .*File name too long"):
        OutputFolder.open(f"{tmp_path}/{LONG}").claim(RECORD)


def test_a_uri_of_no_filesystem_is_an_output_error() -> None:
    with pytest.raises(OutputError, match=r"nofs://out: cannot be opened: .*; give a path, file://, s3:// or gs:// URI"):
        OutputFolder.open("nofs://out")


parts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda p: p not in (".", "..")
)
tricky = st.sampled_from(["a", "b", "_", ".", "%", "%2F", "%2E", "%5F", " ", "é", "a.b", ".parquet", "parquet", "x" * 300])
names = st.one_of(parts, st.lists(tricky, min_size=1, max_size=3).map("".join).filter(lambda p: p not in (".", "..", "...")))
ENDINGS = (".parquet", ".pq", ".parq", "", ".", "%2E", "%2E.parquet", ".pq.parquet", ".parquet.parquet")
paths = st.builds(
    lambda folders, name, ending: "/".join([*folders, name + ending]), st.lists(names, max_size=2), names, st.sampled_from(ENDINGS)
)


@settings(max_examples=200)
@given(stems=st.lists(paths, min_size=1, max_size=4))
def test_different_inputs_have_different_outputs(stems: list[str]) -> None:
    """Neighbours that an ending, a quote or a leading mark tells apart."""
    inputs = {before + stem + ending for stem in stems for before in ("", "_", "%5F", "a/", "a%2F") for ending in ENDINGS}
    assert len({output_name(path) for path in inputs}) == len(inputs)


@settings(max_examples=300)
@given(path=paths)
def test_every_output_is_a_visible_parquet_file_in_the_folder_itself(path: str) -> None:
    name = output_name(path)
    assert name.endswith(".parquet")
    assert len(name) > len(".parquet")
    assert name[0] not in "_."
    assert "/" not in name
    assert name.isascii()
    assert name.isprintable()
    assert len(name) + len(".12345678") <= 255


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("part-00000.parquet", "part-00000.parquet"),
        ("a/b.parquet", "a%2Fb.parquet"),
        ("a%2Fb.parquet", "a%252Fb.parquet"),
        ("a.pq", "a.pq%2E.parquet"),
        ("_a.parquet", "%5Fa.parquet"),
        ("x=1, (2).parquet", "x=1, (2).parquet"),
    ],
)
def test_output_names_are_frozen(path: str, name: str) -> None:
    """Another name for the same input would leave the old output beside the new one."""
    assert output_name(path) == name


@settings(max_examples=15)
@given(path=paths)
def test_every_output_name_can_be_written_and_is_found(path: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    output = OutputFolder.open(str(tmp_path_factory.mktemp("named")))
    write(output, output_name(path))
    assert [file.relative_path for file in open_table(output.path).files] == [output_name(path)]


def test_a_folder_is_not_marked_complete_by_a_manifest_that_is_not(tmp_path: Path) -> None:
    output = folder(tmp_path)
    output.put_manifest({"units": 1}, 1)
    output.put_manifest({"units": 2}, 2, complete=False)
    assert json.loads((tmp_path / "out/_SUCCESS").read_text()) == {"manifest": "000001.json"}


def test_who_lost_the_folder_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    output = folder(tmp_path)
    write(output, "a.parquet")
    with pytest.raises(LostError, match="took over"), output.staged("a.parquet", TABLE.schema, lambda: False) as writer:
        writer.write_table(TABLE.slice(0, 1))
    assert pq.read_table(tmp_path / "out/a.parquet").equals(TABLE)


def test_a_footer_says_what_was_noted_in_it(tmp_path: Path) -> None:
    output = folder(tmp_path)
    with output.staged("a.parquet", TABLE.schema) as writer:
        writer.write_table(TABLE)
        writer.annotate({"vae.input": json.dumps({"num_rows": 3})})
    write(output, "plain.parquet")
    (tmp_path / "out/damaged.parquet").write_bytes(b"PAR1 no")
    assert output.footer_record("a.parquet") == {"num_rows": 3}
    assert [output.footer_record(name) for name in ("plain.parquet", "damaged.parquet", "absent.parquet")] == [None] * 3
    listed = output.files()
    assert (
        listed["a.parquet"]
        == output.stat("a.parquet")
        == {
            "output_bytes": (tmp_path / "out/a.parquet").stat().st_size,
            "output_mtime_ns": (tmp_path / "out/a.parquet").stat().st_mtime_ns,
        }
    )
