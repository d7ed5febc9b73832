"""infra/ fits what the program does: commands, recipes, fields, pins and names of variables exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.recipes.registry import RECIPES

INFRA = Path(__file__).resolve().parents[2] / "infra"
# spec fields of the RayJob CRD, KubeRay 1.7.0
RAY_JOB_FIELDS = {
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "submissionMode",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "preRunningDeadlineSeconds",
    "backoffLimit",
    "deletionStrategy",
    "runtimeEnvYAML",
    "clusterSelector",
    "suspend",
    "submitterPodTemplate",
    "rayClusterSpec",
}


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    content = yaml.safe_load((INFRA / "kuberay" / "rayjob.yaml").read_text())
    assert (content["apiVersion"], content["kind"]) == ("ray.io/v1", "RayJob")
    return dict(content["spec"])


def has_field(config: object, path: list[str]) -> bool:
    for name in path:
        if name not in type(config).__dataclass_fields__:  # type: ignore[attr-defined]
            return False
        config = getattr(config, name)
    return True


def test_the_entrypoint_is_a_command_of_ours(spec: dict[str, Any]) -> None:
    program, command, recipe, *options = shlex.split(spec["entrypoint"])
    assert (program, command) == ("sparse-detr", "train")
    config = RECIPES[recipe]()
    names = [option.removeprefix("--").replace("-", "_") for option in options if option.startswith("--")]
    assert len(names) == 9
    assert [name for name in names if not has_field(config, name.split("."))] == []


def test_the_cluster_holds_what_the_run_asks_for(spec: dict[str, Any]) -> None:
    words = shlex.split(spec["entrypoint"])
    workers, cpus = (int(words[words.index(f"--training.{name}") + 1]) for name in ("workers", "cpus-per-worker"))
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert group["replicas"] >= workers
    # One CPU of each node is left for Ray's own processes and for reading.
    assert int(requests["cpu"]) > cpus
    assert requests["nvidia.com/gpu"] == "1"


def test_the_manifest_has_only_fields_that_exist(spec: dict[str, Any]) -> None:
    assert spec.keys() <= RAY_JOB_FIELDS
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_every_node_runs_the_pinned_ray_in_one_image(spec: dict[str, Any]) -> None:
    cluster = spec["rayClusterSpec"]
    assert f"\nray=={cluster['rayVersion']}\n" in (INFRA.parent / "constraints.txt").read_text()
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len({c["image"] for group in groups for c in group["template"]["spec"]["containers"]}) == 1


def test_the_image_holds_the_packages() -> None:
    allowed = (INFRA / "container" / "Dockerfile.dockerignore").read_text().split()
    root = INFRA.parent
    for package in ("sparse_detr", "pipelines", "tune", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        assert f"!{package}" in allowed
        assert (root / package).exists()


def test_links_lead_somewhere() -> None:
    pages = list(INFRA.rglob("*.md"))
    links = [(page, link) for page in pages for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text())]
    assert len(links) >= 5
    assert [str(link) for page, link in links if not (page.parent / link).exists()] == []
