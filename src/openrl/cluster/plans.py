"""Which pods a workload has: names, labels and what Kubernetes adds to their environment."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from openrl.cluster.manifests import LeaderWorkerSet, Pod, Runnable, Workload
from openrl.cluster.pod_spec import ClaimVolume, Metadata, PodSpec, PodTemplate, Volume

COMPONENT = "app.kubernetes.io/component"


@dataclass(frozen=True, slots=True)
class PodPlan:
    """A pod that is to run."""

    name: str
    workload: str  # kind and name of what it belongs to: "Deployment/gateway"
    metadata: Metadata
    spec: PodSpec
    group: str = ""  # pods that are made anew together
    dns_names: tuple[str, ...] = ()  # that stand for this pod alone, without namespace
    added_env: Mapping[str, str] = field(default_factory=dict[str, str])
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def component(self) -> str:
        """What it is in the application, as its label says."""
        return self.metadata.labels.get(COMPONENT, "")


def num_replicas(workload: Runnable) -> int:
    """How many pods, or groups of them, its manifest asks for."""
    match workload:
        case Workload(kind="Job"):
            return workload.spec.completions
        case Workload():
            return workload.spec.replicas
        case LeaderWorkerSet():
            return workload.spec.replicas
        case Pod():
            return 1


def pods_of(workload: Runnable, number: int) -> list[PodPlan]:
    """The pods of one replica; several only for a LeaderWorkerSet. Names are the same every time."""
    owner = f"{workload.kind}/{workload.metadata.name}"
    name = f"{workload.metadata.name}-{number}"
    match workload:
        case LeaderWorkerSet():
            return _group(workload, number, owner)
        case Pod():
            return [_plan(workload.metadata.name, owner, PodTemplate(metadata=workload.metadata, spec=workload.spec))]
        case Workload(kind="StatefulSet"):
            dns = (f"{name}.{workload.spec.service_name}",) if workload.spec.service_name else ()
            labels = {"statefulset.kubernetes.io/pod-name": name, "apps.kubernetes.io/pod-index": str(number)}
            template = _with_claims(workload, name)
            return [_plan(name, owner, template, labels, dns_names=dns)]
        case Workload(kind="Job"):
            labels = {"job-name": workload.metadata.name, "batch.kubernetes.io/job-name": workload.metadata.name}
            env = {"JOB_COMPLETION_INDEX": str(number)} if workload.spec.completion_mode == "Indexed" else {}
            return [_plan(name, owner, workload.spec.template, labels, added_env=env)]
        case Workload():
            return [_plan(name, owner, workload.spec.template)]


def _group(workload: LeaderWorkerSet, number: int, owner: str) -> list[PodPlan]:
    """The leader, which shares its number with its group, and its workers."""
    shape = workload.spec.leader_worker_template
    group = f"{workload.metadata.name}-{number}"
    leader_address = f"{group}.{workload.metadata.name}"
    plans: list[PodPlan] = []
    for index in range(shape.size):
        template = shape.leader_template or shape.worker_template if index == 0 else shape.worker_template
        name = group if index == 0 else f"{group}-{index}"
        labels = {
            "leaderworkerset.sigs.k8s.io/name": workload.metadata.name,
            "leaderworkerset.sigs.k8s.io/group-index": str(number),
            "leaderworkerset.sigs.k8s.io/worker-index": str(index),
        }
        env = {
            "LWS_LEADER_ADDRESS": leader_address,
            "LWS_GROUP_SIZE": str(shape.size),
            "LWS_WORKER_INDEX": str(index),
        }
        together = group if shape.restart_policy == "RecreateGroupOnPodRestart" else ""
        dns = (f"{name}.{workload.metadata.name}",)
        plans.append(_plan(name, owner, template, labels, dns_names=dns, added_env=env, group=together))
    return plans


def _plan(
    name: str,
    owner: str,
    template: PodTemplate,
    labels: Mapping[str, str] | None = None,
    *,
    dns_names: tuple[str, ...] = (),
    added_env: Mapping[str, str] | None = None,
    group: str = "",
) -> PodPlan:
    metadata = template.metadata.model_copy(update={"labels": {**template.metadata.labels, **(labels or {})}})
    return PodPlan(name, owner, metadata, template.spec, group, dns_names, added_env or {})


def _with_claims(workload: Workload, pod: str) -> PodTemplate:
    """The template, with a volume of the pod's own for each of the set's claims."""
    template = workload.spec.template
    claims = [each.metadata.name for each in workload.spec.volume_claim_templates]
    own = [Volume(name=name, persistent_volume_claim=ClaimVolume(claim_name=f"{name}-{pod}")) for name in claims]
    others = [volume for volume in template.spec.volumes if volume.name not in claims]
    spec = template.spec.model_copy(update={"volumes": (*others, *own)})
    return template.model_copy(update={"spec": spec})
