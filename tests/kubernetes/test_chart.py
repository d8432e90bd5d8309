"""The chart renders, for every example, what the API servers of two releases of Kubernetes take."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml

from openrl.config import load_config
from tests.kubernetes.chart import (
    CHART,
    EVERYTHING,
    EXAMPLES,
    GOLDEN,
    NAMESPACE,
    NEWEST,
    OLDEST,
    Values,
    by_kind,
    example_names,
    render,
    render_example,
    render_files,
    values_of,
)
from tests.kubernetes.test_crds import KINDS

CRDS: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "leaderworkerset.yaml").read_text())
NEEDS_NEWEST = {"dra"}


@pytest.fixture(autouse=True, scope="module")
def cached_schemas() -> Iterator[None]:
    """Each of the large files is read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))
        yield


@pytest.mark.parametrize("example", example_names())
def test_lint_has_nothing_to_say(example: str):
    found = helm_python.lint(CHART, values_of(example), strict=True, namespace="openrl", kube_version=NEWEST)
    assert not found["errors"]
    assert [each["error"] for each in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("kube_version", [OLDEST, NEWEST])
@pytest.mark.parametrize("example", example_names())
def test_every_object_has_the_form_of_its_kind(example: str, kube_version: str):
    if example in NEEDS_NEWEST and kube_version == OLDEST:
        with pytest.raises(helm_python.HelmError, match=r"need Kubernetes 1\.32"):
            render_example(example, kube_version)
        return
    for each in render_example(example, kube_version):
        if each["kind"] in KINDS:
            continue  # test_crds.py
        if each["kind"] in CRDS:
            assert each["apiVersion"] == CRDS[each["kind"]]["apiVersion"]
            jsonschema.validate(each, CRDS[each["kind"]]["schema"])
        else:
            kubernetes_validate.validate(each, kube_version.rpartition(".")[0], strict=True)


def test_the_job_of_three_loops_has_the_form_of_its_kind():
    job = yaml.safe_load((EXAMPLES / "rl-loops" / "job.yaml").read_text())
    kubernetes_validate.validate(job, "1.37", strict=True)
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 3)


@pytest.mark.parametrize("example", example_names())
def test_renderings_are_as_recorded(example: str):
    """`make golden` records them anew."""
    recorded = (GOLDEN / f"{example}.yaml").read_text()
    assert recorded == golden_text(example)
    assert recorded == golden_text(example)  # twice the same


def golden_text(example: str) -> str:
    """All templates' output, in the order of their names; rules and dashboard have tests and a form of their own."""
    values = values_of(example)
    monitoring = {**values.get("monitoring", {}), "rules": {"enabled": False}, "dashboard": {"enabled": False}}
    files = render_files({**values, "monitoring": monitoring})
    return "".join(f"# {name}\n{text.strip()}\n" for name, text in sorted(files.items()) if text.strip())


BAD_VALUES: dict[str, tuple[Values, str]] = {
    "an unknown key": ({"gatewy": {}}, "gatewy"),
    "an unknown key of a pool": ({"pools": {"a": {"gpus": 1}}}, "oneOf"),
    "an unknown role": ({"pools": {"a": {"role": "teach"}}}, "oneOf"),
    "the tag latest": ({"image": {"tag": "latest"}}, "not"),
    "a digest that is none": ({"image": {"digest": "sha256:12"}}, "pattern"),
    "a pool's name with capitals": ({"pools": {"A": {}}}, "pattern|propertyNames|invalid"),
    "a password in an URL": ({"objectStore": {"url": "s3://key:secret@bucket/x"}}, "pattern"),
    "a model without path or source": ({"models": [{"name": "a"}]}, "oneOf"),
    "a model with two sources": (
        {"models": [{"name": "a", "source": {"catalog": "a", "huggingface": "a/b"}}]},
        "oneOf",
    ),
    "no model": ({"models": []}, "minItems"),
    "a negative number of replicas": ({"gateway": {"replicas": -1}}, "minimum"),
    "a secret's value in place of its name": ({"database": {"url": "postgresql://..."}}, "url"),
    "a monitor of another kind": ({"monitoring": {"monitor": {"kind": "probe"}}}, "enum|one of|kind"),
    "a start without time": ({"poolDefaults": {"startupBudgetMinutes": 0}}, "minimum"),
    "a grace that is shorter than the drain": ({"pools": {"a": {"drainSeconds": 100}}}, "terminationGracePeriod"),
    "a pool of a model that is not there": ({"pools": {"a": {"models": ["x"]}}}, "not in models"),
    "a vLLM pool that trains": ({"pools": {"a": {"kind": "vllm", "role": "train"}}}, "role sample"),
    "a vLLM pool of two models": (
        {
            "models": [{"name": "a", "path": "/cache/a"}, {"name": "b", "path": "/cache/b"}],
            "pools": {"a": {"kind": "vllm", "role": "sample"}},
        },
        "one model",
    ),
}


