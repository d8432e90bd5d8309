"""Kubernetes objects as far as they are run here, read from YAML."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from openrl.cluster.pod_spec import Metadata, Part, PodSpec, PodTemplate, Selector
from openrl.errors import InvalidRequest

HOOK = "helm.sh/hook"
HOOK_WEIGHT = "helm.sh/hook-weight"


class WorkloadSpec(Part):
    """Of a Deployment, StatefulSet or Job."""

    replicas: int = Field(default=1, ge=0)
    template: PodTemplate
    service_name: str = ""
    volume_claim_templates: tuple["Claim", ...] = ()
    backoff_limit: int = 6
    completions: int = 1
    parallelism: int = 1
    completion_mode: str = "NonIndexed"


class Object(Part):
    """Anything with a name."""

    metadata: Metadata


class Workload(Object):
    """What keeps pods."""

    kind: Literal["Deployment", "StatefulSet", "Job"]
    spec: WorkloadSpec


class LeaderWorkerTemplate(Part):
    """A group of pods."""

    size: int = Field(default=1, ge=1)
    leader_template: PodTemplate | None = None
    worker_template: PodTemplate
    restart_policy: str = "RecreateGroupOnPodRestart"


class LeaderWorkerSetSpec(Part):
    """Groups of pods."""

    replicas: int = Field(default=1, ge=0)
    leader_worker_template: LeaderWorkerTemplate


class LeaderWorkerSet(Object):
    """Keeps groups of pods."""

    kind: Literal["LeaderWorkerSet"]
    spec: LeaderWorkerSetSpec


class Pod(Object):
    """A single pod, as `helm test` has them."""

    kind: Literal["Pod"]
    spec: PodSpec


class Claim(Object):
    """A PersistentVolumeClaim, or the template of one."""


class ServicePort(Part):
    """A port of a Service."""

    name: str = ""
    port: int
    target_port: int | str = 0
    """0: the same."""
    protocol: str = "TCP"


class ServiceSpec(Part):
    """Which pods answer where."""

    selector: dict[str, str] = Field(default_factory=dict[str, str])
    ports: tuple[ServicePort, ...] = ()
    cluster_ip: str = Field(default="", alias="clusterIP")
    publish_not_ready_addresses: bool = False


class Service(Object):
    """A name for the pods that are ready."""

    kind: Literal["Service"]
    spec: ServiceSpec

    @property
    def is_headless(self) -> bool:
        """Its name stands for its pods' own addresses."""
        return self.spec.cluster_ip == "None"


class ConfigMap(Object):
    """Values, and files."""

    kind: Literal["ConfigMap"]
    data: dict[str, str] = Field(default_factory=dict[str, str])
    binary_data: dict[str, str] = Field(default_factory=dict[str, str])

    def values(self) -> dict[str, bytes]:
        """By key."""
        text = {key: value.encode() for key, value in self.data.items()}
        return text | {key: base64.b64decode(value) for key, value in self.binary_data.items()}


class Secret(Object):
    """Values that are not shown."""

    kind: Literal["Secret"]
    data: dict[str, str] = Field(default_factory=dict[str, str])
    string_data: dict[str, str] = Field(default_factory=dict[str, str])

    def values(self) -> dict[str, bytes]:
        """By key."""
        encoded = {key: base64.b64decode(value) for key, value in self.data.items()}
        return encoded | {key: value.encode() for key, value in self.string_data.items()}


class PolicyPort(Part):
    """A port, by number or name, or a range of them; without one: all."""

    port: int | str | None = None
    end_port: int | None = None
    protocol: str = "TCP"


class IpBlock(Part):
    """Addresses."""

    cidr: str
    exclude: tuple[str, ...] = Field(default=(), alias="except")


class Peer(Part):
    """Who may be at the other end."""

    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None
    ip_block: IpBlock | None = None


class PolicyRule(Part):
    """Connections that are allowed; without peers: with anybody, without ports: at any."""

    peers_from: tuple[Peer, ...] = Field(default=(), alias="from")
    peers_to: tuple[Peer, ...] = Field(default=(), alias="to")
    ports: tuple[PolicyPort, ...] = ()


class NetworkPolicySpec(Part):
    """Which pods it is about, and what they may."""

    pod_selector: Selector = Selector()
    policy_types: tuple[str, ...] = ()
    ingress: tuple[PolicyRule, ...] = ()
    egress: tuple[PolicyRule, ...] = ()

    def is_about(self, direction: Literal["Ingress", "Egress"]) -> bool:
        """Whether it closes what it does not allow; without `policyTypes`: inwards, and outwards if it has rules."""
        if self.policy_types:
            return direction in self.policy_types
        return direction == "Ingress" or bool(self.egress)


class NetworkPolicy(Object):
    """Who may talk to whom."""

    kind: Literal["NetworkPolicy"]
    spec: NetworkPolicySpec


class ScaleTarget(Part):
    """Whose replicas change."""

    kind: str = "Deployment"
    name: str


class Trigger(Part):
    """Where KEDA reads a number, by type."""

    type: str
    metadata: dict[str, str] = Field(default_factory=dict[str, str])


