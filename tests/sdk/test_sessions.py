"""Sessions and projects: lists, searches, moves."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tinker
from tinker import types
from tinker.types import (
    AccessibleSearchOwner,
    ActiveSessionStatusQuery,
    CancelledSessionStatusQuery,
    ClientFinishedSessionStatusQuery,
    SessionSearchRequest,
    SessionSummary,
    UserSearchOwner,
)

from tests.contracts.loops import new_run
from tests.contracts.raw_api import RawApi
from tests.live_server import LiveServer, openrl
from tests.sdk.tinker_cli import TinkerCli

pytestmark = pytest.mark.filterwarnings("ignore::tinker.lib.experimental.ExperimentalWarning")


def open_session(raw: RawApi, **fields: object) -> str:
    answer = raw.http.post("create_session", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["session_id"]


def finish(raw: RawApi, session_id: str, reason: str, detail: str | None = None) -> None:
    body = {"reason": {"type": reason}, "detail": detail}
    assert raw.http.post(f"sessions/{session_id}/finish", json=body).status_code == 204


def search(rest: tinker.RestClient, **fields: object) -> list[SessionSummary]:
    request = SessionSearchRequest(**fields)  # pyright: ignore[reportArgumentType]
    return rest.search_sessions(request).result().sessions  # pyright: ignore[reportDeprecated]


def ids(sessions: list[SessionSummary]) -> list[str]:
    return [session.session_id for session in sessions]


@pytest.mark.sdk("RestClient.list_sessions", "RestClient.get_session")
def test_sessions_are_listed_newest_first_in_pages(rest: tinker.RestClient, bob_rest: tinker.RestClient, raw: RawApi):
    made = [open_session(raw, user_metadata={"n": str(n)}, display_name=f"list {n}") for n in range(3)]
    assert rest.list_sessions(limit=3).result().sessions == made[::-1]
    assert rest.list_sessions(limit=1, offset=1, access_scope="accessible").result().sessions == [made[1]]
    assert not set(made) & set(bob_rest.list_sessions(limit=1000, access_scope="accessible").result().sessions)
    session = rest.get_session(made[0], access_scope="accessible").result()
    assert (session.user_metadata, session.display_name) == ({"n": "0"}, "list 0")
    assert (session.training_run_ids, session.sampler_ids) == ([], [])
    with pytest.raises(tinker.NotFoundError):
        bob_rest.get_session(made[0]).result()
    assert raw.http.get("sessions", params={"access_scope": "all"}).status_code == 400


@pytest.mark.sdk(
    "ServiceClient.create_lora_training_client", "RestClient.list_training_runs", "RestClient.get_training_run"
)
def test_a_project_comes_into_being_when_a_session_names_it(
    server: LiveServer, rest: tinker.RestClient, bob_rest: tinker.RestClient, tmp_path: Path
):
    with tinker.ServiceClient(base_url=server.url, api_key=server.key, project_id="poetry") as service:
        run = new_run(service)
        run.save_state("kept").result()
        run_id = run.model_id
    runs = rest.list_training_runs(project_id="poetry").result()
    assert [run.training_run_id for run in runs.training_runs] == [run_id]
    assert runs.cursor.total_count == 1
    assert rest.get_training_run(run_id, access_scope="accessible").result().training_run_id == run_id
    assert bob_rest.list_training_runs(project_id="poetry").result().training_runs == []
    assert rest.list_training_runs(project_id="unheard-of").result().training_runs == []
    with pytest.raises(tinker.BadRequestError):
        rest.list_training_runs(project_id="no spaces").result()
    listed = openrl("projects", "--tenant", "default", "--json", "--data-dir", str(server.data_dir))
    project = next(each for each in json.loads(listed.stdout) if each["project_id"] == "poetry")
    assert (project["sessions"], project["runs"], project["checkpoints"]) == (1, 1, 1)
    assert project["bytes"] > 0
    cli = TinkerCli(server.url, server.key, tmp_path)
    assert run_id in cli.table("run", "list", "--limit", "0")
    shown = cli.json("run", "info", run_id)
    assert run_id in json.dumps(shown)


@pytest.mark.sdk("RestClient.assign_session_project")
def test_a_session_moves_between_projects(rest: tinker.RestClient, bob_rest: tinker.RestClient, raw: RawApi):
    session_id = open_session(raw)
    assert search(rest, session_id=session_id)[0].project_id == "default"
    for project_id in ("first:home@1", "second_home"):
        rest.assign_session_project(session_id, project_id).result()
        assert search(rest, session_id=session_id)[0].project_id == project_id
    with pytest.raises(tinker.NotFoundError):
        bob_rest.assign_session_project(session_id, "second_home").result()
    with pytest.raises(tinker.NotFoundError):
        search(bob_rest, project_ids=["second_home"])
    for refused in ("", "a/b", "-x", "x" * 129, "a b", "\x00"):
        with pytest.raises(tinker.BadRequestError, match="project_id"):
            rest.assign_session_project(session_id, refused).result()


@pytest.mark.sdk("RestClient.search_sessions")
def test_a_search_asks_for_all_of_its_fields(rest: tinker.RestClient, bob_rest: tinker.RestClient, raw: RawApi):
    nightly = open_session(raw, display_name="Nightly Straße RUN", user_metadata={"a": "1", "b": "2"}, project_id="s1")
    weekly = open_session(raw, display_name="weekly run", user_metadata={"a": "1"}, project_id="s2")
    projects = {"project_ids": ["s1", "s2"]}
    assert ids(search(rest, **projects)) == [weekly, nightly]
    assert ids(search(rest, **projects, display_name="RUN strasse")) == [nightly]
    assert ids(search(rest, **projects, display_name="run nothing")) == []
    assert ids(search(rest, **projects, display_name="nightly", session_id=weekly)) == [weekly, nightly]
    assert ids(search(rest, **projects, user_metadata={"a": "1", "b": "2"})) == [nightly]
    assert ids(search(rest, **projects, user_metadata={"b": "1"})) == []
    assert ids(search(rest, project_ids=["s2"], owner=AccessibleSearchOwner())) == [weekly]
    owner = search(rest, session_id=weekly)[0].owner
    assert ids(search(rest, **projects, owner=UserSearchOwner(owner_urns=["tml:user:x", owner]))) == [weekly, nightly]
    assert search(rest, **projects, owner=UserSearchOwner(owner_urns=["tml:user:x"])) == []
    assert search(bob_rest, session_id=weekly, owner=AccessibleSearchOwner()) == []
    assert search(bob_rest, display_name="nightly strasse") == []


@pytest.mark.sdk("RestClient.search_sessions", "ServiceClient.close")
def test_a_search_tells_how_sessions_ended(rest: tinker.RestClient, raw: RawApi):
    active, good, bad = (open_session(raw, project_id="status") for _ in range(3))
    finish(raw, good, "success")
    finish(raw, bad, "errored", "out: of memory")
    found = {each.session_id: each.status for each in search(rest, project_ids=["status"])}
    assert isinstance(found[active], types.session_status.SessionActive)
    assert found[bad] == types.session_status.ClientSessionFinished(
        reason=types.session_status.ClientSessionFinishErrored(), detail="out: of memory"
    )

    def with_status(*statuses: object) -> list[str]:
        return ids(search(rest, project_ids=["status"], statuses=list(statuses)))

    assert with_status(ActiveSessionStatusQuery()) == [active]
    assert with_status(ClientFinishedSessionStatusQuery()) == [bad, good]
    assert with_status(ClientFinishedSessionStatusQuery(reasons=["success"])) == [good]
    assert with_status(ActiveSessionStatusQuery(), ClientFinishedSessionStatusQuery(reasons=["errored"])) == [
        bad,
        active,
    ]
    assert with_status(CancelledSessionStatusQuery()) == []


@pytest.mark.sdk("RestClient.search_sessions")
def test_a_search_is_paged_by_its_cursor(rest: tinker.RestClient, raw: RawApi):
    made = [open_session(raw, project_id="paged") for _ in range(5)]
    seen: list[str] = []
    request = SessionSearchRequest(project_ids=["paged"], limit=2)
    while True:
        page = rest.search_sessions(request).result()  # pyright: ignore[reportDeprecated]
        seen += ids(page.sessions)
        if page.next_cursor is None:
            break
        request = request.model_copy(update={"cursor": page.next_cursor})
    assert seen == made[::-1]
    naive = {"last_created_at": "2026-01-01T00:00:00", "last_session_id": "x"}
    assert raw.http.post("sessions/search", json={"cursor": naive}).status_code == 400
    ancient = {"last_created_at": datetime(1990, 1, 1, tzinfo=UTC).isoformat(), "last_session_id": "unknown"}
    assert raw.http.post("sessions/search", json={"cursor": ancient}).json()["sessions"] == []


@pytest.mark.sdk("RestClient.search_sessions", "TrainingClient.save_state")
def test_a_summary_counts_what_the_session_keeps(alice: tinker.ServiceClient, rest: tinker.RestClient):
    run = new_run(alice)
    session_id = run.model_id.partition(":")[0]
    before = search(rest, session_id=session_id)[0]
    path = run.save_state("counted").result().path
    info = next(c for c in rest.list_checkpoints(run.model_id).result().checkpoints if c.tinker_path == path)
    after = search(rest, session_id=session_id)[0]
    assert after.checkpoints_count == before.checkpoints_count + 1
    assert after.checkpoint_storage_bytes == (before.checkpoint_storage_bytes or 0) + (info.size_bytes or 0)


@pytest.mark.sdk("tinker version", "tinker model list", "tinker run list", "tinker run info")
def test_commands_show_the_models_and_nothing_of_others(
    server: LiveServer, tmp_path: Path, alice: tinker.ServiceClient
):
    run_id = new_run(alice).model_id
    cli = TinkerCli(server.url, server.other_key, tmp_path)
    assert tinker.__version__ in cli.table("version")
    assert "tiny" in cli.table("model", "list")
    assert "tiny" in cli.table("model", "list", "tin")
    assert run_id not in cli.table("run", "list")
    refused = cli.run("run", "info", run_id)
    assert refused.returncode != 0
    assert "not exist" in refused.stdout + refused.stderr or "not found" in (refused.stdout + refused.stderr).lower()
