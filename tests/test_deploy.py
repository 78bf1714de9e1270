"""Claims about the files of deploy/, checked offline: by Kubernetes' own schemas, systemd's own checker, and the jobs' own parsers."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped, unused-ignore]
import kubernetes_validate  # type: ignore[import-untyped, unused-ignore]
import pytest
import yaml

from deploy import submit
from deploy.kuberay.create import MAX_NAME, SCHEDULED, rayjob_name, with_partition
from tests.running import ROOT
from workflows.batch_config import EncodeConfig
from workflows.job import parse
from workflows.lineage import lineage

Object = dict[str, Any]

DEPLOY = ROOT / "deploy"
NIGHT = "2026-11-22"
ENCODE_TEXT = (DEPLOY / "kuberay" / "encode.yaml").read_text(encoding="utf-8")
RAYJOB: Object = yaml.safe_load(with_partition(ENCODE_TEXT, NIGHT))
NIGHTLY: list[Object] = list(yaml.safe_load_all((DEPLOY / "kuberay" / "nightly.yaml").read_text(encoding="utf-8")))
CRONJOB = next(each for each in NIGHTLY if each["kind"] == "CronJob")
CREATE_POD: Object = CRONJOB["spec"]["jobTemplate"]["spec"]["template"]
# The oldest Kubernetes that notes the scheduled time on a Job, and the newest that the package knows.
KUBERNETES = ["1.32", kubernetes_validate.latest_version()]


def exactly(required: str, optional: str = "", **types: Object) -> Object:
    """Returns the JSON schema of an object with these fields and no others."""
    names = [*required.split(), *optional.split()]
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": {name: types.get(name, {}) for name in names},
    }


COUNT: Object = {"type": "integer", "minimum": 0}
PARAMS: Object = {"type": "object", "additionalProperties": {"type": "string"}}
GROUP: dict[str, Object] = {"rayStartParams": PARAMS, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT}
# The fields of KubeRay's API reference for ray.io/v1 (docs.ray.io, "KubeRay CRD API reference"), with the types of those used here.
RAY_CLUSTER = exactly(
    "headGroupSpec",
    "rayVersion workerGroupSpecs authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headServiceAnnotations "
    "managedBy suspend",
    rayVersion={"type": "string"},
    authOptions=exactly("mode", "secretName", mode={"enum": ["disabled", "token"]}),
    headGroupSpec=exactly("rayStartParams template", "headService enableIngress serviceType resources labels", **GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": exactly(
            "groupName template rayStartParams minReplicas maxReplicas",
            "replicas numOfHosts idleTimeoutSeconds scaleStrategy suspend resources labels",
            **GROUP,
        ),
    },
)
RAYJOB_SPEC = exactly(
    "entrypoint rayClusterSpec",
    "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypointNumCpus entrypointNumGpus entrypointResources jobId "
    "managedBy metadata runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend "
    "ttlSecondsAfterFinished",
    entrypoint={"type": "string"},
    jobId={"type": "string"},
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes={"type": "boolean"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterConfig=exactly("", "backoffLimit", backoffLimit=COUNT),
    rayClusterSpec=RAY_CLUSTER,
)


def pod_templates(rayjob: Object) -> dict[str, Object]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"submitter": rayjob["spec"]["submitterPodTemplate"], "head": cluster["headGroupSpec"]["template"], **workers}


def check_rayjob(rayjob: Object, version: str) -> None:
    """Raises ValidationError, KubeRay's or Kubernetes', for a field that is not there or of another type."""
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    jsonschema.validate(rayjob["spec"], RAYJOB_SPEC)
    for template in pod_templates(rayjob).values():
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": rayjob["metadata"], "template": template}
        kubernetes_validate.validate(whole, version, strict=True)


PODS = pod_templates(RAYJOB) | {"create": CREATE_POD}


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_and_kuberay_know_every_field(version: str) -> None:
    for each in NIGHTLY:
        kubernetes_validate.validate(each, version, strict=True)
    check_rayjob(RAYJOB, version)


def misspelt_field_of_a_container(rayjob: Object) -> None:
    containers(pod_templates(rayjob)["cpu"])[0]["resource"] = {}


def security_context_of_a_pod_in_a_container(rayjob: Object) -> None:
    containers(pod_templates(rayjob)["head"])[0]["securityContext"] = {"fsGroup": 1000}


def misspelt_field_of_the_job(rayjob: Object) -> None:
    rayjob["spec"]["shutdownAfterJobFinished"] = True


def number_in_ray_start_params(rayjob: Object) -> None:
    rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def submission_mode_that_is_none(rayjob: Object) -> None:
    rayjob["spec"]["submissionMode"] = "CronMode"


@pytest.mark.parametrize(
    "break_it",
    [
        *(misspelt_field_of_a_container, security_context_of_a_pod_in_a_container, misspelt_field_of_the_job),
        *(number_in_ray_start_params, submission_mode_that_is_none),
    ],
)
def test_a_broken_rayjob_is_refused(break_it: Callable[[Object], None]) -> None:
    broken = copy.deepcopy(RAYJOB)
    break_it(broken)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_rayjob(broken, KUBERNETES[0])


@pytest.mark.parametrize(("field", "value"), [("concurencyPolicy", "Forbid"), ("startingDeadlineSeconds", "soon")])
def test_a_broken_cronjob_is_refused(field: str, value: str) -> None:
    broken = copy.deepcopy(CRONJOB)
    broken["spec"][field] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES[0], strict=True)


def encode_options(words: list[str]) -> dict[str, str]:
    """Returns the options of a job's command line as option -> value."""
    return dict(zip(words[::2], words[1::2], strict=True))


