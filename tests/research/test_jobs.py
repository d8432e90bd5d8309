"""Attempts as Kubernetes Jobs: a study over a double of the API that runs their commands, cut off and resumed."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from openrl.errors import InvalidRequest
from openrl.research.job import QUEUE_LABEL, JobOf, KubernetesConfig, job_name, render_job
from openrl.research.jobs import KubernetesJobs, launch_id
from openrl.research.journal import Journal, StudyState, read_state
from openrl.research.meter import NoMeter
from openrl.research.runner import Runner
from openrl.research.study import load_study
from tests.kubernetes.chart import EXAMPLES, NEWEST, OLDEST, ROOT, by_kind, matches, render
from tests.kubernetes.test_policies import assert_restricted
from tests.live_server import MODEL_NAME, LiveServer, environment
from tests.research.kubernetes_double import JOBS, TOKEN, Cluster, running_cluster
from tests.research.studies import COMMAND, write_study

GRID = "[proposer]\nkind = 'grid'\n[space]\nkind = {values = ['a']}\n"
WAITS = COMMAND.replace("import sys\n", "import os, sys, pathlib, time\n", 1) + (
    "print('key', os.environ['TINKER_API_KEY'])\n"
    "pathlib.Path(attempt.directory, 'runs').open('a').write('x')\n"
    "while x == 1 and not pathlib.Path('go').exists():\n    time.sleep(0.05)\n"
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr("openrl.research.jobs._LOOK_S", 0.1)
    with running_cluster(tmp_path / "cluster") as running:
        running.secrets["keys", "member"] = "tml-secret"
        yield running


def study_of(directory: Path, cluster: Cluster, values: str, more: str = "", command: str = WAITS) -> Path:
    text = f"{GRID}x = {{values = {values}}}\n[budget]\nattempts = 3\n"
    section = (
        f"[kubernetes]\nimage = 'registry/study:1'\nclaim = 'studies'\nsub_path = 'team/sums'\nsecret = 'keys'\n"
        f"secret_key = 'member'\napi_url = '{cluster.url}'\nservice_account_dir = '{cluster.directory}'\n{more}"
    )
    return write_study(directory, text + section, command)


async def run_study(directory: Path, journal: Journal) -> None:
    study = load_study(directory)
    assert study.kubernetes is not None
    jobs = KubernetesJobs(study, study.kubernetes, directory, launch_id(directory, not journal.state.attempts))
    jobs.check()
    await Runner(directory, study, journal, NoMeter(), launcher=jobs).run()


async def run_whole(directory: Path) -> StudyState:
    with Journal(directory) as journal:
        await run_study(directory, journal)
    return read_state(directory)


async def test_a_study_of_jobs_goes_on_after_a_crash_and_runs_nothing_twice(tmp_path: Path, cluster: Cluster):
    directory = study_of(tmp_path / "study", cluster, "[0, 1, 7]")
    cluster.lost_replies = 1
    with Journal(directory) as journal:
        running = asyncio.create_task(run_study(directory, journal))
        while not any(each.params["x"] == 1 and each.reports for each in journal.state.attempts.values()):
            await asyncio.sleep(0.05)
            assert not running.done()
        running.cancel()
        await asyncio.wait((running,))
    assert [each.state for each in read_state(directory).attempts.values()] == ["done", "interrupted"]
    assert len(cluster.jobs) == 2
    (directory / "go").touch()
    state = await run_whole(directory)
    assert [each.state for each in state.attempts.values()] == ["done", "done", "failed"]
    assert state.attempts[3].reason == "exit status 1: x is 7"
    assert [len(each.reports) for each in state.attempts.values()] == [4, 4, 0]
    assert len(cluster.created) == 3
    assert [(directory / "attempts" / name / "runs").read_text() for name in ("0001", "0002")] == ["x", "x"]
    assert "key tml-secret" in (directory / "attempts" / "0002" / "log.txt").read_text()
    assert "tml-secret" not in json.dumps(cluster.created)


STUCK = "print('began')\nimport time\ntime.sleep(600)\n"


async def test_a_job_that_takes_too_long_is_deleted_and_its_log_kept(tmp_path: Path, cluster: Cluster):
    directory = study_of(tmp_path / "study", cluster, "[1]", command=STUCK)
    (directory / "study.toml").write_text("attempt_timeout_s = 3\n" + (directory / "study.toml").read_text())
    state = await run_whole(directory)
    assert state.attempts[1].reason == "not over after attempt_timeout_s = 3 s"
    assert not cluster.jobs
    assert "began" in (directory / "attempts" / "0001" / "log.txt").read_text()


async def test_a_job_that_somebody_deletes_has_failed(tmp_path: Path, cluster: Cluster):
    directory = study_of(tmp_path / "study", cluster, "[1]", command=STUCK)
    with Journal(directory) as journal:
        running = asyncio.create_task(run_study(directory, journal))
        while not cluster.pods:
            await asyncio.sleep(0.05)
            assert not running.done()
        (name,) = cluster.jobs
        cluster.answer("DELETE", f"{JOBS}/{name}", f"Bearer {TOKEN}", b"")
        await running
    assert read_state(directory).attempts[1].reason == "exit status 1: its Job was deleted"


async def test_a_study_that_begins_anew_does_not_take_over_the_jobs_of_before(tmp_path: Path, cluster: Cluster):
    directory = study_of(tmp_path / "study", cluster, "[0]")
    await run_whole(directory)
    (directory / "journal.jsonl").unlink()
    await run_whole(directory)
    assert len(cluster.created) == len(cluster.jobs) == 2


async def test_the_time_in_a_queue_is_not_an_attempts(tmp_path: Path, cluster: Cluster):
    directory = study_of(tmp_path / "study", cluster, "[0]", "queue_name = 'team'\n")
    text = (directory / "study.toml").read_text()
    (directory / "study.toml").write_text("attempt_timeout_s = 0.5\n" + text)
    with Journal(directory) as journal:
        running = asyncio.create_task(run_study(directory, journal))
        await asyncio.sleep(2.0)  # longer than attempt_timeout_s
        assert [each.state for each in journal.state.attempts.values()] == ["running"]
        running.cancel()
        await asyncio.wait((running,))
    (directory / "study.toml").write_text(text)
    cluster.admit()
    state = await run_whole(directory)
    assert [each.state for each in state.attempts.values()] == ["done"]
    assert len(cluster.created) == 1
    assert cluster.created[0]["metadata"]["labels"][QUEUE_LABEL] == "team"


def test_a_service_account_without_rights_is_refused_at_the_start(tmp_path: Path, cluster: Cluster):
    directory = study_of(tmp_path / "study", cluster, "[0]", "namespace = 'others'\n")
    study = load_study(directory)
    assert study.kubernetes is not None
    with pytest.raises(InvalidRequest, match=r"403.*Forbidden"):
        KubernetesJobs(study, study.kubernetes, directory, "0").check()


FULL = KubernetesConfig(
    image="registry/study:1", claim="studies", sub_path="team/sums", secret="keys", queue_name="team",
    labels={"app.kubernetes.io/component": "study"}, node_selector={"pool": "cpu"}, priority_class="low",
    image_pull_secrets=("registry",), variables={"PRICE": "$(HOME)"},
)  # fmt: skip


@pytest.mark.parametrize("kube_version", [OLDEST, NEWEST])
@pytest.mark.parametrize("config", [KubernetesConfig(image="registry/study:1", claim="studies"), FULL])
def test_a_job_is_restricted_and_has_the_form_of_its_kind(config: KubernetesConfig, kube_version: str):
    attempt = JobOf(job_name("s" * 41, "0123abcd", 7), "sums", 7, ("python", "a.py"), Path("/studies/sums"), 3600.0)
    job = render_job(config, attempt, {"OPENRL_ATTEMPT_DIR": "/studies/sums/attempts/0007"})
    kubernetes_validate.validate(job, kube_version.rpartition(".")[0], strict=True)
    pod = job["spec"]["template"]
    assert_restricted("attempt", pod)
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert len(job["metadata"]["name"]) <= 63
    (container,) = pod["spec"]["containers"]
    study, home, _ = container["volumeMounts"]
    assert (study["mountPath"], study["readOnly"]) == ("/studies/sums", True)
    assert home["mountPath"] == "/studies/sums/attempts/0007"
    assert home["subPath"] == f"{config.sub_path}/attempts/0007".lstrip("/")
    values = {each["name"]: each.get("value") for each in container["env"]}
    assert values.get("PRICE") in (None, "$$(HOME)")


def test_the_cluster_may_choose_the_ids():
    attempt = JobOf("sums", "sums", 1, ("python",), Path("/studies"), 60.0)
    job = render_job(KubernetesConfig(image="i:1", claim="c", run_as_user=0), attempt, {})
    assert set(job["spec"]["template"]["spec"]["securityContext"]) == {"runAsNonRoot", "seccompProfile"}


BAD = {
    "image": ("claim = 'a'", "image"),
    "claim": ("image = 'a'", "claim"),
    "sub_path": ("image = 'a'\nclaim = 'a'\nsub_path = '../b'", "sub_path"),
    "variables": ("image = 'a'\nclaim = 'a'\nvariables = {TINKER_API_KEY = 'x'}", "TINKER_API_KEY"),
    "run_as_user": ("image = 'a'\nclaim = 'a'\nrun_as_user = -1", "run_as_user"),
    "environment": ("image = 'a'\nclaim = 'a'", "variables stands in its place"),
}


@pytest.mark.parametrize("bad", BAD)
def test_wrong_settings_are_refused(tmp_path: Path, bad: str):
    text, said = BAD[bad]
    head = "environment = ['A']\n" if bad == "environment" else ""
    directory = write_study(
        tmp_path, f"{head}{GRID}x = {{values = [1]}}\n[budget]\nattempts = 1\n[kubernetes]\n{text}\n"
    )
    with pytest.raises(InvalidRequest, match=said):
        load_study(directory)


EXAMPLE = EXAMPLES / "study"


@pytest.mark.slow
def test_the_example_trains_on_a_server(tmp_path: Path, cluster: Cluster, server: LiveServer):
    """By the command: its own attempt.py and study.toml, but for fewer attempts of fewer steps."""
    directory = tmp_path / "rates"
    shutil.copytree(EXAMPLE, directory)
    here = f"[kubernetes]\napi_url = '{cluster.url}'\nservice_account_dir = '{cluster.directory}'"
    changed = {
        "[kubernetes]": here, "http://openrl-gateway": server.url, "smollm2-135m-instruct": MODEL_NAME,
        "attempts = 12": "attempts = 2", "[1, 2]": "[1]", "values = [8, 16, 32]": "values = [8]",
        "rank = 16": "rank = 8",
        "variables = {": f"variables = {{STUDY_STEPS = '2', PYTHONPATH = '{ROOT / 'src'}', ",
    }  # fmt: skip
    text = (directory / "study.toml").read_text()
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new)
    (directory / "study.toml").write_text(text.replace('"python"', json.dumps(sys.executable)))
    cluster.secrets["openrl-api-key", "api-key"] = server.key
    program = "from openrl.cli.main import main; main()"
    command = [sys.executable, "-c", program, "research", "run", str(directory)]
    given = {**environment(), "TINKER_BASE_URL": server.url, "TINKER_API_KEY": server.key}
    subprocess.run(command, check=True, timeout=240, env=given)
    state = read_state(directory)
    logs = [path.read_text() for path in directory.glob("attempts/*/log.txt")]
    assert [each.state for each in state.attempts.values()] == ["done"] * 2, logs
    for each in state.attempts.values():
        first, second = [values["score"] for _, values in each.reports]
        assert first < second


@pytest.mark.parametrize("kube_version", [OLDEST, NEWEST])
def test_the_runner_of_the_example_fits_its_study_and_the_chart(kube_version: str):
    claim, job = yaml.safe_load_all((EXAMPLE / "runner.yaml").read_text())
    for each in (claim, job):
        kubernetes_validate.validate(each, kube_version.rpartition(".")[0], strict=True)
    pod = job["spec"]["template"]
    assert_restricted("runner", pod)
    study = load_study(EXAMPLE)
    assert study.kubernetes is not None
    assert pod["metadata"]["labels"] == study.kubernetes.labels
    assert claim["metadata"]["name"] == study.kubernetes.claim
    assert pod["spec"]["securityContext"]["runAsUser"] == study.kubernetes.run_as_user
    chart = render({"studies": {"enabled": True}}, kube_version)
    accounts = [each["metadata"]["name"] for each in by_kind(chart, "ServiceAccount")]
    assert pod["spec"]["serviceAccountName"] in accounts
    (policy,) = [each for each in by_kind(chart, "NetworkPolicy") if each["metadata"]["name"] == "openrl"]
    assert matches(policy["spec"]["podSelector"]["matchLabels"], study.kubernetes.labels)
