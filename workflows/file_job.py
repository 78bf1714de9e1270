"""A batch job that makes one output file of each input file: what is to be done, doing it, and the manifest that says what was done."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import ray

from data.footer import Footer
from data.listing import DataError, in_partition
from data.output import OutputError, OutputFolder
from data.table import Table, open_table
from data.units import Record, Unit, finished, footer_line, state_of, units_of
from workflows.actors import Pool, run_units
from workflows.batch import (
    claim_pool,
    followed,
    held,
    model_files,
    put_manifest,
    rate,
    record_job,
    refuse_lost_output,
    refuse_output_in_input,
    where,
)
from workflows.batch_config import BatchClusterConfig, BatchDataConfig, EncodeConfig, ReconstructConfig
from workflows.cluster import connected
from workflows.errors import Incomplete, logger
from workflows.file_task import FileTask
from workflows.lease import Fence
from workflows.lineage import parameters
from workflows.pinned import PinnedModel, pin

MAX_NAMED = 10

Check = Callable[[pa.Schema, str, Collection[str]], None]


@dataclass(frozen=True)
class Plan:
    """What a look at input and output found. contents: what the manifest is to say, without the files that are to be done.

    said: what the newest manifest says; number: the number that the next one gets; gone: output name -> input file that is gone;
    emptied, moved: the output of files that have no row now, or another path.
    """

    units: list[Unit]
    contents: dict[str, Any]
    said: dict[str, Any]
    number: int
    gone: dict[str, str]
    emptied: list[str]
    moved: list[str]

    @property
    def is_work(self) -> bool:
        return bool(self.units or self.emptied or self.moved) or self.contents != {key: self.said.get(key, {}) for key in self.contents}


@dataclass(frozen=True)
class Done:
    """How a job ended. records: of the files that were made, and of those put aside; contents: what the manifest says now."""

    plan: Plan
    records: list[Record]
    contents: dict[str, Any]
    worked: bool
    num_files: int

    @property
    def unseen(self) -> Counter[str]:
        return sum((Counter(record.get("unseen", {})) for record in self.records), Counter[str]())

    def counts(self) -> dict[str, int]:
        """Returns the counts of the JSON line."""
        made = [record for record in self.records if "fault" not in record]
        return {
            "num_rows": sum(int(record["num_rows"]) for record in made),
            "num_units_done": len(made),
            "num_units_skipped": self.num_files - len({unit.output for unit in self.plan.units}),
            "num_files_quarantined": len(self.contents["quarantined"]),
            "num_files_vanished": len(self.plan.gone),
            "num_unseen": sum(self.unseen.values()),
        }


@dataclass(frozen=True)
class FileJob:
    """One job: which table becomes which output under which model, and the actor that does it, "MODULE:CLASS" of a FileActor.

    root: the output's folder; claim: what marks it as this job's. what: what the actor is told; what.reads names the columns that it reads.
    """

    name: str
    table: Table
    root: OutputFolder
    claim: dict[str, Any]
    pinned: PinnedModel
    actor: str
    what: Any
    schema: pa.Schema
    data: BatchDataConfig
    prune: bool

    @property
    def output(self) -> OutputFolder:
        return self.root.below(f"model_version={self.pinned.version}")

    @property
    def made_by(self) -> str:
        """A hash of what decides the output besides the input; the output's types follow the key's, which may change with the table."""
        columns = [f"{field.name}: {field.type}" for field in self.schema]
        return hashlib.sha256(json.dumps([self.pinned.sha256, self.claim, columns], sort_keys=True).encode()).hexdigest()

    def run(self, cluster: BatchClusterConfig) -> Done:
        """Does what is to be done, if anything is; a job that finds nothing writes nothing.

        Raises OutputError, TryAgain where another job holds the output, DataError where a file's data is bad and not put aside.
        """
        refuse_output_in_input(self.data.path, self.root)
        self.root.claim(self.claim)
        plan, records = self.look(), []
        contents = plan.contents
        if plan.is_work:
            with held(self.root) as fence:
                plan = self.look()  # another job may have ended just now
                if plan.units:
                    with connected(cluster.address):
                        records = self.carry_out(plan, fence, claim_pool(cluster))
                contents = self.commit(plan, records)
        return Done(plan, records, contents, plan.is_work, len(self.table.files))

    def look(self) -> Plan:
        """Returns what is to be done. Raises OutputError where another model's files are in the folder."""
        said, number = self.output.newest_manifest()
        if said and said["bundle_sha256"] != self.pinned.sha256:
            found = f"{said['model_name']} {said['model_version']} with bundle {said['bundle_sha256'][:12]}"
            raise OutputError(
                f"{self.output.address}: holds rows of {found}, asked is {self.pinned.sha256[:12]}; choose another output.path"
            )
        state = state_of(self.table, self.output, said.get("units", {}), self.what.reads.names, self.data.partition, self.made_by)
        units = list(units_of(state.to_do, self.data.max_unit_rows, self.made_by))
        gone = {name: record["input"] for name, record in state.vanished.items()}
        contents = {
            "units": {name: record for name, record in state.done.items() if not (self.prune and name in gone)},
            "quarantined": self._elsewhere(said, "quarantined") | dict(self.table.bad),
            "vanished": self._elsewhere(said, "vanished") | ({} if self.prune else dict.fromkeys(gone.values(), "kept")),
        }
        return Plan(units, contents, said, number + 1, gone, state.emptied, state.moved)

    def _elsewhere(self, said: dict[str, Any], key: str) -> dict[str, Any]:
        """Returns what the newest manifest says of files that this run does not look at."""
        known: dict[str, Any] = said.get(key, {})
        partition = self.data.partition
        return {path: value for path, value in known.items() if partition is not None and not in_partition(path, partition)}

    def carry_out(self, plan: Plan, fence: Fence, pool: Pool) -> list[Record]:
        """Returns the records of the files that were made, and of those that were put aside."""
        num_files = len({unit.output for unit in plan.units})
        logger.info(
            "%d of %d files to do, in %d units, by up to %d actors", num_files, len(self.table.files), len(plan.units), pool.num_actors
        )
        quarantine = self.data.on_bad_file == "quarantine"
        task = FileTask(self.output, fence, self.made_by, quarantine, self.data.max_batch_bytes, pool.use_gpu, self.what)
        results = run_units(self.actor, model_files(self.pinned), task, [{"unit": unit} for unit in plan.units], pool)
        records = followed((result["record"] for result in results), len(plan.units), sum(unit.num_rows for unit in plan.units))
        schema = self.schema.with_metadata(model_files(self.pinned).metadata)
        return list(whole_files(plan.units, records, task, schema))

    def commit(self, plan: Plan, records: list[Record]) -> dict[str, Any]:
        """Deletes what is to be deleted, puts the manifest, and returns its contents. Raises OutputError."""
        contents = plan.contents | {
            "units": plan.contents["units"] | {record["output"]: made(record) for record in records if "fault" not in record},
            "quarantined": plan.contents["quarantined"] | {record["input"]: record["fault"] for record in records if "fault" in record},
        }
        for name in [*plan.emptied, *plan.moved, *(plan.gone if self.prune else [])]:
            self.output.remove(name)
        put_manifest(self.output, self.pinned, self.name, contents, plan.number, complete=not contents["quarantined"])
        return contents


