"""Jobs, hooks and groups of pods, run with plain shells."""

import pytest

from openrl.errors import Unavailable
from tests.kubernetes.up_cluster import deployment, settle, small_cluster


def job(name: str, script: str, *, hook: str = "", weight: int = 0, more: str = "") -> str:
    notes = f"annotations: {{helm.sh/hook: '{hook}', helm.sh/hook-weight: '{weight}'}}" if hook else ""
    return f"""
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
  {notes}
spec:
  {more}
  template:
    spec:
      restartPolicy: OnFailure
      containers:
        - name: main
          image: example/shell
          command: [sh, -c, '{script}']
          volumeMounts: [{{name: shared, mountPath: /shared}}]
      volumes: [{{name: shared, persistentVolumeClaim: {{claimName: shared}}}}]
"""


READ = "volumeMounts: [{name: shared, mountPath: /shared}]\nenv: [{name: PLACE, value: /shared/log}]\n"
CLAIM = "volumes: [{name: shared, persistentVolumeClaim: {claimName: shared}}]\n"


async def test_hooks_run_by_weight_before_databases_and_jobs_before_everything_else():
    texts = [
        deployment("app", container=READ, pod=CLAIM),
        job("plain", "echo plain >>/shared/log"),
        job("second", "echo second >>/shared/log", hook="pre-install", weight=5),
        job("first", "echo first >>/shared/log", hook="pre-install,pre-upgrade", weight=-5),
        job("never", "echo never >>/shared/log", hook="test"),
    ]
    async with small_cluster(texts) as cluster:
        await settle(cluster)
        log = cluster.log_of(cluster.pods["app-0"]).parents[2] / "claims" / "shared" / "log"
        assert log.read_text().split() == ["first", "second", "plain"]
        await cluster.run_hooks("test")
        assert log.read_text().split()[-1] == "never"


async def test_a_job_is_tried_again_until_its_limit():
    again = "echo x >>/shared/$HOSTNAME.log; test $(wc -l </shared/$HOSTNAME.log) -ge 3"
    async with small_cluster([job("late", again, more="backoffLimit: 2")]) as cluster:
        assert cluster.pods["late-0"].has_succeeded
        assert cluster.pods["late-0"].restarts == 2
    with pytest.raises(Unavailable, match="Job/never has failed: ended with status 7"):
        async with small_cluster([job("never", "exit 7", more="backoffLimit: 1")]):
            pass


async def test_an_indexed_job_has_a_pod_for_each_completion():
    script = "echo $JOB_COMPLETION_INDEX >/shared/$JOB_COMPLETION_INDEX"
    shape = "completions: 3\n  parallelism: 3\n  completionMode: Indexed"
    async with small_cluster([job("loops", script, more=shape)]) as cluster:
        shared = cluster.log_of(cluster.pods["loops-0"]).parents[2] / "claims" / "shared"
        assert sorted(file.read_text() for file in shared.iterdir()) == ["0\n", "1\n", "2\n"]


async def test_a_group_begins_anew_when_one_of_its_pods_starts_again():
    spec = (
        "{containers: [{name: main, image: example/shell, command: [sleep, '1000']}], terminationGracePeriodSeconds: 1}"
    )
    group = f"""
kind: LeaderWorkerSet
metadata: {{name: big}}
spec: {{replicas: 2, leaderWorkerTemplate: {{size: 2, workerTemplate: {{spec: {spec}}}}}}}
"""
    async with small_cluster([group]) as cluster:
        await settle(cluster)
        before = dict(cluster.pods)
        cluster.pods["big-0-1"].kill()
        await settle(cluster, lambda: all(cluster.pods.get(name) is not before[name] for name in ("big-0", "big-0-1")))
        await settle(cluster)
        assert cluster.pods["big-1"] is before["big-1"]
        assert cluster.pods["big-1-1"] is before["big-1-1"]


async def test_a_program_that_is_not_there_is_tried_again_with_pauses():
    text = deployment("app", container="").replace("[python,", "[no-such-program,")
    async with small_cluster([text]) as cluster:
        await settle(cluster, lambda: any(pod.restarts >= 3 for pod in cluster.pods.values()))
        assert cluster.pods["app-0"].reason == "ended with status 127"