@pytest.mark.parametrize("bad", BAD_VALUES)
def test_wrong_values_are_refused(bad: str):
    values, said = BAD_VALUES[bad]
    with pytest.raises(helm_python.HelmError, match=said):
        render(values)


def test_the_configuration_is_one_that_the_server_takes(tmp_path: Path):
    values = {**EVERYTHING, "config": {"sampling": {"max_sequences": 64}, "gateway": {"port": 8000}}}
    (config_map,) = [each for each in by_kind(render(values), "ConfigMap") if "openrl.toml" in each["data"]]
    text = config_map["data"]["openrl.toml"]
    file = tmp_path / "openrl.toml"
    file.write_text(text)
    config = load_config(file)
    assert config.sampling.max_sequences == 64
    assert config.gateway.secret_file == Path("/run/secrets/openrl/gateway/gateway")
    assert config.scheduler.patch_deletion_cost
    assert (config.pools["train"].role, config.pools["train"].models) == ("train", ("org/model",))
    assert config.store.s3_endpoint == "http://s3:9000"
    assert [model.name for model in config.models] == ["org/model"]


def test_a_pool_takes_from_the_defaults_what_it_does_not_set():
    values: Values = {
        "poolDefaults": {"replicas": 3, "spot": True, "gpu": {"count": 4}},
        "pools": {"a": None, "b": {"replicas": 0, "spot": False, "gpu": {"resource": "nvidia.com/mig-1g.10gb"}}},
    }
    objects = render(values)
    pools: dict[str, Any] = {each["metadata"]["name"]: each["spec"] for each in by_kind(objects, "Deployment")}
    assert pools["openrl-pool-b"]["replicas"] == 0
    limits = pools["openrl-pool-b"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/mig-1g.10gb"] == 4
    tolerated = [each["key"] for each in pools["openrl-pool-b"]["template"]["spec"]["tolerations"]]
    assert tolerated == ["nvidia.com/gpu"]


def test_an_install_tells_how_to_get_a_key_and_to_reach_the_api():
    with helm_python.Config(
        namespace=NAMESPACE, storage_driver="memory", kube_apiserver="http://127.0.0.1:1"
    ) as config:
        release = config.install(CHART, "demo", {"postgres": {"enabled": True}}, dry_run="client")
    assert "exec deploy/demo-openrl-gateway -c gateway -- openrl keys create" in release["notes"]
    assert "for trials" in release["notes"]


def test_names_stay_short_enough_for_labels_and_hosts():
    values: Values = {"fullnameOverride": "a" * 60, "pools": {"p" * 20: {"nodes": 2}}, "postgres": {"enabled": True}}
    assert max(len(each["metadata"]["name"]) for each in render(values)) <= 63 - len("-100-10")


def test_an_autoscaler_may_take_the_last_worker_where_kubernetes_can():
    values: Values = {"pools": {"a": {"autoscaling": {"kind": "hpa", "minReplicas": 0}}}}
    least = [by_kind(render(values, version), "HorizontalPodAutoscaler")[0] for version in (OLDEST, NEWEST)]
    assert [each["spec"]["minReplicas"] for each in least] == [1, 0]


def test_every_kind_of_object_is_rendered():
    """A kind that no value set renders would be untested."""
    kinds = {each["kind"] for name in ("everything", "dra", "small-team") for each in render_example(name)}
    assert {*CRDS, *KINDS} <= kinds
    assert {"NetworkPolicy", "PodDisruptionBudget", "PriorityClass", "ResourceClaimTemplate", "Ingress"} <= kinds
