"""The API of studies' pages: whole and partial answers, bounds, and what is refused."""

import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from openrl.errors import InvalidRequest
from openrl.research.journal import Journal, read_state
from openrl.research.pages import create_study_app
from openrl.research.pages.attempt_files import LOG_BYTES
from openrl.research.pages.document import html_report
from openrl.research.pages.host_guard import HostGuard
from openrl.research.study import load_study
from tests.research.sample_study import write_attempt, write_sample_study


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    write_sample_study(tmp_path / "one", 6, 5, num_running=0)
    (tmp_path / "secret.txt").write_text("secret")
    return tmp_path


@pytest.fixture
async def client(shelf: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Mounted where a dashboard might have it, behind the guard."""
    app = HostGuard(Starlette(routes=[Mount("/deep/studies", create_study_app(shelf, 3.6))]), ["studies.example"])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1/deep/studies/") as made:
        yield made


async def get(client: httpx.AsyncClient, path: str) -> Any:
    reply = await client.get(path)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_a_study_has_its_attempts_and_what_they_cost(client: httpx.AsyncClient, shelf: Path):
    [listed] = (await get(client, "api/v1/studies"))["studies"]
    assert (listed["id"], listed["state"], listed["error"]) == ("one", "ended", None)
    found = await get(client, "api/v1/studies/one")
    state = read_state(shelf / "one")
    assert [each["number"] for each in found["attempts"]] == sorted(state.attempts)
    assert found["study"]["used"]["cost"] == pytest.approx(state.usage.gpu_seconds * 0.001, rel=1e-4)
    assert len(found["attempts"][0]["curves"]["accuracy"]) == 5
    assert found["attempts"][0]["value"] == pytest.approx(state.attempts[1].value("accuracy"), rel=1e-5)
    write_sample_study(shelf / "many", 16, 3, num_running=0)
    findings = await get(client, "api/v1/studies/many/findings")
    assert sum(each["share"] for each in findings["importances"]) == pytest.approx(1.0, abs=1e-4)


async def test_who_has_seen_a_part_gets_what_changed_since(client: httpx.AsyncClient, shelf: Path):
    first = await client.get("api/v1/studies/one")
    unchanged = await client.get("api/v1/studies/one", headers={"If-None-Match": first.headers["ETag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    cursor = first.json()["cursor"]
    with Journal(shelf / "one") as journal:
        write_attempt(shelf / "one", journal, 7, load_study(shelf / "one").defaults, random.Random(1), 5, is_over=False)
        news = await get(client, f"api/v1/studies/one?after={cursor}")
        assert [each["number"] for each in news["attempts"]] == [7]
        assert (news["is_whole"], news["study"]["state"], news["attempts"][0]["state"]) == (False, "running", "running")
    changed = await get(client, f"api/v1/studies/one?after={news['cursor']}")
    assert [(each["number"], each["state"]) for each in changed["attempts"]] == [(7, "interrupted")]
    merged = {each["number"]: each for part in (first.json(), news, changed) for each in part["attempts"]}
    assert list(merged.values()) == (await get(client, "api/v1/studies/one"))["attempts"]


async def test_another_study_in_its_place_is_sent_whole(client: httpx.AsyncClient, shelf: Path):
    cursor = (await get(client, "api/v1/studies/one"))["cursor"]
    (shelf / "one" / "journal.jsonl").unlink()
    assert (await get(client, f"api/v1/studies/one?after={cursor}"))["attempts"] == []
    write_sample_study(shelf / "one", 2, 5, num_running=0, seed=8)
    found = await get(client, f"api/v1/studies/one?after={cursor}")
    assert (found["is_whole"], len(found["attempts"])) == (True, 2)


@pytest.mark.parametrize(
    ("path", "status", "shown"),
    [
        ("api/v1/studies/two", 404, "'two'"),
        ("api/v1/studies/..%2Fone", 404, ""),
        ("api/v1/studies/%2e%2e", 404, ""),
        ("api/v1/studies/one/attempts/99", 404, "'99'"),
        ("api/v1/studies/one/attempts/0", 400, "from 1 to 1000000000"),
        ("api/v1/studies/one/attempts/-1", 400, "'-1'"),
        ("api/v1/studies/one/attempts/" + "9" * 5000, 400, "from 1 to"),
        ("api/v1/studies/one/attempts/²", 400, "whole number"),
        ("api/v1/studies/one/attempts/..%2F..%2Fsecret.txt", 404, ""),
        ("api/v1/studies/one?after=x", 400, "`cursor` of an earlier reply"),
        ("api/v1/studies/one?after=00000000-" + "9" * 99, 400, "cursor"),
        ("static/..%2Fapp.py", 404, ""),
        ("static/%00", 404, ""),
        ("static/app.py", 404, "app.py"),
        ("nothing", 404, "nothing"),
    ],
)
async def test_what_is_not_there_is_refused(client: httpx.AsyncClient, path: str, status: int, shown: str):
    reply = await client.get(path)
    assert reply.status_code == status
    assert shown in reply.json()["detail"]
    assert (await client.post("api/v1/studies")).status_code == 405


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:80", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:80", 200), ("10.1.2.3", 200),
        ("studies.example:80", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("", 403), ("[evil]", 403),
    ],
)  # fmt: skip
async def test_a_name_that_is_not_ours_is_refused(client: httpx.AsyncClient, host: str, status: int):
    assert (await client.get("", headers={"Host": host})).status_code == status


async def test_pages_allow_no_script_but_ours(client: httpx.AsyncClient):
    page = await client.get("")
    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    script = await client.get("static/main.js")
    assert script.headers["Content-Type"].startswith("text/javascript")
    again = await client.get("static/main.js", headers={"If-None-Match": script.headers["ETag"]})
    assert again.status_code == 304


async def test_logs_are_read_within_bounds_and_only_below_the_study(client: httpx.AsyncClient, shelf: Path):
    attempts = shelf / "one" / "attempts"
    (attempts / "0001" / "log.txt").write_text("".join(f"line {i}\n" for i in range(100_000)) + "\xff\x00end")
    (attempts / "0002" / "log.txt").unlink()
    (attempts / "0002" / "log.txt").symlink_to(shelf / "secret.txt")
    (attempts / "0003" / "log.txt").unlink()
    os.mkfifo(attempts / "0003" / "log.txt")
    (shelf / "elsewhere").mkdir()
    (shelf / "elsewhere" / "log.txt").write_text("secret")
    (attempts / "0004").rename(attempts / "away")
    (attempts / "0004").symlink_to(shelf / "elsewhere")
    log = (await get(client, "api/v1/studies/one/attempts/1"))["log"]
    assert log["is_cut"]
    assert LOG_BYTES - 20 < len(log["text"].encode()) <= LOG_BYTES
    assert log["text"].startswith("line ")
    assert log["text"].endswith("end")
    for number in (2, 3, 4):
        assert (await get(client, f"api/v1/studies/one/attempts/{number}"))["log"] is None


async def test_a_broken_study_is_named_and_the_others_are_shown(client: httpx.AsyncClient, shelf: Path):
    write_sample_study(shelf / "torn", 2, 3, num_running=0)
    with (shelf / "torn" / "journal.jsonl").open("a") as file:
        file.write("[1]\n")
    (shelf / "worse").mkdir()
    (shelf / "worse" / "study.toml").write_text("= 3")
    listed = {each["id"]: each["error"] for each in (await get(client, "api/v1/studies"))["studies"]}
    assert listed["one"] is None
    assert "torn/journal.jsonl is not an event" in listed["torn"]
    assert "is not TOML" in listed["worse"]
    assert (await client.get("api/v1/studies/torn")).status_code == 400


async def test_values_that_json_has_no_word_for_are_missing(client: httpx.AsyncClient, shelf: Path):
    with Journal(shelf / "one") as journal:
        journal.append("reported", 1, step=6, values={"accuracy": float("nan"), "other": float("inf")})
    found = (await get(client, "api/v1/studies/one"))["attempts"][0]
    assert (found["value"], found["curves"]["accuracy"][-1], found["curves"]["other"]) == (None, None, [None] * 6)


def test_the_report_holds_the_same_data_and_names_its_own_script_alone(shelf: Path):
    study, state = load_study(shelf / "one"), read_state(shelf / "one")
    text = html_report(shelf / "one", study, state)
    assert text == html_report(shelf / "one", study, state)
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert [each["number"] for each in data["attempts"]] == sorted(state.attempts)
    assert "default-src 'none'; script-src 'sha256-" in text


def test_a_directory_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(InvalidRequest, match="is no directory"):
        create_study_app(tmp_path / "missing")
