"""What schemas do not see: objects that fit together, pods that are restricted, work that is not cut off."""

import re
from typing import Any

import pytest
import yaml

from tests.kubernetes.chart import (
    EVERYTHING,
    EXAMPLES,
    Object,
    by_kind,
    containers,
    example_names,
    matches,
    pod_templates,
    render,
    render_example,
    values_of,
)

SCHEDULER = "Deployment/openrl-scheduler"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
ALLOWED_VOLUMES = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "ephemeral", "projected", "downwardAPI"}
SERVERS = ("gateway", "scheduler", "worker")


@pytest.fixture(params=example_names())
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """All objects of one value set."""
    return render_example(request.param)


def all_pods(objects: list[Object]) -> list[tuple[str, Object]]:
    """The pods of the chart and of the job among the examples."""
    job = yaml.safe_load((EXAMPLES / "rl-loops" / "job.yaml").read_text())
    return [*pod_templates(objects), *pod_templates([job])]


def labels_of(pod: Object) -> dict[str, str]:
    return pod["metadata"]["labels"]


def test_every_pod_is_restricted(objects: list[Object]):
    for name, pod in all_pods(objects):
        assert_restricted(name, pod)


def assert_restricted(name: str, pod: Object) -> None:
    """Pod Security Standards, level restricted, and a root file system that nobody writes to."""
    spec = pod["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
    assert spec["securityContext"]["runAsNonRoot"] is True, name
    assert spec["securityContext"]["runAsUser"] > 0, name
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert all(ALLOWED_VOLUMES & set(volume) for volume in spec.get("volumes", [])), name
    for each in containers(pod):
        context = each["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert not context.get("privileged"), name
        assert all("hostPort" not in port for port in each.get("ports", [])), name


def test_every_container_says_what_it_needs(objects: list[Object]):
    for name, pod in all_pods(objects):
        for each in containers(pod):
            resources = each["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"]), name
            assert "memory" in resources["limits"], name
            gpus = {key: value for key, value in resources["limits"].items() if "/" in key}
            assert gpus.items() <= resources["requests"].items(), name


def test_every_image_has_a_version(objects: list[Object]):
    for name, pod in all_pods(objects):
        for each in containers(pod):
            repository, _, version = each["image"].partition("@")[0].rpartition(":")
            assert repository, name
            assert version not in ("", "latest"), name


def test_only_the_scheduler_has_a_token(objects: list[Object]):
    for name, pod in all_pods(objects):
        assert pod["spec"]["automountServiceAccountToken"] is (name == SCHEDULER), name
        assert pod["spec"]["enableServiceLinks"] is False, name
    assert all(each["automountServiceAccountToken"] is False for each in by_kind(objects, "ServiceAccount"))
    rules = {each["metadata"]["name"]: each["rules"] for each in by_kind(objects, "Role")}
    assert rules.pop("openrl-scheduler") == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}]
    assert set(rules) <= {"openrl-studies"}


