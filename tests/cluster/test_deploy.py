"""The deployment files meet their schemas, agree with each other, and hold no secret."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import cluster
from sweeps.cli.main import parse

DEPLOY = Path(cluster.__file__).parent / "deploy"
LAUNCHER = ["aws.yaml", "onprem.yaml"]
KUBERAY = ["kuberay-cluster.yaml", "kuberay-job.yaml"]


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / name).read_text())


def cluster_spec(name: str) -> dict[str, Any]:
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str) -> list[dict[str, Any]]:
    spec = cluster_spec(name)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def ray_schema() -> dict[str, Any]:
    import ray

    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    return json.loads(schema.read_text())


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_up_files_meet_the_schema_of_ray(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(load(name), ray_schema())
    broken = load(name) | {"max_wrokers": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        jsonschema.validate(broken, ray_schema())


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_meet_the_schema_of_kubernetes(name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for spec in pods(name):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        validator.validate(pod, "1.30", strict=True)
        broken = copy.deepcopy(pod)
        broken["spec"]["containers"][0]["resuorces"] = {}
        with pytest.raises(validator.ValidationError, match="resuorces"):
            validator.validate(broken, "1.30", strict=True)


@pytest.mark.parametrize("name", KUBERAY)
def test_spot_workers_announce_their_end_in_time(name: str) -> None:
    """The hook's time is shorter than the time that Kubernetes leaves a pod."""
    from cluster import drain

    head, worker = pods(name)
    assert "lifecycle" not in head["containers"][0]
    command = worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:3] == ["python", "-m", "cluster.drain"]
    assert Path(drain.__file__).name == "drain.py"
    assert float(command[command.index("--seconds") + 1]) < worker["terminationGracePeriodSeconds"]
    assert {"key": "spot", "operator": "Exists", "effect": "NoSchedule"} in worker["tolerations"]
    assert "cluster.drain" in load("aws.yaml")["worker_start_ray_commands"][-1]


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_up_files_start_heads_safely(name: str) -> None:
    config = load(name)
    head, workers = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    assert "--dashboard-host=127.0.0.1" in head[-1]
    for command in (head[-1], *workers[1:]):
        assert command.startswith("RAY_AUTH_MODE=token ")
        assert shlex.split(command)
    assert any(path.endswith(".ray/auth_token") for path in config["file_mounts"])


