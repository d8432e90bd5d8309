"""The client of docs/api.md works as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.loops import TEXT
from tests.live_server import MODEL_NAME, LiveServer

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's program defines."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(program, str(PAGE), "exec"), names)
    return names


def test_the_pages_client_trains_and_samples(page: dict[str, Any], server: LiveServer):
    losses, answer = page["learn"](server.url, server.key, MODEL_NAME, TEXT, steps=80)
    assert losses[-1] < losses[0] / 2
    assert answer == TEXT[4:8]


def test_the_pages_client_shows_what_is_wrong(page: dict[str, Any], server: LiveServer):
    client = page["Client"](server.url, server.other_key)
    with pytest.raises(ValueError, match=r"LoRA rank is 0; it must be between 1 and"):
        client.create_run(MODEL_NAME, rank=0)
    stranger = page["Client"](server.url, server.key)
    client.create_run(MODEL_NAME)
    stranger.run_id = client.run_id
    with pytest.raises(ValueError, match="does not exist"):
        stranger.optim_step(1e-3)