Config = TypeVar("Config", EncodeConfig, ReconstructConfig)


def perform(config: Config, job_of: Callable[[Config, PinnedModel], FileJob]) -> dict[str, Any]:
    """Does a job from its model's reference to its JSON line, which it returns.

    job_of: what is to become what, once input, model and output fit together. Raises what they do where they do not, and Incomplete
    where files were put aside.
    """
    started = time.monotonic()
    refuse_lost_output(config.output.path, config.model, config.registry.tracking_uri)
    pinned = pin(config.model, config.registry.tracking_uri)
    job = job_of(config, pinned)
    done = job.run(config.cluster)
    say(done, job.prune)
    result = {"job": job.name, "model_name": pinned.name, "model_version": pinned.version, **done.counts(), **where(job.output)}
    result |= rate(result, started)
    if done.worked:
        record_job(config.registry, pinned, parameters(asdict(config)), result, done.contents)
    refuse_bad_files(result, done.contents["quarantined"])
    return result


def made(record: Record) -> Record:
    return {key: value for key, value in record.items() if key not in ("output", "part")}


def whole_files(units: list[Unit], records: Iterable[Record], task: FileTask, schema: pa.Schema) -> Iterator[Record]:
    """Yields the record of every file; those that were made in parts are joined as soon as all their parts are there."""
    of_file: dict[str, list[Unit]] = {}
    for unit in units:
        of_file.setdefault(unit.output, []).append(unit)
    parts: dict[str, dict[str, Record]] = {}
    joining: list[ray.ObjectRef] = []
    join = ray.remote(num_cpus=0, max_retries=3)(join_parts)
    for record in records:
        if record["part"] is None:
            yield record
            continue
        here = parts.setdefault(record["output"], {})
        here[record["part"]] = record
        wanted = of_file[record["output"]]
        if len(here) == len(wanted):
            faults = [part for part in here.values() if "fault" in part]
            if faults:
                yield faults[0]
            else:
                joining.append(join.remote(task, schema, wanted, [here[unit.part or ""] for unit in wanted]))
            del parts[record["output"]]
    for reference in joining:
        yield ray.get(reference)


