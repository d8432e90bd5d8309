"""Manifests become variables, files, names and commands."""

import base64
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrl.cluster.chart import merged_values
from openrl.cluster.gpus import GpuPool, gpus_of_this_machine
from openrl.cluster.images import OPENRL, command_of, image_environment, image_name
from openrl.cluster.made_secrets import add_missing
from openrl.cluster.manifests import Manifests, read_manifests
from openrl.cluster.names import hosts_file, with_addresses, with_paths
from openrl.cluster.plans import PodPlan, pods_of
from openrl.cluster.pod_spec import Container, Resources
from openrl.cluster.programs import Program, Rewriting, plain_spawn
from openrl.cluster.values import Place, environment_of, expand, quantity
from openrl.cluster.volumes import Mount, make_volumes, mounts_of
from openrl.errors import InvalidRequest

PLACE = Place("team", "127.0.7.10", "127.0.7.1")
POD = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: app}
spec:
  replicas: 2
  serviceName: app
  selector: null
  template:
    metadata: {labels: {app: app}, annotations: {note: hello}}
    spec:
      containers:
        - name: main
          image: ghcr.io/openrl/openrl:1
          command: [openrl, worker, --name, $(POD_NAME)]
          resources: {limits: {cpu: 1500m, memory: 2Gi}}
          envFrom: [{configMapRef: {name: settings}, prefix: P_}, {secretRef: {name: none, optional: true}}]
          env:
            - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
            - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
            - {name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
            - {name: TOKEN, valueFrom: {secretKeyRef: {name: hidden, key: token}}}
            - {name: URL, value: "http://$(TOKEN)@$(POD_NAME)/$(UNKNOWN)/$$(TOKEN)"}
            - {name: MAYBE, valueFrom: {secretKeyRef: {name: hidden, key: other, optional: true}}}
          volumeMounts: [{name: files, mountPath: /etc/app}, {name: own, mountPath: /data, subPath: deep}]
      volumes:
        - name: files
          projected:
            sources:
              - configMap: {name: settings, items: [{key: color, path: a/color}]}
              - secret: {name: hidden}
              - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.name}}]}
  volumeClaimTemplates: [{metadata: {name: own}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: green}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
data: {token: czNjcmV0}
"""


def read(*texts: str) -> tuple[Manifests, PodPlan]:
    manifests = read_manifests(texts)
    return manifests, pods_of(manifests.runnables[0], 1)[0]


def test_variables_come_from_everywhere():
    manifests, plan = read(POD)
    assert environment_of(plan.spec.containers[0], plan, PLACE, manifests) == {
        "P_color": "green",
        "POD_NAME": "app-1",
        "IP": "127.0.7.10",
        "NOTE": "hello",
        "CPUS": "2",
        "TOKEN": "s3cret",
        "URL": "http://s3cret@app-1/$(UNKNOWN)/$(TOKEN)",
    }
    assert plan.dns_names == ("app-1.app",)


def test_what_is_missing_is_named():
    manifests, plan = read(POD.replace("name: hidden, key: token", "name: hidden, key: tokken"))
    with pytest.raises(InvalidRequest, match=r"app-1 needs key 'tokken' of Secret 'hidden'"):
        environment_of(plan.spec.containers[0], plan, PLACE, manifests)
    with pytest.raises(InvalidRequest, match=r"Deployment 'x': .*template"):
        read_manifests(["{kind: Deployment, metadata: {name: x}, spec: {}}"])
    with pytest.raises(InvalidRequest, match="no YAML"):
        read_manifests(["a: [b"])


def test_volumes_are_directories_with_the_files_that_are_asked_for(tmp_path: Path):
    manifests, plan = read(POD)
    volumes = make_volumes(plan, PLACE, manifests, tmp_path)
    assert (volumes["files"] / "a" / "color").read_text() == "green"
    assert (volumes["files"] / "token").read_bytes() == b"s3cret"
    assert (volumes["files"] / "labels").read_text() == "app-1"
    assert volumes["own"] == tmp_path / "claims" / "own-app-1"
    assert mounts_of(plan.spec.containers[0], volumes, {}) == [
        Mount(volumes["own"] / "deep", "/data", read_only=False),
        Mount(volumes["files"], "/etc/app", read_only=False),
    ]


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b"])
def test_files_stay_in_their_volume(tmp_path: Path, name: str):
    manifests, plan = read(POD.replace("path: a/color", f"path: {name}"))
    with pytest.raises(InvalidRequest, match="leaves its volume"):
        make_volumes(plan, PLACE, manifests, tmp_path)
    manifests, plan = read(POD.replace("subPath: deep", f"subPath: {name}"))
    with pytest.raises(InvalidRequest, match="leaves its volume"):
        mounts_of(plan.spec.containers[0], {"own": tmp_path, "files": tmp_path}, {})


def test_a_group_of_pods_knows_its_leader():
    text = """
kind: LeaderWorkerSet
metadata: {name: big}
spec:
  replicas: 2
  leaderWorkerTemplate:
    size: 2
    leaderTemplate: {metadata: {labels: {part: leader}}, spec: {containers: [{name: main}]}}
    workerTemplate: {spec: {containers: [{name: main}]}}
"""
    (shape,) = read_manifests([text]).runnables
    leader, follower = pods_of(shape, 1)
    assert (leader.name, follower.name, leader.group, follower.group) == ("big-1", "big-1-1", "big-1", "big-1")
    assert leader.metadata.labels["part"] == "leader"
    assert follower.added_env == {
        "LWS_LEADER_ADDRESS": "big-1.big",
        "LWS_GROUP_SIZE": "2",
        "LWS_WORKER_INDEX": "1",
    }


def test_hooks_are_kept_apart_and_come_in_order():
    def _job(name: str, hook: str, weight: int) -> str:
        note = f"{{helm.sh/hook: '{hook}', helm.sh/hook-weight: '{weight}'}}"
        spec = "{template: {spec: {containers: []}}}"
        return f"---\nkind: Job\nmetadata: {{name: {name}, annotations: {note}}}\nspec: {spec}\n"

    found = read_manifests(
        [_job("b", "pre-install,pre-upgrade", 5), _job("a", "pre-install", 0), _job("t", "test", 0), POD]
    )
    assert [each.metadata.name for each in found.hooks("pre-install")] == ["a", "b"]
    assert [each.metadata.name for each in found.plain()] == ["app"]


def test_names_and_paths_are_replaced_only_where_they_are_meant():
    addresses = {"app": "127.0.7.200", "app.team.svc": "127.0.7.200", "0.0.0.0": "127.0.7.10"}
    for text, expected in {
        "tcp:app:7600,tcp:app.team.svc:7600": "tcp:127.0.7.200:7600,tcp:127.0.7.200:7600",
        "postgresql://u:p@app/app": "postgresql://u:p@127.0.7.200/app",
        'host = "0.0.0.0:9090"': 'host = "127.0.7.10:9090"',
        "my-app:1 app-1:1 /app:1 app2 app.team.svcs": "my-app:1 app-1:1 /app:1 app2 app.team.svcs",
        "the app itself": "the app itself",
        "app": "127.0.7.200",
    }.items():
        assert with_addresses(text, addresses) == expected
    paths = {"/data": "/x/1", "/data/deep": "/x/2"}
    for text, expected in {
        "--data-dir=/data NAME=/data/a": "--data-dir=/x/1 NAME=/x/1/a",
        "file:///data/blobs /data/deep/er": "file:///x/1/blobs /x/2/er",
        "s3://bucket/data /database /data.old a/data": "s3://bucket/data /database /data.old a/data",
    }.items():
        assert with_paths(text, paths) == expected


@given(st.text(alphabet="ab/.:-@$() ", max_size=30))
def test_texts_without_names_paths_and_references_stay_as_they_are(text: str):
    assert with_addresses(text, {"zz": "1"}) == text
    assert with_paths(text, {"/zz": "/y"}) == text
    assert "$$" in text or expand(text, {}) == text


def test_pods_without_namespaces_get_rewritten_arguments_and_variables(tmp_path: Path):
    program = Program(
        ("/bin/sh", "--at", "0.0.0.0:80", "/etc/app/x"),
        {"PATH": "/etc/app", "URL": "http://app:80/etc/app"},
        mounts=(Mount(tmp_path, "/etc/app", read_only=True),),
    )
    spawn = plain_spawn(program, Rewriting({"0.0.0.0": "127.0.7.10", "app": "127.0.7.200"}, {}))
    assert spawn.argv == ("/bin/sh", "--at", "127.0.7.10:80", f"{tmp_path}/x")
    assert spawn.env == {"PATH": "/etc/app", "URL": "http://127.0.7.200:80/etc/app"}


def test_images_are_this_installation():
    assert image_name("registry.example:5000/a/openrl@sha256:12") == "openrl"
    openrl = Container(name="x", image="ghcr.io/openrl/openrl:1", command=("openrl", "gateway"), args=("--port", "1"))
    assert command_of(openrl) == (*OPENRL, "gateway", "--port", "1")
    assert command_of(Container(name="x", image="i", command=("python", "-m", "a"))) == (sys.executable, "-m", "a")
    assert command_of(Container(name="x", image="docker.io/library/postgres:17"))[:2] == ("sh", "-c")
    with pytest.raises(InvalidRequest, match="neither command nor args"):
        command_of(Container(name="x", image="i"))
    env = image_environment({"PATH": "/bin", "OPENRL_STORE__URL": "x", "AWS_SECRET_ACCESS_KEY": "y", "LANG": "C"})
    assert set(env) == {"PATH", "HOME", "LANG"}


def test_gpus_are_given_once_each(tmp_path: Path):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    pool = GpuPool(gpus_of_this_machine(tmp_path))
    two = Container(name="x", resources=Resources(limits={"nvidia.com/gpu": 2}))
    assert pool.take("a/x", two) == pool.take("a/x", two) == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert pool.take("c/x", Container(name="x")) == {}
    with pytest.raises(InvalidRequest, match="b/x asks for 2 GPU"):
        pool.take("b/x", two)
    pool.give_back("a")
    assert pool.take("b/x", two) == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_quantities():
    assert [quantity(each) for each in ("1500m", "2Gi", "1M", 3, 0.5)] == [2, 2**31, 10**6, 3, 1]
    with pytest.raises(InvalidRequest):
        quantity("much")


def test_secrets_that_any_value_does_for_are_made_up_once(tmp_path: Path):
    text = POD.replace("key: token", "key: rpc-secret").replace(
        "name: hidden, key: other", "name: db, key: database-url"
    )
    file = tmp_path / "secrets.json"
    first, _ = read(text)
    assert add_missing(first, file) == ["hidden/rpc-secret"]
    assert first.secrets["hidden"].values()["token"] == b"s3cret"
    assert file.stat().st_mode & 0o777 == 0o600
    again, _ = read(text)
    add_missing(again, file)
    assert again.secrets["hidden"].values() == first.secrets["hidden"].values()
    given = base64.b64encode(b"mine").decode()
    own, _ = read(text.replace("data: {token: czNjcmV0}", f"data: {{rpc-secret: {given}}}"))
    assert add_missing(own, file) == []
    assert json.loads(file.read_text())


def test_later_values_win_key_by_key(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("scheduler: {replicas: 1}\nlist: [1, 2]\n")
    (tmp_path / "b.yaml").write_text("scheduler: {replicas: 3}\nlist: [3]\n")
    assert merged_values([tmp_path / "a.yaml", tmp_path / "b.yaml"]) == {
        "scheduler": {"patchDeletionCost": False, "replicas": 3},
        "list": [3],
    }
    (tmp_path / "c.yaml").write_text("- 1\n")
    with pytest.raises(InvalidRequest, match="no mapping"):
        merged_values([tmp_path / "c.yaml"])


def test_the_hosts_file_has_every_address():
    assert hosts_file({"b": ("10.0.0.2", "10.0.0.3"), "a": ("10.0.0.1",)}).splitlines()[2:] == [
        "10.0.0.1 a",
        "10.0.0.2 b",
        "10.0.0.3 b",
    ]
