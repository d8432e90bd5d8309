"""What every refusal must have."""

from typing import Any

import httpx

from openrl.errors import ErrorCode
from openrl.gateway.error_help import HELP
from tests.gateway.gateway_server import KEYS

BOUNDED: frozenset[ErrorCode] = frozenset(
    (
        "malformed",
        "unknown_name",
        "not_supported",
        "out_of_range",
        "not_finite",
        "outside_vocabulary",
        "context_exceeded",
        "wrong_dtype",
        "wrong_shape",
        "wrong_kind",
        "too_large",
        "session_ended",
    )
)
"""What says which values are taken, besides the one that was sent."""


class Refusals:
    """Looks at answers; each page that one links to is fetched once."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._pages: dict[str, str] = {}
        self.codes: set[str] = set()

    def check(self, answer: httpx.Response, *about: object) -> None:
        """Success, or a refusal in the one shape."""
        seen = (*about, answer.status_code, answer.text[:500])
        assert answer.status_code < 500, seen
        assert answer.status_code != 409, seen
        if answer.status_code < 400:
            return
        content: dict[str, Any] = answer.json()
        extra = {"type", "request_id", "queue_state"} if answer.status_code == 408 else set[str]()
        assert {"detail", "code", "docs"} <= content.keys() <= {"detail", "code", "docs", "value", "bound"} | extra, (
            seen
        )
        assert content["code"] in HELP, seen
        assert 0 < len(content["detail"]) < 4000, seen
        assert answer.headers["content-type"] == "application/json", seen
        page, _, anchor = content["docs"].partition("#")
        assert anchor == content["code"]
        assert f'id="{anchor}"' in self._page(page)
        if content["code"] in BOUNDED:
            assert content.get("bound"), seen
            assert "value" in content, seen
        if content["code"] == "not_found" and "download link" not in content["detail"]:  # a link is a secret
            assert content["value"], seen
        assert not any(key in answer.text for key in KEYS.values()), seen
        self.codes.add(content["code"])

    def _page(self, url: str) -> str:
        if url not in self._pages:
            answer = self._http.get(url)
            assert answer.status_code == 200
            self._pages[url] = answer.text
        return self._pages[url]
