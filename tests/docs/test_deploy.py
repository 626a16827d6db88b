"""The files for clusters are valid: by their own tools where these are installed, else by schemas."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
# the keys of KubeRay's resources that the file may use, from ray-operator/apis/ray/v1 of KubeRay 1.5
RAY_JOB = {
    "entrypoint",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "submissionMode",
    "rayClusterSpec",
}
RAY_CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling"}
HEAD = {"rayStartParams", "template", "serviceType"}
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts"}
CONDA = {"pytorch": "torch", "ray-tune": "ray", "matplotlib-base": "matplotlib"}  # conda-forge's names


def requirement(text: str) -> tuple[str, str]:
    """Return (name without extras, version)."""
    name, version = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", text).groups()
    return name.lower(), version


def test_the_conda_environment_has_what_the_package_needs():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = yaml.safe_load((DEPLOY / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    given = [requirement(text) for text in packages if isinstance(text, str) and text != "pip"]
    versions = {CONDA.get(name, name): version for name, version in given}
    assert versions.pop("python") == wanted["requires-python"].removeprefix(">=")
    assert versions == dict(requirement(text) for text in wanted["dependencies"])


def test_the_slurm_script_is_sound():
    script = DEPLOY / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, script], check=True)


def test_ray_accepts_the_launcher_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    assert sum(kind["max_workers"] for kind in types.values()) <= config["max_workers"]


def test_kuberay_file_has_known_keys_and_valid_pods():
    claim, job = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text(encoding="utf-8"))
    cluster = job["spec"]["rayClusterSpec"]
    assert job["kind"] == "RayJob" and job["spec"].keys() <= RAY_JOB and cluster.keys() <= RAY_CLUSTER
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert groups[0].keys() <= HEAD and all(group.keys() <= WORKERS for group in groups[1:])
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        spec = group["template"]["spec"]
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
    validate = pytest.importorskip("kubernetes_validate", reason="pods need kubernetes-validate").validate
    validate(claim, "1.32", strict=True)
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        validate(pod, "1.32", strict=True)


def test_the_image_is_sound():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert "ENV VENV=/usr/local" in text  # else `make test` in the image would install anew
    beside = Path(sys.executable).parent  # where pip puts it, whether or not the environment is active
    hadolint = shutil.which("hadolint", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    subprocess.run([hadolint, DEPLOY / "Dockerfile"], check=True)
