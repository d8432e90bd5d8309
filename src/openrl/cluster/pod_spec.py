"""Pods and containers as manifests write them: typed, with Kubernetes' own defaults."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel


class Part(BaseModel):
    """A piece of a manifest. What is not run here is ignored; null stands for the default, as in Kubernetes."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}  # pyright: ignore[reportUnknownVariableType]


class Metadata(Part):
    """Of an object, or of the pods that a template makes."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Expression(Part):
    """One line of `matchExpressions`."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether it holds of these labels."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class Selector(Part):
    """Which labels are meant; an empty one means all."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[Expression, ...] = ()

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether an object with these labels is meant."""
        return self.match_labels.items() <= labels.items() and all(
            each.matches(labels) for each in self.match_expressions
        )


class KeyRef(Part):
    """A key of a ConfigMap or Secret."""

    name: str
    key: str
    optional: bool = False


class FieldRef(Part):
    """A field of the pod itself."""

    field_path: str


class ResourceFieldRef(Part):
    """A container's own request or limit."""

    resource: str


class EnvSource(Part):
    """Where a variable's value comes from; one of them is set."""

    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None


class EnvVar(Part):
    """One variable."""

    name: str
    value: str = ""
    value_from: EnvSource | None = None


class ObjectRef(Part):
    """All keys of a ConfigMap or Secret."""

    name: str
    optional: bool = False


class EnvFrom(Part):
    """Variables named like the keys of an object."""

    prefix: str = ""
    config_map_ref: ObjectRef | None = None
    secret_ref: ObjectRef | None = None


class ContainerPort(Part):
    """A port with a name."""

    name: str = ""
    container_port: int


class HttpHeader(Part):
    """Sent with a probe."""

    name: str
    value: str


class HttpGet(Part):
    """GET; 200 to 399 is a success."""

    path: str = "/"
    port: int | str
    scheme: str = "HTTP"
    http_headers: tuple[HttpHeader, ...] = ()


class TcpSocket(Part):
    """A connection is a success."""

    port: int | str


class Exec(Part):
    """A command in the container; status 0 is a success."""

    command: tuple[str, ...]


class Sleep(Part):
    """A preStop that only waits."""

    seconds: float


class Handler(Part):
    """What a probe or hook does; one of them is set."""

    exec: Exec | None = None
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    sleep: Sleep | None = None


class Probe(Handler):
    """A handler that is asked again and again."""

    initial_delay_seconds: float = Field(default=0, ge=0)
    period_seconds: float = Field(default=10, gt=0)
    timeout_seconds: float = Field(default=1, gt=0)
    success_threshold: int = Field(default=1, ge=1)
    failure_threshold: int = Field(default=3, ge=1)
    termination_grace_period_seconds: float | None = None


class Lifecycle(Part):
    """Hooks of a container."""

    pre_stop: Handler | None = None


class VolumeMount(Part):
    """Where a volume, or a path in it, is seen."""

    name: str
    mount_path: str
    sub_path: str = ""
    sub_path_expr: str = ""
    read_only: bool = False


class SecurityContext(Part):
    """Of a pod or a container."""

    run_as_user: int | None = None
    run_as_group: int | None = None
    fs_group: int | None = None
    read_only_root_filesystem: bool = False


class Resources(Part):
    """Quantities as they were written."""

    limits: dict[str, str | int | float] = {}
    requests: dict[str, str | int | float] = {}


class Container(Part):
    """One process of a pod."""

    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[EnvFrom, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    startup_probe: Probe | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    lifecycle: Lifecycle = Lifecycle()
    volume_mounts: tuple[VolumeMount, ...] = ()
    security_context: SecurityContext = SecurityContext()
    resources: Resources = Resources()
    restart_policy: str = ""
    """"Always" makes an init container a sidecar."""

    def port(self, port: int | str) -> int:
        """The number of a port given by number or name; raises ValueError for a name that no port has."""
        if isinstance(port, int) or port.isdigit():
            return int(port)
        for each in self.ports:
            if each.name == port:
                return each.container_port
        raise ValueError(f"container {self.name!r} has no port named {port!r}")


class Item(Part):
    """A key, and the file that it becomes."""

    key: str = ""
    path: str
    field_ref: FieldRef | None = None


class ConfigMapVolume(Part):
    """Files from a ConfigMap or, in `projected`, from a Secret."""

    name: str
    items: tuple[Item, ...] = ()
    optional: bool = False


class SecretVolume(Part):
    """Files from a Secret."""

    secret_name: str
    items: tuple[Item, ...] = ()
    optional: bool = False


class DownwardVolume(Part):
    """Files with fields of the pod."""

    items: tuple[Item, ...] = ()


class ProjectedSource(Part):
    """One of several sources of a directory."""

    config_map: ConfigMapVolume | None = None
    secret: ConfigMapVolume | None = None
    downward_api: DownwardVolume | None = Field(default=None, alias="downwardAPI")


class ProjectedVolume(Part):
    """One directory from several sources."""

    sources: tuple[ProjectedSource, ...] = ()


class ClaimVolume(Part):
    """A PersistentVolumeClaim."""

    claim_name: str


class HostPath(Part):
    """A directory of this machine."""

    path: str


class Volume(Part):
    """One of its sources is set; none of them: an empty directory."""

    name: str
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    projected: ProjectedVolume | None = None
    downward_api: DownwardVolume | None = Field(default=None, alias="downwardAPI")
    persistent_volume_claim: ClaimVolume | None = None
    host_path: HostPath | None = None


class PodSpec(Part):
    """What a pod runs."""

    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    termination_grace_period_seconds: float = 30
    security_context: SecurityContext = SecurityContext()
    service_account_name: str = "default"


class PodTemplate(Part):
    """A pod without a name."""

    metadata: Metadata = Metadata()
    spec: PodSpec