def join_parts(task: FileTask, schema: pa.Schema, units: list[Unit], records: list[Record]) -> Record:
    """Writes a file from its staged parts, with the very bytes that one unit of all its rows would have written; returns its record."""
    output = task.output
    unseen = sum((Counter(record["unseen"]) for record in records), Counter[str]())
    contents = [content for record in records for content in record["contents"]]
    record = finished(units[0], task.made_by, unseen, contents)
    with output.staged(units[0].output, schema, task.fence.is_held) as writer:
        for rows in output.parts([unit.part or "" for unit in units]):
            writer.write_table(rows)
        writer.annotate(footer_line(record))
    return record | {"output": units[0].output} | output.stat(units[0].output)


def open_input(data: BatchDataConfig, columns: list[str], check: Check) -> Table:
    """Returns the job's table. check(schema, path, spelled columns) raises DataError for a file that does not fit.

    Raises DataError, for all bad files at once.
    """
    quarantine = data.on_bad_file == "quarantine"
    return open_table(data.path, columns, partition=data.partition, fault_of=partial(footer_fault, check=check), quarantine=quarantine)


def footer_fault(footer: Footer, check: Check) -> str | None:
    """Returns what check raises for a file, None where it raises nothing."""
    spelled = [name for name in footer.partition if name not in footer.schema.names]
    schema = pa.schema([*footer.schema, *(pa.field(name, pa.string()) for name in spelled)])
    try:
        check(schema, footer.file.path, spelled)
    except DataError as error:
        return str(error)
    return None


def refuse_bad_files(result: dict[str, Any], quarantined: dict[str, str]) -> None:
    """Raises Incomplete, which exits with 65 after the JSON line, where files were put aside."""
    if quarantined:
        raise Incomplete(
            result, DataError("the other files are done; these were put aside:\n  " + "\n  ".join(named(quarantined.values())))
        )


def named(names: Collection[str]) -> list[str]:
    more = [f"and {len(names) - MAX_NAMED} more, which the manifest lists"] if len(names) > MAX_NAMED else []
    return [*list(names)[:MAX_NAMED], *more]


def say(done: Done, prune: bool) -> None:
    """Warns of input files that are gone or empty, and of values that the model has no code for; they became "other" or missing."""
    if done.plan.gone:
        fate = "were deleted" if prune else "stay (--output.prune true deletes them)"
        logger.warning("input files that are gone: %s; their rows %s", ", ".join(named(done.plan.gone.values())), fate)
    if done.plan.emptied:
        logger.warning("input files that have no row any more: %d; their output is gone with them", len(done.plan.emptied))
    if done.plan.moved:
        logger.info("input files that have another path now: %d; their output was made under it", len(done.plan.moved))
    for name, count in done.unseen.items():
        logger.warning("column %s: %d values that training did not see, encoded as other or missing", name, count)
