"""Creates the RayJob of one night, once, and ends as it ends. Python's standard library is enough.

    python create.py encode.yaml                          in a pod of the CronJob of nightly.yaml: the night that it was scheduled for
    python create.py encode.yaml --partition 2026-11-22 --print | kubectl -n vae create -f -      by hand, for any night

In encode.yaml {partition} stands for the partition: the day before the scheduled time, which Kubernetes notes on the Job that the CronJob
makes (1.32 or newer). No clock is read: every retry of that Job is about the same night. A RayJob that exists already is not made again;
its end is waited for. Exit codes: 0 succeeded, 1 failed, 2 usage, 69 the Kubernetes API does not answer or does not allow it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"
ENDED = ("Complete", "Failed", "ValidationFailed")
MAX_NAME = 47  # KubeRay refuses longer names of RayJobs


class Api(NamedTuple):
    """The Kubernetes API as a pod reaches it: its address, and the folder of its service account."""

    address: str = "https://kubernetes.default.svc"
    account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")

    def call(self, method: str, group: str, resource: str, body: str | None = None) -> dict[str, Any]:
        """Returns the answer about a resource, such as jobs/NAME, of a group, such as batch/v1, in the pod's own namespace.

        Raises urllib.error.URLError, which is an OSError.
        """
        token, namespace = ((self.account / name).read_text().strip() for name in ("token", "namespace"))
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/yaml", "Accept": "application/json"}
        url = f"{self.address}/apis/{group}/namespaces/{namespace}/{resource}"
        request = urllib.request.Request(url, body.encode() if body else None, headers, method=method)
        certificates = ssl.create_default_context(cafile=self.account / "ca.crt") if url.startswith("https:") else None
        with urllib.request.urlopen(request, timeout=30, context=certificates) as answer:
            answered: dict[str, Any] = json.load(answer)
        return answered


def main(arguments: list[str] | None = None, api: Api | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Create the RayJob of one night, once, and end as it ends.", allow_abbrev=False)
    parser.add_argument("manifest", type=Path, help="a RayJob with {partition} in it")
    parser.add_argument("--partition", help="such as 2026-11-22; default: the day before the CronJob's scheduled time")
    parser.add_argument("--print", action="store_true", help="print the RayJob and create nothing")
    parser.add_argument("--poll_s", type=float, default=30.0, help="seconds between looks at the RayJob (default 30)")
    asked = parser.parse_args(arguments)
    api = api or Api()
    try:
        manifest = with_partition(asked.manifest.read_text(), asked.partition or scheduled_partition(api))
        if asked.print:
            print(manifest, end="")
            return 0
        return create_and_wait(api, manifest, asked.poll_s)
    except ValueError as error:
        say(f"error: {error}")
        return 2
    except OSError as error:  # urllib's errors are among them
        reason = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
        say(f"error: {error} {reason}".rstrip())
        return 69


def scheduled_partition(api: Api) -> str:
    """Returns the day before the time for which the CronJob made this pod's Job. Raises ValueError where nothing says so."""
    name = os.environ.get("JOB_NAME")
    if not name:
        raise ValueError("not in a pod of the CronJob (JOB_NAME is not set); give --partition")
    scheduled = api.call("GET", "batch/v1", f"jobs/{name}")["metadata"].get("annotations", {}).get(SCHEDULED)
    if scheduled is None:
        raise ValueError(f"Job {name} has no annotation {SCHEDULED}: made by hand, or by a Kubernetes before 1.32; give --partition")
    return (datetime.fromisoformat(scheduled).date() - timedelta(days=1)).isoformat()


def with_partition(template: str, partition: str) -> str:
    """Returns the manifest of one partition. Raises ValueError where its name would be none that KubeRay takes."""
    manifest = template.replace("{partition}", partition)
    name = rayjob_name(manifest)
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > MAX_NAME:
        raise ValueError(f"metadata.name is {name!r}; it must be lower-case letters, digits and dashes, at most {MAX_NAME}")
    return manifest


def rayjob_name(manifest: str) -> str:
    found = re.search(r"^metadata:\n  name: (\S+)$", manifest, re.MULTILINE)
    if found is None:
        raise ValueError("the manifest must say its name in the line after metadata:")
    return found[1]


def create_and_wait(api: Api, manifest: str, poll_s: float) -> int:
    """Returns 0 when the RayJob, made now or before, has succeeded, and 1 when it has not."""
    name = rayjob_name(manifest)
    try:
        api.call("POST", "ray.io/v1", "rayjobs", manifest)
        say(f"{name}: created")
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
        say(f"{name}: exists already")
    while True:
        status = api.call("GET", "ray.io/v1", f"rayjobs/{name}").get("status", {})
        if status.get("jobDeploymentStatus") in ENDED:
            break
        time.sleep(poll_s)
    succeeded = status.get("jobStatus") == "SUCCEEDED"
    say(f"{name}: {status.get('jobStatus') or status['jobDeploymentStatus']} {status.get('message', '')}".rstrip())
    if not succeeded:
        say(f"to run it again: kubectl delete rayjob {name}, then create it by hand (see the top of create.py)")
    return 0 if succeeded else 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
