"""The Kubernetes manifests are well-formed, agree with one another, and run commands that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from pydantic import ValidationError

import dendrite
from dendrite.cli import app
from dendrite.search.tasks.kinds import KINDS as TASK_KINDS
from serve_apps.app import build
from serve_apps.args import ServeArgs
from tests.kubernetes_models import (
    ClusterSpec,
    ContainerPort,
    PersistentVolumeClaim,
    RayCluster,
    RayJob,
    RayService,
    amount,
    parse,
)

FOLDER = Path(__file__).parents[1] / "examples" / "kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return loaded


def job() -> RayJob:
    found = parse(load("ray-job.yaml"))
    assert isinstance(found, RayJob)
    return found


def service() -> RayService:
    found = parse(load("ray-service.yaml"))
    assert isinstance(found, RayService)
    return found


def clusters() -> list[ClusterSpec]:
    alone = parse(load("ray-cluster.yaml"))
    assert isinstance(alone, RayCluster)
    return [alone.spec, job().spec.ray_cluster_spec, service().spec.ray_cluster_config]


def commands() -> list[list[str]]:
    """Every `dendrite` command of the folder: entrypoints, and those of the comments."""
    told = [
        line.partition(" dendrite ")[2]
        for path in MANIFESTS
        for line in path.read_text().splitlines()
        if line.startswith("#") and " -- dendrite " in line
    ]
    return [shlex.split(job().spec.entrypoint), *(["dendrite", *shlex.split(rest)] for rest in told)]


def parsed(command: list[str]) -> click.Context:
    """The context of the last command that the command line would run; nothing is run."""
    name, *rest = command
    assert name == "dendrite"
    at: Any = typer.main.get_command(app)
    context = at.make_context("dendrite", rest, resilient_parsing=False)
    while hasattr(at, "resolve_command"):
        protected = [*context._protected_args, *context.args]
        name, at, rest = at.resolve_command(context, protected)
        context = at.make_context(name, rest, parent=context)
    return context  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_well_formed(path: Path) -> None:
    parse(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("spec", "workerGroupSpecs", 0, "replica"), 3),
        (("spec", "workerGroupSpecs", 0, "replicas"), 9),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "headGroupSpec", "template", "spec", "volumes", 0, "name"), "other"),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "image"), "dendrite"),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limits", "cpu"), "1"),
    ],
)
def test_a_mistake_would_be_found(where: tuple[str | int, ...], value: object) -> None:
    manifest = load("ray-cluster.yaml")
    at: Any = manifest
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = value
    with pytest.raises(ValidationError):
        parse(manifest)


def test_the_job_runs_on_the_cluster_that_the_other_manifest_makes() -> None:
    alone, of_job, _ = clusters()
    assert of_job.head_group_spec == alone.head_group_spec
    assert of_job.worker_group_specs == alone.worker_group_specs


def test_the_server_runs_on_such_a_cluster_with_its_port_open() -> None:
    alone, _, of_service = clusters()
    [application] = service().spec.serve_config.applications
    port = ContainerPort.model_validate(
        {"name": "serve", "containerPort": service().spec.serve_config.http_options.port}
    )
    for pod in of_service.pods:
        [container] = pod.containers
        container.ports.remove(port)
    for pool, other in zip(of_service.worker_group_specs, alone.worker_group_specs, strict=True):
        [container], [like] = pool.template.spec.containers, other.template.spec.containers
        assert container.readiness_probe.http_get.port == port.container_port
        container.readiness_probe = like.readiness_probe
    assert of_service == alone.model_copy(
        update={
            "enable_in_tree_autoscaling": of_service.enable_in_tree_autoscaling,
            "autoscaler_options": of_service.autoscaler_options,
        }
    )
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    args = ServeArgs.model_validate(application.args)
    assert args.keys is not None
    assert all(path.startswith("/data/") for path in (args.model, args.keys)), "they lie on the claim"
    gpus = sum(pool.replicas * pool.template.spec.containers[0].resources.gpus for pool in alone.worker_group_specs)
    assert args.workers <= gpus


def test_all_pods_have_one_image_of_this_version() -> None:
    images = {container.image for spec in clusters() for pod in spec.pods for container in pod.containers}
    [image] = images
    assert image.endswith(f"/dendrite:{dendrite.__version__}")
    assert f"-t {image}" in (FOLDER / "Dockerfile").read_text()


def test_the_ray_of_the_manifests_is_the_one_of_the_image_and_one_that_dendrite_takes() -> None:
    [version] = {spec.ray_version for spec in clusters()}
    assert f"'ray[default]=={version}'" in (FOLDER / "Dockerfile").read_text()
    project = (FOLDER.parents[1] / "pyproject.toml").read_text()
    least, below = re.search(r'"ray\[serve\]>=([\d.]+),<([\d.]+)"', project).groups()  # type: ignore[union-attr]
    key = [int(part) for part in version.split(".")]
    assert [int(part) for part in least.split(".")] <= key < [int(part) for part in below.split(".")]


def test_every_claim_is_made() -> None:
    storage = parse(load("storage.yaml"))
    assert isinstance(storage, PersistentVolumeClaim)
    volumes = [volume for spec in clusters() for pod in spec.pods for volume in pod.volumes]
    claims = {volume.persistent_volume_claim.claim_name for volume in volumes if volume.persistent_volume_claim}
    assert claims == {storage.metadata.name}


def test_shared_memory_lies_within_the_pod_s_memory() -> None:
    for spec in clusters():
        for pod in spec.pods:
            shared = sum(amount(volume.empty_dir.size_limit) for volume in pod.volumes if volume.empty_dir)
            assert 0 < shared < sum(amount(each.resources.limits["memory"]) for each in pod.containers)


def test_probes_ask_what_ray_answers() -> None:
    """The paths are those of the installed Ray's dashboard, of its agent on each machine, and of Serve's proxies."""
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT, DEFAULT_DASHBOARD_PORT
    from ray.dashboard import http_server_head

    served = Path(http_server_head.__file__).read_text()
    for spec in clusters():
        for group, port in (
            (spec.head_group_spec, DEFAULT_DASHBOARD_PORT),
            *((group, DEFAULT_DASHBOARD_AGENT_LISTEN_PORT) for group in spec.worker_group_specs),
        ):
            [container] = group.template.spec.containers
            for probe in (container.readiness_probe, container.liveness_probe):
                assert probe.http_get.port == (8_000 if probe.http_get.path == "/-/healthz" else port)
                assert f'"{probe.http_get.path}"' in served
        assert spec.head_group_spec.ray_start_params["dashboard-host"] == "0.0.0.0"


def test_every_command_is_one_that_dendrite_has() -> None:
    assert len(commands()) == 2
    for command in commands():
        assert parsed(command).command is not None


def test_a_misspelt_option_would_be_found() -> None:
    with pytest.raises(Exception, match="--modle"):
        parsed(["dendrite", "job", "run", "--out", "x", "--task", "countdown", "--modle", "y"])


def test_commands_ask_for_workers_that_there_are_gpus_for() -> None:
    for command in commands():
        workers = parsed(command).params["workers"]
        for spec in clusters():
            gpus = sum(
                group.replicas * sum(container.resources.gpus for container in group.template.spec.containers)
                for group in spec.worker_group_specs
            )
            assert 1 <= workers <= gpus


def test_files_of_the_job_lie_on_the_claim() -> None:
    params = parsed(commands()[0]).params
    assert params["task"] in TASK_KINDS
    mounts = {
        mount.mount_path
        for pod in job().spec.ray_cluster_spec.pods
        for container in pod.containers
        for mount in container.volume_mounts
        for volume in pod.volumes
        if volume.name == mount.name and volume.persistent_volume_claim
    }
    assert mounts == {"/data"}
    for path in (params["problems"], params["out"], Path(params["model"])):
        assert path.is_relative_to("/data")