def entrypoint() -> list[str]:
    return shlex.split(RAYJOB["spec"]["entrypoint"])


def test_a_night_has_one_name_made_of_job_model_and_partition() -> None:
    options = encode_options(entrypoint()[2:])
    model, alias = options["--model"].removeprefix("models:/").split("@")
    name = f"encode-{model}-{alias}-{NIGHT}"
    assert RAYJOB["metadata"]["name"] == RAYJOB["spec"]["jobId"] == rayjob_name(with_partition(ENCODE_TEXT, NIGHT)) == name
    assert options["--data.partition"] == NIGHT
    assert len(name) <= MAX_NAME
    assert NIGHT not in ENCODE_TEXT.partition("apiVersion:")[2]


@pytest.mark.parametrize("partition", ["2026-11-22T00:00", "a" * 40, "Ä", "2026-11-22-"])
def test_a_partition_that_makes_no_name_is_refused(partition: str) -> None:
    with pytest.raises(ValueError, match=r"metadata\.name"):
        with_partition(ENCODE_TEXT, partition)


@pytest.mark.parametrize("name", PODS)
def test_no_pod_runs_as_root_or_gains_rights(name: str) -> None:
    pod = PODS[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] >= 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]
    for container in containers(PODS[name]):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in container["securityContext"]


@pytest.mark.parametrize("name", PODS)
def test_every_container_has_requests_limits_and_a_pinned_image(name: str) -> None:
    for container in containers(PODS[name]):
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert re.search(r":\d+\.\d+\.\d+[-\w]*$|@sha256:[0-9a-f]{64}$", container["image"]), container["image"]


