"""Submits the batch job of one night to a Ray cluster, once, follows it, and ends as it ends.

    python deploy/submit.py --address URL --job encode --model models:/NAME@champion --partition 2026-11-22 -- \\
        --data.path s3://BUCKET/table --data.partition {partition} --output.path s3://BUCKET/embeddings [more options of the job]

In the job's options {partition} stands for --partition. Needs Ray on this machine, and RAY_AUTH_MODE and the token where the cluster
has one. The submission id is made of job, model reference (as written: the job resolves an alias) and partition. A second run of a night
that succeeded says so and does nothing; one that runs is followed; one that failed or was stopped is submitted again, as ID-2, ID-3, ..
To embed a night that is done with another version, name that version: models:/NAME/4.

The job's log goes to standard error, its JSON line to standard output. Exit codes are the job's (README.md); 69 also where the cluster does
not answer, 75 where somebody stopped the job, 1 where it never began. After 69 and 75 it is tried again, --attempts times in all, but for
a job that somebody stopped and a token that the cluster refuses.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import NamedTuple

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

ROOT = Path(__file__).resolve().parents[1]
SERVICE_MISSING, TRY_AGAIN = 69, 75


class Ending(NamedTuple):
    """How a submission ended: the exit code, and whether the same may end well a little later."""

    code: int
    may_succeed_later: bool


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code of the night's job."""
    asked = parse(arguments)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)  # Ray takes them before the address that it is given
    for attempt in range(1, asked.attempts + 1):
        ending = run_once(asked)
        if not ending.may_succeed_later or attempt == asked.attempts:
            break
        say(f"exit code {ending.code}; attempt {attempt + 1} of {asked.attempts} in {asked.pause_s:.0f} s")
        time.sleep(asked.pause_s)
    return ending.code


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Returns the options before --, and as `options` the job's own, after it."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s --address URL --job JOB --model REFERENCE --partition TEXT [options] -- [the job's options]",
        description="Submit the batch job of one night, once, and end as it ends; {partition} in the job's options stands for it.",
        allow_abbrev=False,
    )
    parser.add_argument("--address", required=True, help="where the cluster takes jobs, such as http://127.0.0.1:8265")
    parser.add_argument("--job", required=True, help="workflows/JOB.py, such as encode")
    parser.add_argument("--model", required=True, help="models:/NAME@alias or models:/NAME/VERSION, given to the job as --model")
    parser.add_argument("--partition", required=True, help="what the night is about, such as 2026-11-22")
    parser.add_argument("--attempts", type=int, default=3, help="runs in all, while the exit code is 69 or 75 (default 3)")
    parser.add_argument("--pause_s", type=float, default=300.0, help="seconds between them (default 300)")
    words = sys.argv[1:] if arguments is None else arguments
    own = words[: words.index("--")] if "--" in words else words
    asked = parser.parse_args(own, argparse.Namespace(options=words[len(own) + 1 :]))
    if not (ROOT / "workflows" / f"{asked.job}.py").is_file():
        parser.error(f"--job is {asked.job!r}; there is no workflows/{asked.job}.py")
    if asked.attempts < 1:
        parser.error(f"--attempts is {asked.attempts}; it must be at least 1")
    return asked


def run_once(asked: argparse.Namespace) -> Ending:
    """Submits the night's job, or finds the one that there is, and follows it to its end."""
    try:
        client = JobSubmissionClient(asked.address)
        submission_id = find_or_submit(client, asked)
        return follow(client, submission_id)
    except (OSError, RuntimeError, AuthenticationError, aiohttp.ClientError) as error:
        say(f"error: the Ray cluster at {asked.address}: {error}")
        return Ending(SERVICE_MISSING, may_succeed_later=not isinstance(error, AuthenticationError))


def night_id(job: str, model: str, partition: str) -> str:
    """Returns the id of a night's first submission: readable, and no two nights have the same."""
    digest = hashlib.sha256("\n".join((job, model, partition)).encode()).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", f"{job}-{model.removeprefix('models:/')}-{partition}").strip("-")
    return f"{readable}-{digest}"


def find_or_submit(client: JobSubmissionClient, asked: argparse.Namespace) -> str:
    """Returns the id of the night's submission that succeeded or runs, else of a new one."""
    first = night_id(asked.job, asked.model, asked.partition)
    earlier = submissions(client, first)
    last = max(earlier, default=0)
    if last and earlier[last].status not in (JobStatus.FAILED, JobStatus.STOPPED):
        return str(earlier[last].submission_id)
    submission_id = first if not last else f"{first}-{last + 1}"
    command = ["python", f"workflows/{asked.job}.py", "--model", asked.model]
    command += [option.replace("{partition}", asked.partition) for option in asked.options]
    say(f"{submission_id}: {shlex.join(command)}")
    metadata = {"job": asked.job, "model": asked.model, "partition": asked.partition}
    code = {"working_dir": str(ROOT)}
    try:
        client.submit_job(entrypoint=shlex.join(command), submission_id=submission_id, runtime_env=code, metadata=metadata)
    except RuntimeError as error:
        if "already exists" not in str(error):  # else another submitter came first, and its job is this one
            raise
    return submission_id


def submissions(client: JobSubmissionClient, first: str) -> dict[int, JobDetails]:
    """Returns a night's submissions as number -> details: 1 for the id `first`, n for `first`-n."""
    numbered = {}
    for details in client.list_jobs():
        found = re.fullmatch(rf"{re.escape(first)}(?:-(\d+))?", details.submission_id or "")
        if found:
            numbered[int(found[1] or 1)] = details
    return numbered


def follow(client: JobSubmissionClient, submission_id: str) -> Ending:
    """Returns how a submission ended, when it has; its log goes to standard error, its JSON line to standard output."""
    if client.get_job_status(submission_id) == JobStatus.SUCCEEDED:
        say(f"{submission_id}: done already; nothing to do")
    else:
        asyncio.run(print_log(client, submission_id))
    while not (details := client.get_job_info(submission_id)).status.is_terminal():
        time.sleep(1)
    if details.status == JobStatus.SUCCEEDED:
        print(json_line(log_of(client, submission_id)), flush=True)
        return Ending(0, may_succeed_later=False)
    if details.status == JobStatus.STOPPED:
        say(f"{submission_id}: stopped by somebody; the same command submits it again")
        return Ending(TRY_AGAIN, may_succeed_later=False)
    say(f"{submission_id}: {details.message}")
    code = details.driver_exit_code or 0
    return Ending(code if 0 < code < 256 else 1, may_succeed_later=code in (SERVICE_MISSING, TRY_AGAIN))


async def print_log(client: JobSubmissionClient, submission_id: str) -> None:
    async for lines in client.tail_job_logs(submission_id):
        print(lines, end="", file=sys.stderr, flush=True)


def log_of(client: JobSubmissionClient, submission_id: str) -> str:
    """Returns a job's log; an empty one, saying why, where it is no longer there: the job has succeeded all the same."""
    try:
        return str(client.get_job_logs(submission_id))
    except RuntimeError as error:
        say(f"{submission_id}: its log is not to be had: {error}")
        return ""


def json_line(log: str) -> str:
    """Returns the last line of a job's log that is a JSON object; an empty object where the log has none."""
    for line in reversed(log.splitlines()):
        try:
            if isinstance(json.loads(line), dict):
                return line
        except ValueError:
            continue
    return "{}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("no longer followed; the job goes on, and the same command follows it again")
        sys.exit(TRY_AGAIN)