def test_heads_take_no_gpu_work_and_spot_workers_scale_to_nothing() -> None:
    types = load("aws.yaml")["available_node_types"]
    assert types["head"]["resources"]["GPU"] == 0
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu"]["min_workers"] == 0
    assert "--num-gpus=0" in load("onprem.yaml")["head_start_ray_commands"][-1]
    for name in KUBERAY:
        spec = cluster_spec(name)
        assert spec["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
        assert spec["enableInTreeAutoscaling"]
        assert [group["minReplicas"] for group in spec["workerGroupSpecs"]] == [0]


def test_the_launcher_accepts_them_and_counts_the_machines() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    workers = {}
    for name in LAUNCHER:
        prepared = prepare_config(load(name))
        validate_config(prepared)
        workers[name] = prepared["max_workers"]
    assert workers == {"aws.yaml": 8, "onprem.yaml": 2}


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_files_authenticate_and_reserve_what_they_use(name: str) -> None:
    assert load(name)["apiVersion"] == "ray.io/v1"
    assert cluster_spec(name)["authOptions"] == {"mode": "token"}
    for pod in pods(name):
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["envFrom"] == [{"secretRef": {"name": "scenesweep-keys", "optional": True}}]
        assert "env" not in container


def test_the_slurm_script_uses_options_that_ray_has() -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    text = (DEPLOY / "slurm.sh").read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    words = shlex.split(text.partition("ray symmetric-run ")[2].replace("\\\n", " "))
    split = words.index("--")
    own = {option for parameter in symmetric_run.params for option in parameter.opts}
    known = {option for parameter in start.params for option in [*parameter.opts, *parameter.secondary_opts]}
    given = {word.partition("=")[0] for word in words[:split] if word.startswith("--")}
    assert given <= own | known
    assert not given & {"--head", "--block", "--port", "--node-ip-address"}
    assert words[split + 1 :] == ["python", "-m", "sweeps", "run", "$@", "ray.address=auto"]
    assert "RAY_AUTH_MODE=token" in text


def test_one_image_and_one_ray_everywhere() -> None:
    images = {container["image"] for name in KUBERAY for container in sum_containers(name)}
    assert images == {load("aws.yaml")["docker"]["image"]}
    versions = {cluster_spec(name)["rayVersion"] for name in KUBERAY}
    built = re.search(r"^ARG RAY=(\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert built
    assert versions == {built[1]}


def sum_containers(name: str) -> list[dict[str, Any]]:
    return [container for pod in pods(name) for container in pod["containers"]]


def test_a_retried_job_is_the_command_that_resumes() -> None:
    spec = load("kuberay-job.yaml")["spec"]
    command = shlex.split(spec["entrypoint"])
    assert command[:4] == ["python", "-m", "sweeps", "run"]
    assert command[-1] == "ray.address=auto"
    assert any(part.startswith("output=s3://") for part in command)
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]


STAND_IN = """#!/bin/bash
echo "$@" >> "$CALLS"
case "$*" in
  *"bench gpu"*) echo '{}' > "${!#}" ;;
  *train-scenes*) mkdir -p "$5/dit/transformer"; echo card > "$5/dit/CARD.md"; exit 1 ;;
esac
"""


def calls_of_card(folder: Path, *words: str) -> list[str]:
    """Arguments that the script of a card calls Python with, in a folder that holds one wheel."""
    (folder / "wheels").mkdir(exist_ok=True)
    (folder / "wheels" / "a-1-py3-none-any.whl").touch()
    (folder / "python").write_text(STAND_IN)
    (folder / "python").chmod(0o755)
    (folder / "calls").unlink(missing_ok=True)
    environment = os.environ | {"PYTHON": str(folder / "python"), "CALLS": str(folder / "calls")}
    command = [str(DEPLOY / "card.sh"), str(folder / "wheels"), str(folder / "out"), *words]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return (folder / "calls").read_text().splitlines()


def test_the_card_is_measured_and_then_trained_on(tmp_path: Path) -> None:
    install, bench, train = calls_of_card(tmp_path)
    assert install.startswith("-m pip install -q --no-index --no-deps")
    assert bench == f"-m sweeps bench gpu --device cuda --minutes 9 --out {tmp_path}/out/gpu.json"
    assert "--network dit --start shipped --device cuda --minutes 13." in train
    # also of a training that failed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu.json", "card.log", "CARD.md"}
    # the verbs know the options
    for words in (bench, train):
        verb = words.removeprefix("-m sweeps ").split()
        assert parse(verb).verb == verb[0]


def test_what_has_no_time_is_left_out(tmp_path: Path) -> None:
    _, bench = calls_of_card(tmp_path, "1.2")
    assert "--minutes 0.866667" in bench
    _, train = calls_of_card(tmp_path, "3", "0")
    assert "train-scenes" in train


def test_the_wheels_of_a_card_are_versions_that_the_project_accepts() -> None:
    project = tomllib.loads((DEPLOY.parents[1] / "pyproject.toml").read_text())["project"]
    accepted = {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}
    text = (DEPLOY / "card.sh").read_text()
    needed = [Requirement(word) for word in text.partition("NEEDED=(")[2].partition(")")[0].split()]
    assert {"diffusers", "google-crc32c", "omegaconf"} <= {one.name for one in needed}
    for one in needed:
        (version,) = one.specifier
        if one.name in accepted:
            assert accepted[one.name].specifier.contains(version.version)


@pytest.mark.parametrize("name", [*LAUNCHER, *KUBERAY, "Dockerfile", "slurm.sh", "card.sh", "grafana.json"])
def test_no_secret_is_written_down(name: str) -> None:
    text = (DEPLOY / name).read_text()
    for line in text.splitlines():
        found = re.search(r"(KEY|TOKEN|SECRET|PASSWORD)\s*[=:]\s*(\S+)", line)
        assert found is None or found[2].startswith(("...", "$(")), line