class ScaledObjectSpec(Part):
    """Bounds and pace as KEDA has them."""

    scale_target_ref: ScaleTarget
    min_replica_count: int = 0
    max_replica_count: int = 100
    polling_interval: float = 30.0
    cooldown_period: float = 300.0
    triggers: tuple[Trigger, ...] = ()


class ScaledObject(Object):
    """KEDA's autoscaler of a workload."""

    kind: Literal["ScaledObject"]
    spec: ScaledObjectSpec


class ExternalMetric(Part):
    """A metric of a metrics adapter."""

    name: str
    selector: Selector = Selector()


class ExternalSource(Part):
    """Around the metric."""

    metric: ExternalMetric


class MetricSpec(Part):
    """What an HPA reads, by type."""

    type: str
    external: ExternalSource | None = None


class ScalingRules(Part):
    """Of one direction."""

    stabilization_window_seconds: float = 300.0


class ScalingBehavior(Part):
    """Of both."""

    scale_down: ScalingRules = ScalingRules()


class HorizontalPodAutoscalerSpec(Part):
    """Bounds and pace as Kubernetes has them."""

    scale_target_ref: ScaleTarget
    min_replicas: int = 1
    max_replicas: int
    metrics: tuple[MetricSpec, ...] = ()
    behavior: ScalingBehavior = ScalingBehavior()


class HorizontalPodAutoscaler(Object):
    """Kubernetes' autoscaler of a workload."""

    kind: Literal["HorizontalPodAutoscaler"]
    spec: HorizontalPodAutoscalerSpec


Runnable = Workload | LeaderWorkerSet | Pod
AutoscalerObject = ScaledObject | HorizontalPodAutoscaler
AnyObject = Annotated[
    Runnable | Service | ConfigMap | Secret | NetworkPolicy | AutoscalerObject, Field(discriminator="kind")
]
KINDS = {
    *("Deployment", "StatefulSet", "Job", "LeaderWorkerSet", "Pod"),
    *("Service", "ConfigMap", "Secret", "NetworkPolicy", "ScaledObject", "HorizontalPodAutoscaler"),
}
_READER: TypeAdapter[AnyObject] = TypeAdapter(AnyObject)


@dataclass(slots=True)
class Manifests:
    """All objects of an installation that mean something on one machine."""

    runnables: list[Runnable] = field(default_factory=list[Runnable])
    services: list[Service] = field(default_factory=list[Service])
    config_maps: dict[str, ConfigMap] = field(default_factory=dict[str, ConfigMap])
    secrets: dict[str, Secret] = field(default_factory=dict[str, Secret])
    policies: list[NetworkPolicy] = field(default_factory=list[NetworkPolicy])
    autoscalers: list[AutoscalerObject] = field(default_factory=list[AutoscalerObject])

    def hooks(self, moment: str) -> list[Runnable]:
        """What runs at a moment of an installation ("pre-install"), in the order of its weights."""
        found = [each for each in self.runnables if moment in hook_moments(each)]
        return sorted(found, key=lambda each: int(each.metadata.annotations.get(HOOK_WEIGHT, "0")))

    def plain(self) -> list[Runnable]:
        """What is no hook."""
        return [each for each in self.runnables if not hook_moments(each)]

    def add(self, each: AnyObject) -> None:
        """A later object of the same kind and name takes the place of an earlier one."""
        match each:
            case Service():
                self.services = [*(old for old in self.services if old.metadata.name != each.metadata.name), each]
            case ConfigMap():
                self.config_maps[each.metadata.name] = each
            case Secret():
                self.secrets[each.metadata.name] = each
            case NetworkPolicy():
                self.policies.append(each)
            case ScaledObject() | HorizontalPodAutoscaler():
                self.autoscalers.append(each)
            case _:
                same = (each.kind, each.metadata.name)
                self.runnables = [old for old in self.runnables if (old.kind, old.metadata.name) != same]
                self.runnables.append(each)


def hook_moments(each: Object) -> set[str]:
    """The moments of an installation at which an object is made; empty: it is always there."""
    return {moment.strip() for moment in each.metadata.annotations.get(HOOK, "").split(",")} - {""}


def read_manifests(texts: Iterable[str]) -> Manifests:
    """The objects of YAML texts, one after the other. Kinds that only a cluster has a use for are passed over.

    Raises InvalidRequest naming the object and field that cannot be read.
    """
    manifests = Manifests()
    for text in texts:
        for document in _documents(text):
            if document.get("kind") in KINDS:
                manifests.add(_read(document))
    return manifests


def _documents(text: str) -> Iterable[dict[str, Any]]:
    try:
        documents: list[Any] = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise InvalidRequest(f"the manifests are no YAML: {error}", "malformed") from error
    for document in documents:
        if isinstance(document, dict):
            inner: list[dict[str, Any]] = document["items"] if document.get("kind") == "List" else [document]
            yield from inner


def _read(document: dict[str, Any]) -> AnyObject:
    try:
        return _READER.validate_python(document)
    except ValidationError as error:
        name = f"{document['kind']} {document.get('metadata', {}).get('name', '')!r}"
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        raise InvalidRequest(f"{name}: {where}: {first['msg']}", "malformed") from error
