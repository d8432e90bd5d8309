"""The chart as tests see it: rendered by Helm's own engine, as objects."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "openrl"
EXAMPLES = ROOT / "examples" / "kubernetes"
GOLDEN = Path(__file__).parent / "golden"
OLDEST, NEWEST = "1.29.0", "1.37.0"
NAMESPACE = "openrl"

Object = dict[str, Any]
Values = dict[str, Any]

EVERYTHING: Values = {
    "postgres": {"enabled": True},
    "objectStore": {"url": "s3://bucket/prefix", "endpoint": "http://s3:9000", "allowHttp": True, "region": "r"},
    "gateway": {
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True, "className": "nginx", "host": "openrl.example.com", "tlsSecret": "tls"},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["openrl.example.com"]},
    },
    "otlpEndpoint": "http://collector:4318",
    "huggingface": {"existingSecret": "huggingface"},
    "modelCache": {"kind": "pvc"},
    "priorityClasses": {"create": True},
    "studies": {"enabled": True},
    "imagePullSecrets": [{"name": "registry"}],
    "monitoring": {
        "monitor": {"enabled": True, "kind": "service"},
        "rules": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "models": [{"name": "org/model", "source": {"huggingface": "org/model", "revision": "abc"}}],
    "pools": {
        "train": {"role": "train", "gpu": {"count": 2}, "spot": True, "autoscaling": {"kind": "keda"}},
        "sample": {"role": "sample", "autoscaling": {"kind": "hpa"}, "kueue": {"queueName": "gpus"}},
        "group": {"nodes": 2, "gpu": {"count": 8}, "kueue": {"queueName": "gpus", "topology": "rack"}},
        "served": {"kind": "vllm", "role": "sample", "gpu": {"count": 1}, "runtimeClassName": "nvidia"},
        "wide": {"kind": "vllm", "role": "sample", "nodes": 2, "gpu": {"count": 8}, "autoscaling": {"kind": "keda"}},
    },
}
"""Values that switch on every object that the chart knows."""


def values_of(example: str) -> Values:
    """The values of an example; "defaults" has none, "everything" is above."""
    if example == "defaults":
        return {}
    if example == "everything":
        return EVERYTHING
    return yaml.safe_load((EXAMPLES / f"{example}.yaml").read_text())


def example_names() -> list[str]:
    """All value sets that are tested."""
    return ["defaults", "everything", *sorted(path.stem for path in EXAMPLES.glob("*.yaml"))]


def render_files(values: Values, kube_version: str = NEWEST) -> dict[str, str]:
    """What each template gives."""
    with helm_python.Chart.load(CHART) as chart:
        return chart.render({"kubeVersion": kube_version, **values}, name="openrl", namespace=NAMESPACE)


def render(values: Values, kube_version: str = NEWEST) -> list[Object]:
    """All objects of a release called openrl."""
    files = render_files(values, kube_version)
    texts = [text for name, text in sorted(files.items()) if name.endswith(".yaml")]
    return [each for text in texts for each in yaml.load_all(text, yaml.CSafeLoader) if each]  # parsed in C


@cache
def render_example(example: str, kube_version: str = NEWEST) -> list[Object]:
    """All objects of an example's release; leave them as they are."""
    return render(values_of(example), kube_version)


def by_kind(objects: list[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [each for each in objects if each["kind"] == kind]


def pod_templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod there will be: where it is, and an object with metadata and spec."""
    for each in objects:
        name = f"{each['kind']}/{each['metadata']['name']}"
        match each["kind"]:
            case "Pod":
                yield name, each
            case "LeaderWorkerSet":
                template = each["spec"]["leaderWorkerTemplate"]
                yield f"{name}/leader", template["leaderTemplate"]
                yield f"{name}/worker", template["workerTemplate"]
            case "Deployment" | "StatefulSet" | "Job":
                yield name, each["spec"]["template"]
            case _:
                pass


def containers(pod: Object) -> list[Object]:
    """Of a pod, also those that run first."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether labels have all that a selector asks for."""
    return selector.items() <= labels.items()
