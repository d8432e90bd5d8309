"""Links to files under a clock of our own."""

import base64
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest

from openrl.config import GatewayConfig
from tests.gateway.gateway_server import KEYS, GatewayServer
from tests.gateway.raw_client import Owned, create_owned, result

LIFETIME_S = 400.0


class Site:
    def __init__(self, root: Path) -> None:
        self.now = 1_800_000_000.0
        self.server = GatewayServer(root, GatewayConfig(download_link_s=LIFETIME_S), lambda: self.now)
        self.server.start()
        self.http = httpx.Client(base_url=f"{self.server.url}/api/v1", headers={"X-API-Key": KEYS["alice"]}, timeout=10)

    def close(self) -> None:
        self.http.close()
        self.server.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def urls_of(site: Site, owned: Owned, name: str) -> dict[str, str]:
    answer = site.http.get(f"training_runs/{owned.run_id}/checkpoints/external_weights/{name}/external_weights_urls")
    assert answer.status_code == 200, answer.text
    return answer.json()["urls"]


def statuses(urls: dict[str, str]) -> set[int]:
    return {httpx.get(url).status_code for url in urls.values()}


def test_links_expire_and_each_call_signs_new_ones(site: Site):
    owned = create_owned(site.http)
    result(site.http, "save_weights_external", {"model_id": owned.run_id, "seq_id": 3, "path": "x"})
    first = urls_of(site, owned, "x")
    assert statuses(first) == {200}
    site.now += LIFETIME_S - 1
    second = urls_of(site, owned, "x")
    assert (statuses(first), statuses(second)) == ({200}, {200})
    assert not set(first.values()) & set(second.values())
    site.now += 2
    assert (statuses(first), statuses(second)) == ({404}, {200})


def test_links_end_with_the_lifetime_of_the_checkpoint(site: Site):
    owned = create_owned(site.http)
    result(site.http, "save_weights_external", {"model_id": owned.run_id, "seq_id": 3, "path": "x"})
    address = f"training_runs/{owned.run_id}/checkpoints/external_weights/x"
    assert site.http.put(f"{address}/ttl", json={"ttl_seconds": 3600}).status_code == 204
    site.now += 3599
    urls = urls_of(site, owned, "x")
    assert statuses(urls) == {200}
    site.now += 1
    assert statuses(urls) == {404}
    assert site.http.get(f"{address}/external_weights_urls").status_code == 404


def test_a_link_to_an_archive_gives_no_file_and_one_to_a_file_no_archive(site: Site):
    owned = create_owned(site.http)
    result(site.http, "save_weights_external", {"model_id": owned.run_id, "seq_id": 3, "path": "x"})
    archive = site.http.get(f"training_runs/{owned.run_id}/checkpoints/weights/w/archive").headers["Location"]
    file = urls_of(site, owned, "x")["adapter_config.json"]
    assert httpx.get(archive).status_code == 200
    assert httpx.get(archive.replace("/archives/", "/external_weights/")).status_code == 404
    assert httpx.get(file.replace("/external_weights/", "/archives/")).status_code == 404


def test_only_external_weights_have_links_to_single_files(site: Site):
    owned = create_owned(site.http)
    answer = site.http.get(f"training_runs/{owned.run_id}/checkpoints/weights/w/external_weights_urls")
    assert answer.status_code == 400
    assert "kind is 'weights'; it must be external_weights" in answer.json()["detail"]


def test_a_link_to_files_that_were_deleted_opens_no_others_of_the_same_name(site: Site):
    owned = create_owned(site.http)
    links: list[str] = []
    for kind, save, seq_id in (("external_weights", "save_weights_external", 3), ("weights", "save_weights", 5)):
        result(site.http, save, {"model_id": owned.run_id, "seq_id": seq_id, "path": "x"})
        address = f"training_runs/{owned.run_id}/checkpoints/{kind}/x"
        links += [site.http.get(f"{address}/archive").headers["Location"]]
        if kind == "external_weights":
            links += urls_of(site, owned, "x").values()
        assert {httpx.get(link).status_code for link in links[-1:]} == {200}
        assert site.http.delete(address).status_code == 204
        result(site.http, save, {"model_id": owned.run_id, "seq_id": seq_id + 1, "path": "x"})
        assert site.http.get(f"{address}/archive").status_code == 302
    for link in links:
        answer = httpx.get(link)
        assert (answer.status_code, answer.json()["code"]) == (404, "expired")


def test_a_link_opens_one_file_by_one_method_whatever_is_added_to_it(site: Site):
    owned = create_owned(site.http)
    result(site.http, "save_weights_external", {"model_id": owned.run_id, "seq_id": 3, "path": "x"})
    link = urls_of(site, owned, "x")["adapter_config.json"]
    content = httpx.get(link).content
    for query in ("file=adapter_model.safetensors", "tenant=bob", "expires=99999999999", "a=1&a=2", "%00"):
        assert httpx.get(f"{link}?{query}").content == content
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert httpx.request(method, link).status_code == 405
    start, _, token = unquote(link).rpartition("/")
    text, _, signature = token.partition(".")
    claims = base64.urlsafe_b64decode(text)
    other = base64.urlsafe_b64encode(claims.replace(b"adapter_config.json", b"adapter_model.safetensors")).decode()
    forged = [f"{other}.{signature}", f"{text}.{signature.upper()}", f"{text}.{signature[:-1]}", f"{text}A.{signature}"]
    forged += [text, f".{signature}", f"{text}.{'0' * 64}", f"{text}%00.{signature}", f"../{token}", f"{token}/.."]
    for each in forged:
        answer = httpx.get(f"{start}/{each}")
        assert answer.status_code == 404, each
        assert signature not in answer.text
