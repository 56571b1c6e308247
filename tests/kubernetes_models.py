"""The fields that the example manifests use, and no others, with the rules of Kubernetes and KubeRay for them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel
from ray.serve.schema import ServeDeploySchema

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Port = Annotated[int, Field(ge=1, le=65_535)]
Seconds = Annotated[int, Field(ge=0, le=10**6)]
Image = Annotated[str, StringConstraints(pattern=r"^[\w./-]+(:\d+)?[\w./-]*:[\w.-]+$")]  # with a tag: none is "latest"

_FACTORS = {
    "m": 1e-3,
    "": 1,
    "k": 1e3,
    "Ki": 2**10,
    "M": 1e6,
    "Mi": 2**20,
    "G": 1e9,
    "Gi": 2**30,
    "T": 1e12,
    "Ti": 2**40,
}


def amount(quantity: str) -> float:
    """A quantity as a number."""
    number, unit = re.fullmatch(r"([0-9.]+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * _FACTORS[unit]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, strict=True)


class Metadata(Part):
    name: Name


class ContainerPort(Part):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,15}$")]
    container_port: Port


class HttpGet(Part):
    path: Annotated[str, StringConstraints(pattern="^/")]
    port: Port


class Probe(Part):
    http_get: HttpGet
    initial_delay_seconds: Seconds = 0
    period_seconds: Annotated[int, Field(ge=1)] = 10
    timeout_seconds: Annotated[int, Field(ge=1)] = 1
    failure_threshold: Annotated[int, Field(ge=1)] = 3


class Resources(Part):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]

    @model_validator(mode="after")
    def _requests_within_limits(self) -> Self:
        for name, quantity in self.requests.items():
            if name not in self.limits or amount(quantity) > amount(self.limits[name]):
                raise ValueError(f"{name}: more is requested than the limit allows")
        # A device cannot be shared, so that Kubernetes takes its request and limit only if they are the same.
        if self.requests.get("nvidia.com/gpu") != self.limits.get("nvidia.com/gpu"):
            raise ValueError("nvidia.com/gpu: request and limit differ")
        return self

    @property
    def gpus(self) -> int:
        return int(self.limits.get("nvidia.com/gpu", "0"))


class VolumeMount(Part):
    name: Name
    mount_path: Annotated[str, StringConstraints(pattern="^/")]


class Container(Part):
    name: Name
    image: Image
    ports: list[ContainerPort]
    resources: Resources
    volume_mounts: list[VolumeMount]
    readiness_probe: Probe
    liveness_probe: Probe


class Claim(Part):
    claim_name: Name


class EmptyDir(Part):
    medium: Literal["Memory"]
    size_limit: Quantity


class Volume(Part):
    name: Name
    persistent_volume_claim: Claim | None = None
    empty_dir: EmptyDir | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.persistent_volume_claim is None) == (self.empty_dir is None):
            raise ValueError("a volume has one source")
        return self


class Toleration(Part):
    key: str
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class PodSpec(Part):
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume]
    tolerations: list[Toleration] = []

    @model_validator(mode="after")
    def _mounts_have_volumes(self) -> Self:
        names = [volume.name for volume in self.volumes]
        for container in self.containers:
            mounted = [mount.name for mount in container.volume_mounts]
            paths = [mount.mount_path for mount in container.volume_mounts]
            if sorted(mounted) != sorted(names) or len(set(names)) != len(names) or len(set(paths)) != len(paths):
                raise ValueError(f"{container.name} mounts {mounted}, the pod's volumes are {names}")
        return self


class Template(Part):
    spec: PodSpec


class HeadGroup(Part):
    ray_start_params: dict[str, str]  # KubeRay refuses numbers
    template: Template


class WorkerGroup(Part):
    group_name: Name
    replicas: Annotated[int, Field(ge=0)]
    min_replicas: Annotated[int, Field(ge=0)]
    max_replicas: Annotated[int, Field(ge=1)]
    ray_start_params: dict[str, str]
    template: Template

    @model_validator(mode="after")
    def _within_bounds(self) -> Self:
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError("replicas must lie between minReplicas and maxReplicas")
        return self


class AutoscalerOptions(Part):
    idle_timeout_seconds: Seconds


class ClusterSpec(Part):
    ray_version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
    enable_in_tree_autoscaling: bool = False
    autoscaler_options: AutoscalerOptions | None = None
    head_group_spec: HeadGroup
    worker_group_specs: Annotated[list[WorkerGroup], Field(min_length=1)]

    @property
    def pods(self) -> list[PodSpec]:
        groups = [self.head_group_spec, *self.worker_group_specs]
        return [group.template.spec for group in groups]


class JobSpec(Part):
    entrypoint: Annotated[str, StringConstraints(min_length=1)]
    submission_mode: Literal["K8sJobMode", "HTTPMode"]
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: Seconds
    backoff_limit: Annotated[int, Field(ge=0)]
    ray_cluster_spec: ClusterSpec


class RayCluster(Part):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class RayJob(Part):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class UpgradeStrategy(Part):
    type: Literal["NewCluster"]


class ServiceSpec(Part):
    serve_config_v2: Annotated[str, Field(alias="serveConfigV2")]  # YAML
    upgrade_strategy: UpgradeStrategy
    ray_cluster_config: ClusterSpec

    @property
    def serve_config(self) -> ServeDeploySchema:
        return ServeDeploySchema.model_validate(yaml.safe_load(self.serve_config_v2))


class RayService(Part):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec


class StorageRequest(Part):
    requests: dict[Literal["storage"], Quantity]


class ClaimSpec(Part):
    access_modes: list[Literal["ReadWriteMany"]]  # pods of several machines write to it
    storage_class_name: Name
    resources: StorageRequest


class PersistentVolumeClaim(Part):
    api_version: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


Manifest: TypeAlias = RayCluster | RayJob | RayService | PersistentVolumeClaim

KINDS: dict[str, type[Manifest]] = {
    "RayCluster": RayCluster,
    "RayJob": RayJob,
    "RayService": RayService,
    "PersistentVolumeClaim": PersistentVolumeClaim,
}


def parse(manifest: dict[str, Any]) -> Manifest:
    """A manifest as its kind. Raises pydantic's `ValidationError`, or a `KeyError` for another kind."""
    return KINDS[manifest["kind"]].model_validate(manifest)
