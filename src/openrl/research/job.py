"""The Kubernetes Job of an attempt: where it runs, and its form."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

CONTAINER = "attempt"
STUDY_LABEL = "openrl.dev/study"
ATTEMPT_LABEL = "openrl.dev/attempt"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_DEADLINE_GRACE_S = 120.0  # beyond what the runner allows an attempt: for when no runner is there
_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=_NAME)]


class KubernetesConfig(BaseModel):
    """Attempts as Jobs: the study's directory is on a volume that their pods mount too, at the same path."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    image: str = Field(min_length=1)
    """With what the command needs: Python, openrl and the tinker SDK."""
    claim: Name
    """PersistentVolumeClaim with the study's directory; ReadWriteMany, or all pods are on one node."""
    sub_path: str = Field(default="", pattern=r"^([^/.][^/]*(/[^/.][^/]*)*)?$")
    """Where on the volume the study's directory is; empty: it is the volume."""
    namespace: str = Field(default="", pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$")
    """Empty: that of the runner's service account."""
    api_url: str = Field(default="", pattern=r"^(https?://[^/]+)?$")
    """Of the Kubernetes API; empty: that of the cluster that the runner is in. `http://` for `kubectl proxy`."""
    service_account_dir: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    """Token, CA and namespace that the runner calls the API with."""
    server_url: str = ""
    """TINKER_BASE_URL of the attempts; empty: the runner's."""
    secret: str = Field(default="", pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$")
    """Secret with the attempts' TINKER_API_KEY; empty: they have none."""
    secret_key: str = Field(default="api-key", pattern=r"^[-._a-zA-Z0-9]+$")
    """The key of that Secret."""
    queue_name: str = Field(default="", pattern=r"^([a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?)?$")
    """LocalQueue of Kueue, which starts the Jobs as there is room; empty: they start at once."""
    requests: Mapping[str, str] = {"cpu": "100m", "memory": "512Mi"}
    limits: Mapping[str, str] = {"memory": "2Gi"}
    variables: Mapping[str, str] = {}
    """Further environment of the attempts; everybody who may read Jobs reads it."""
    labels: Mapping[str, str] = {}
    """Of the pods; a NetworkPolicy may ask for some."""
    node_selector: Mapping[str, str] = {}
    priority_class: str = ""
    image_pull_secrets: tuple[Name, ...] = ()
    run_as_user: int = Field(default=10001, ge=0)
    """User and group of the pods; 0 names none, so that the cluster chooses (OpenShift)."""
    ttl_s: int = Field(default=86400, ge=60)
    """A Job that has ended stays this long; a runner that is away for longer runs its attempt again."""

    @field_validator("variables")
    @classmethod
    def _check_variables(cls, given: Mapping[str, str]) -> Mapping[str, str]:
        for name in given:
            if not name.isidentifier() or name.startswith(("TINKER_", "OPENRL_")):
                raise ValueError(f"variables has {name!r}; TINKER_ and OPENRL_ are the study's own")
        return given


@dataclass(frozen=True, slots=True)
class JobOf:
    """The attempt that a Job is made for."""

    name: str
    study: str
    number: int
    command: Sequence[str]
    study_directory: Path  # of the study, absolute; the same in the pod
    attempt_timeout_s: float

    @property
    def home(self) -> Path:
        return self.study_directory / "attempts" / f"{self.number:04d}"


def job_name(study: str, launch_id: str, number: int) -> str:
    """At most 55 characters: a second creation finds the first."""
    return f"{study}-{launch_id}-{number:04d}"


def render_job(config: KubernetesConfig, job: JobOf, variables: Mapping[str, str]) -> dict[str, Any]:
    """A Job of one pod, which runs once; a pod that the cluster took away (DisruptionTarget) is made again.

    The pod meets Pod Security's level restricted. It writes to its attempt's directory and /tmp alone.
    """
    labels = {STUDY_LABEL: job.study.rstrip("-"), ATTEMPT_LABEL: str(job.number)}
    queued = {QUEUE_LABEL: config.queue_name} if config.queue_name else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.name, "labels": {**labels, **queued}},
        "spec": {
            **({"suspend": True} if config.queue_name else {}),  # until Kueue admits it
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": config.ttl_s,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
            "template": {"metadata": {"labels": {**config.labels, **labels}}, "spec": _pod(config, job, variables)},
        },
    }


def _pod(config: KubernetesConfig, job: JobOf, variables: Mapping[str, str]) -> dict[str, Any]:
    user = config.run_as_user
    ids = {"runAsUser": user, "runAsGroup": user, "fsGroup": user} if user else {}
    pull_secrets = [{"name": each} for each in config.image_pull_secrets]
    return {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": math.ceil(job.attempt_timeout_s + _DEADLINE_GRACE_S),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **({"priorityClassName": config.priority_class} if config.priority_class else {}),
        **({"nodeSelector": dict(config.node_selector)} if config.node_selector else {}),
        **({"imagePullSecrets": pull_secrets} if pull_secrets else {}),
        "securityContext": {
            "runAsNonRoot": True,
            **ids,
            **({"fsGroupChangePolicy": "OnRootMismatch"} if ids else {}),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(config, job, variables)],
        "volumes": [
            {"name": "study", "persistentVolumeClaim": {"claimName": config.claim}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _container(config: KubernetesConfig, job: JobOf, variables: Mapping[str, str]) -> dict[str, Any]:
    given = {"HOME": "/tmp", **config.variables, **variables}  # noqa: S108  # the pod's own volume
    key = {"name": config.secret, "key": config.secret_key}
    secret = [{"name": "TINKER_API_KEY", "valueFrom": {"secretKeyRef": key}}] if config.secret else []
    attempt_path = "/".join(filter(None, (config.sub_path, "attempts", f"{job.number:04d}")))
    return {
        "name": CONTAINER,
        "image": config.image,
        "command": [each.replace("$(", "$$(") for each in job.command],  # Kubernetes would put variables in
        "workingDir": str(job.study_directory),
        "env": [*({"name": name, "value": value.replace("$(", "$$(")} for name, value in given.items()), *secret],
        "resources": {"requests": dict(config.requests), "limits": dict(config.limits)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {
                "name": "study", "mountPath": str(job.study_directory), "readOnly": True,
                **({"subPath": config.sub_path} if config.sub_path else {}),
            },
            {"name": "study", "mountPath": str(job.home), "subPath": attempt_path},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }  # fmt: skip