def test_a_runner_of_studies_has_the_rights_that_it_uses_where_wanted():
    objects = render({"studies": {"enabled": True}})
    (role,) = [each for each in by_kind(objects, "Role") if each["metadata"]["name"] == "openrl-studies"]
    assert role["rules"] == [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list", "delete"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    ]
    (binding,) = [each for each in by_kind(objects, "RoleBinding") if each["metadata"]["name"] == "openrl-studies"]
    assert binding["roleRef"]["name"] == binding["subjects"][0]["name"] == "openrl-studies"
    assert "openrl-studies" in [each["metadata"]["name"] for each in by_kind(objects, "ServiceAccount")]
    assert "openrl-studies" not in [each["metadata"]["name"] for each in by_kind(render({}), "ServiceAccount")]


def test_pods_of_studies_reach_the_gateway_where_others_may_not():
    peers = {"networkPolicy": {"gatewayFrom": [{"namespaceSelector": {}}]}}
    for enabled in (True, False):
        objects = render({**peers, "studies": {"enabled": enabled}})
        (policy,) = [each for each in by_kind(objects, "NetworkPolicy") if each["metadata"]["name"] == "openrl-gateway"]
        assert ("'app.kubernetes.io/component': 'study'" in str(policy["spec"]["ingress"])) is enabled


def test_selectors_select(objects: list[Object]):
    pods = [labels_of(pod) for _, pod in pod_templates(objects)]
    for each in objects:
        spec: dict[str, Any] = each.get("spec", {})
        match each["kind"]:
            case "Deployment" | "StatefulSet":
                assert matches(spec["selector"]["matchLabels"], labels_of(spec["template"]))
            case "Service":
                assert any(matches(spec["selector"], labels) for labels in pods), each["metadata"]["name"]
            case "PodDisruptionBudget" | "PodMonitor":
                assert any(matches(spec["selector"]["matchLabels"], labels) for labels in pods)
            case "NetworkPolicy":
                assert any(matches(spec["podSelector"].get("matchLabels", {}), labels) for labels in pods)
            case _:
                pass


def test_no_two_workloads_select_the_same_pod(objects: list[Object]):
    selectors = [each["spec"]["selector"]["matchLabels"] for each in by_kind(objects, "Deployment")]
    for _, pod in pod_templates(objects):
        assert sum(matches(selector, labels_of(pod)) for selector in selectors) <= 1


def test_ports_have_the_names_that_are_used(objects: list[Object]):
    pods = list(pod_templates(objects))
    for name, pod in pods:
        for each in containers(pod):
            ports = {port["name"] for port in each.get("ports", [])}
            for probe in (*PROBES, "lifecycle"):
                used = re.findall(r"'port': '(\w+)'", str(each.get(probe, {})))
                assert set(used) <= ports, f"{name}: {probe}"
    for service in by_kind(objects, "Service"):
        chosen = [pod for _, pod in pods if matches(service["spec"]["selector"], labels_of(pod))]
        offered = {port["name"] for pod in chosen for each in containers(pod) for port in each.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= offered, service["metadata"]["name"]
    offered = {port["name"] for _, pod in pods for each in containers(pod) for port in each.get("ports", [])}
    for monitor in by_kind(objects, "PodMonitor"):
        assert {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]} <= offered


def test_a_service_monitor_finds_every_pod_once(objects: list[Object]):
    """By one Service: those of gateways and schedulers would give their pods a second time."""
    for monitor in by_kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (service,) = [each for each in by_kind(objects, "Service") if matches(wanted, each["metadata"]["labels"])]
        assert all(matches(service["spec"]["selector"], labels_of(pod)) for _, pod in pod_templates(objects))
        ports = {each["name"] for each in service["spec"]["ports"]}
        assert {each["port"] for each in monitor["spec"]["endpoints"]} == ports


def test_what_is_referred_to_is_there(objects: list[Object]):
    """Config maps, claims, service accounts and volumes; secrets are made outside."""
    there = {(each["kind"], each["metadata"]["name"]) for each in objects}
    for name, pod in pod_templates(objects):
        spec = pod["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for volume in volumes.values():
            if config_map := volume.get("configMap"):
                assert ("ConfigMap", config_map["name"]) in there, name
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in there, name
        mounts = {mount["name"] for each in containers(pod) for mount in each.get("volumeMounts", [])}
        claimed = {"data"} if name.startswith("StatefulSet") else set[str]()
        assert mounts == set(volumes) | claimed, name
        if account := spec.get("serviceAccountName"):
            assert ("ServiceAccount", account) in there, name
        for claim in spec.get("resourceClaims", []):
            assert ("ResourceClaimTemplate", claim["resourceClaimTemplateName"]) in there, name


def test_hooks_before_the_install_need_nothing_of_the_release(objects: list[Object]):
    for each in objects:
        if "pre-install" in each["metadata"].get("annotations", {}).get("helm.sh/hook", ""):
            spec = each["spec"]["template"]["spec"]
            assert "serviceAccountName" not in spec
            assert all("emptyDir" in volume for volume in spec["volumes"])
            assert "configMapKeyRef" not in str(spec)


def test_a_rollout_waits_for_the_slowest_start(objects: list[Object]):
    for each in by_kind(objects, "Deployment"):
        for container in containers(each["spec"]["template"]):
            if probe := container.get("startupProbe"):
                budget_s = probe["periodSeconds"] * probe["failureThreshold"]
                assert each["spec"]["progressDeadlineSeconds"] > budget_s, each["metadata"]["name"]


def test_every_server_has_three_probes_and_time_to_drain(objects: list[Object]):
    for name, pod in pod_templates(objects):
        if labels_of(pod)["app.kubernetes.io/component"] not in SERVERS:
            continue
        grace_s = pod["spec"]["terminationGracePeriodSeconds"]
        for each in pod["spec"]["containers"]:
            if each["name"] == "vllm" and not each.get("ports"):
                continue  # a follower of a group: the leader's probes speak for all
            assert set(PROBES) <= set(each), name
            assert each["livenessProbe"]["failureThreshold"] * each["livenessProbe"]["periodSeconds"] >= 60, name
            settings = {env["name"]: env.get("value") for env in each["env"]}
            assert grace_s >= float(settings.get("OPENRL_WORKER__DRAIN_S") or 30) + 10, name
            if each["name"] == "worker":
                assert each["lifecycle"]["preStop"] == {"httpGet": {"path": "/drain", "port": "probes"}}, name


def test_budgets_and_network_policies_cover_every_pod(objects: list[Object]):
    budgets = by_kind(objects, "PodDisruptionBudget")
    assert all(each["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" for each in budgets)
    denied = [
        each["spec"]["podSelector"]["matchLabels"]
        for each in by_kind(objects, "NetworkPolicy")
        if set(each["spec"]["policyTypes"]) == {"Ingress", "Egress"} and not each["spec"].get("ingress")
    ]
    for name, pod in pod_templates(objects):
        labels = labels_of(pod)
        assert any(matches(selector, labels) for selector in denied), name
        if labels["app.kubernetes.io/component"] in SERVERS:
            covering = [each for each in budgets if matches(each["spec"]["selector"]["matchLabels"], labels)]
            assert len(covering) == 1, name  # two would forbid every eviction


def test_workers_and_vllm_are_called_by_schedulers_and_gateways_alone(objects: list[Object]):
    for each in by_kind(objects, "NetworkPolicy"):
        if each["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component") != "worker":
            continue
        for rule in each["spec"]["ingress"]:
            callers = [peer["podSelector"]["matchLabels"] for peer in rule["from"] if "podSelector" in peer]
            components = {caller["app.kubernetes.io/component"] for caller in callers}
            own_group = {"worker"} if "openrl.dev/pool" in each["spec"]["podSelector"]["matchLabels"] else set[str]()
            assert components <= (own_group or {"scheduler", "gateway"})


def test_what_is_scaled_has_no_number_of_replicas_of_its_own(objects: list[Object]):
    targets = {
        (each["spec"]["scaleTargetRef"]["kind"], each["spec"]["scaleTargetRef"]["name"])
        for each in objects
        if each["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")
    }
    workloads = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    assert targets <= set(workloads)
    for kind, name in workloads:
        if kind in ("Deployment", "LeaderWorkerSet"):
            assert ("replicas" in workloads[kind, name]["spec"]) is ((kind, name) not in targets), name


def test_a_pool_has_no_more_pods_than_gpus_while_it_is_renewed(objects: list[Object]):
    for each in by_kind(objects, "Deployment"):
        rolling = each["spec"]["strategy"]["rollingUpdate"]
        is_pool = "openrl.dev/pool" in each["metadata"]["labels"]
        assert rolling == ({"maxSurge": 0, "maxUnavailable": 1} if is_pool else {"maxSurge": 1, "maxUnavailable": 0})


def test_passwords_are_only_in_secrets(objects: list[Object]):
    for name, pod in pod_templates(objects):
        for each in containers(pod):
            for env in each.get("env", []):
                if re.search(r"PASSWORD|TOKEN|SECRET", env["name"]):
                    assert "secretKeyRef" in env["valueFrom"], name
                if env["name"] == "OPENRL_STORE__URL":
                    assert "secretKeyRef" in str(env) or "$(POSTGRES_PASSWORD)" in env["value"], name


def test_workers_have_no_way_into_the_database(objects: list[Object]):
    for name, pod in pod_templates(objects):
        if labels_of(pod)["app.kubernetes.io/component"] == "worker":
            assert "OPENRL_STORE__URL" not in str(pod), name


def test_a_volume_of_one_node_keeps_the_pods_there():
    for values, is_bound in (({}, True), ({"blobs": {"accessMode": "ReadWriteMany"}}, False), (EVERYTHING, False)):
        for name, pod in pod_templates(render(values)):
            mounts_files = any("persistentVolumeClaim" in volume for volume in pod["spec"].get("volumes", []))
            affinity = pod["spec"].get("affinity", {}).get("podAffinity", {})
            if mounts_files or not is_bound:
                assert bool(affinity) is is_bound, name


def test_the_cluster_may_choose_the_ids():
    """OpenShift refuses pods that name theirs."""
    objects = render({"podSecurity": {"runAsUser": None, "fsGroup": None}, "postgres": {"enabled": True}})
    for name, pod in pod_templates(objects):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(pod["spec"]["securityContext"]), name


def test_a_trial_fits_on_a_small_node():
    """A kind node of two cores has about one left."""
    objects = render(values_of("defaults") | {"postgres": {"enabled": True}})
    replicas = {
        f"{each['kind']}/{each['metadata']['name']}": each["spec"].get("replicas", 1)
        for each in objects
        if "spec" in each
    }
    cores = sum(
        replicas[name] * cpu_of(each)
        for name, pod in pod_templates(objects)
        if not name.startswith("Pod/")
        for each in pod["spec"]["containers"]
    )
    assert cores <= 1.05


def cpu_of(container: Object) -> float:
    """Cores that it asks for."""
    asked = str(container["resources"]["requests"]["cpu"])
    return float(asked.removesuffix("m")) / 1000 if asked.endswith("m") else float(asked)