def test_versions_are_those_of_the_repository() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (ray,) = re.findall(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == ray
    assert {container["image"] for pod in pod_templates(RAYJOB).values() for container in containers(pod)} == {f"vae-workflows:{version}"}
    assert f"--tag vae-workflows:{version} ." in (DEPLOY / "Dockerfile").read_text()


def test_secrets_are_named_and_never_written() -> None:
    for path in sorted(path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        text = path.read_text()
        assert not re.search(r"(?i)(password|secret|token|access_key\w*)\s*[:=]\s*[\"']?[A-Za-z0-9+]{8,}", text), path
        assert not re.search(r"://[^/\s]*:[^/\s]*@", text), path
    for pod in PODS.values():
        for container in containers(pod):
            assert all("valueFrom" in variable for variable in container.get("env", []))
            assert all(set(source) == {"secretRef"} for source in container.get("envFrom", []))
    assert not [each for each in NIGHTLY if each["kind"] == "Secret"]


def test_the_cronjob_may_create_rayjobs_and_look_and_nothing_else() -> None:
    found = {each["kind"]: each for each in NIGHTLY}
    assert found["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
    ]
    assert found["RoleBinding"]["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "Role",
        "name": found["Role"]["metadata"]["name"],
    }
    account = found["ServiceAccount"]["metadata"]["name"]
    assert [subject["name"] for subject in found["RoleBinding"]["subjects"]] == [account]
    assert CREATE_POD["spec"]["serviceAccountName"] == account
    for name, pod in pod_templates(RAYJOB).items():
        assert pod["spec"]["automountServiceAccountToken"] is False, name


def test_nights_do_not_overlap_and_every_wait_has_an_end() -> None:
    spec, job, rayjob = CRONJOB["spec"], CRONJOB["spec"]["jobTemplate"]["spec"], RAYJOB["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["timeZone"] == "Etc/UTC"
    assert spec["startingDeadlineSeconds"] >= 200
    assert spec["startingDeadlineSeconds"] + job["activeDeadlineSeconds"] < 24 * 3600
    assert (rayjob["backoffLimit"] + 1) * rayjob["activeDeadlineSeconds"] < job["activeDeadlineSeconds"]
    assert rayjob["shutdownAfterJobFinishes"] is True
    assert rayjob["ttlSecondsAfterFinished"] > 0
    assert spec["successfulJobsHistoryLimit"] >= 1
    assert spec["failedJobsHistoryLimit"] >= 1


def test_the_partition_comes_from_the_scheduled_time_and_no_clock_is_read() -> None:
    source = (DEPLOY / "kuberay" / "create.py").read_text()
    assert SCHEDULED == "batch.kubernetes.io/cronjob-scheduled-timestamp"
    assert not re.search(r"\.now\(|\.today\(|time\.time\(|utcnow", source + (DEPLOY / "submit.py").read_text())
    (variable,) = containers(CREATE_POD)[0]["env"]
    assert variable == {"name": "JOB_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}}}


def test_gpus_are_asked_for_by_one_group_that_is_off() -> None:
    groups = {group["groupName"]: group for group in RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert {group["maxReplicas"] for name, group in groups.items() if name == "gpu"} == {0}
    asked = {name: containers(group["template"])[0]["resources"]["limits"].get("nvidia.com/gpu") for name, group in groups.items()}
    assert asked == {"cpu": None, "gpu": "1"}
    gpu = groups["gpu"]["template"]["spec"]
    assert gpu["nodeSelector"]
    assert [toleration["key"] for toleration in gpu["tolerations"]] == ["nvidia.com/gpu"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_what_kubectl_applies_carries_both_files_to_the_pod() -> None:
    done = subprocess.run(["kubectl", "kustomize", DEPLOY / "kuberay"], capture_output=True, text=True, check=True)
    objects = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert set(objects) == {each["kind"] for each in NIGHTLY} | {"ConfigMap"}
    assert objects["ConfigMap"]["data"]["encode.yaml"] == ENCODE_TEXT
    pod = objects["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    assert objects["RoleBinding"]["subjects"][0]["namespace"] == objects["ServiceAccount"]["metadata"]["namespace"]
    mount = pod["containers"][0]["volumeMounts"][0]["mountPath"]
    assert pod["containers"][0]["command"] == ["python", *(f"{mount}/{name}" for name in sorted(objects["ConfigMap"]["data"]))]


RANGES = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]


def cron_values(line: str) -> Iterator[set[int]]:
    """Yields the numbers that each of the five fields of a cron schedule means. Raises ValueError for what is none."""
    fields = line.split()
    for field, (low, high) in zip(fields, RANGES, strict=True):
        values: set[int] = set()
        for part in field.split(","):
            found = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", part)
            if found is None:
                raise ValueError(f"{part!r} in {line!r}")
            first = int(found[1] or low)
            last = int(found[2] or (found[1] if found[1] and not found[3] else high))
            values |= set(range(first, last + 1, int(found[3] or 1)))
        if not values or not values <= set(range(low, high + 1)):
            raise ValueError(f"{field!r} in {line!r}")
        yield values


@pytest.mark.parametrize(
    "line", ["60 3 * * *", "17 24 * * *", "17 3 * *", "17 3 0 * *", "x 3 * * *", "17 3 * * * *", "17-3 3 * * *", "*/0 3 * * *"]
)
def test_a_schedule_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (zip's own message, or ours)
        list(cron_values(line))


def crontab_line() -> tuple[str, str]:
    """Returns the schedule and the command of the crontab's one entry."""
    text = (DEPLOY / "cron" / "crontab").read_text()
    (line,) = [line for line in text.splitlines() if line and not line.startswith("#") and not re.match(r"[A-Z]+=", line)]
    *schedule, command = line.split(maxsplit=5)
    return " ".join(schedule), command


def test_every_scheduler_runs_once_a_night_at_the_same_minute() -> None:
    calendar = re.findall(r"^OnCalendar=\*-\*-\* (\d+):(\d+):00 UTC$", (DEPLOY / "cron" / "vae-encode.timer").read_text(), re.MULTILINE)
    ((hour, minute),) = calendar
    for schedule in (crontab_line()[0], CRONJOB["spec"]["schedule"]):
        assert list(cron_values(schedule))[:2] == [{int(minute)}, {int(hour)}]
        assert [len(values) for values in cron_values(schedule)] == [1, 1, 31, 12, 8]


def as_shell(command: str) -> list[str]:
    """Returns the words that a shell makes of a command, of which `echo` is given all."""
    done = subprocess.run(["/bin/sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_crontab_gives_the_script_the_day_before() -> None:
    command = crontab_line()[1]
    assert re.search(r"(?<!\\)%", command) is None  # cron would take it for the end of the line
    program, partition = as_shell(command.replace(r"\%", "%"))
    assert os.access(ROOT / program.removeprefix("/opt/vae/"), os.X_OK)
    expected = subprocess.run(["date", "-u", "-d", "yesterday", "+%F"], capture_output=True, text=True, check=True).stdout.strip()
    assert partition == expected


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The systemd units as they would lie in /etc/systemd/system, for a repository that is here."""
    for path in sorted((DEPLOY / "cron").glob("vae-encode*")):
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/vae", str(ROOT)))
    return tmp_path


def verified(units: Path, *names: str) -> str:
    """Returns what systemd finds wrong with units."""
    done = subprocess.run(["systemd-analyze", "verify", *names], cwd=units, capture_output=True, text=True, check=False)
    return done.stderr + ("" if done.returncode == 0 else f"exit code {done.returncode}")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_units(units: Path) -> None:
    names = [f"./{name}" for name in ("vae-encode.timer", "vae-encode.service", f"vae-encode@{NIGHT}.service")]
    assert str(units) not in verified(units, *names)
    service = units / "vae-encode@.service"
    service.write_text(service.read_text().replace("NoNewPrivileges", "NoNewPrivilege"))
    assert "'NoNewPrivilege'" in verified(units, *names)


def test_the_timer_starts_the_night_with_the_day_before() -> None:
    (line,) = re.findall(r"^ExecStart=/bin/sh -c '(.*)'$", (DEPLOY / "cron" / "vae-encode.service").read_text(), re.MULTILINE)
    words = as_shell(line.replace("%%", "%").replace("$$", "$").removeprefix("exec "))
    assert words[:3] == ["systemctl", "start", "--no-block"]
    assert re.fullmatch(r"vae-encode@\d{4}-\d\d-\d\d\.service", words[3])
    assert "nightly.sh %i\n" in (DEPLOY / "cron" / "vae-encode@.service").read_text()  # %I would make / of the dashes


def nightly_arguments() -> list[str]:
    """Returns what nightly.sh gives to submit.py."""
    script = (DEPLOY / "cron" / "nightly.sh").read_text().replace('"$1"', NIGHT).replace("\\\n", " ")
    words = shlex.split(script.partition("\nexec ")[2])
    assert words[:2] == [".venv/bin/python", "deploy/submit.py"]
    return words[2:]


def test_the_jobs_take_the_options_that_the_schedulers_give() -> None:
    asked = submit.parse(nightly_arguments())
    by_cron = ["--model", asked.model, *(option.replace("{partition}", asked.partition) for option in asked.options)]
    assert parse(EncodeConfig, by_cron).data.key == "customer_id"
    program, script, *by_kuberay = entrypoint()
    assert (program, script) == ("python", "/app/workflows/encode.py")
    assert encode_options(by_kuberay) == encode_options(by_cron)
    assert parse(EncodeConfig, by_kuberay) == parse(EncodeConfig, by_cron)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_valid_executable_and_say_their_usage(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    refused = subprocess.run([path], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "usage:" in refused.stderr


def dockerfile() -> list[tuple[str, str]]:
    """Returns the instructions of the Dockerfile and their arguments."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.partition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return [(instruction, arguments) for instruction, _, arguments in lines]


def test_the_image_holds_the_code_and_the_lock_and_runs_as_the_pods_user() -> None:
    copied = [arguments.split()[0] for instruction, arguments in dockerfile() if instruction == "COPY"]
    assert {"requirements.lock", "pyproject.toml", "data", "vae", "workflows"} == set(copied)
    assert all((ROOT / source).exists() for source in copied)
    last = dict(dockerfile())
    assert last["FROM"] == containers(CREATE_POD)[0]["image"]
    assert last["WORKDIR"] == str(Path(entrypoint()[1]).parents[1])
    assert f"PYTHONPATH={last['WORKDIR']} " in last["ENV"]
    user = PODS["head"]["spec"]["securityContext"]
    assert last["USER"] == f"{user['runAsUser']}:{user['runAsGroup']}"
    assert any("--requirement requirements.lock" in arguments for instruction, arguments in dockerfile() if instruction == "RUN")


def test_where_there_is_no_git_the_lock_still_says_which_code_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "git" not in dict(dockerfile())["RUN"]
    monkeypatch.setenv("PATH", str(tmp_path))
    tags = lineage()
    assert "git_sha" not in tags
    assert len(tags["lock_sha256"]) == 64
