import pytest

from openrl.errors import NotFound
from openrl.gateway.download_links import DownloadGrant, open_grant, sign_grant

GRANT = DownloadGrant("alice", "r:train:0", "weights", "w", expires_at=100.0)


def test_a_grant_opens_with_its_key_until_it_expires():
    token = sign_grant(GRANT, b"key")
    assert open_grant(token, b"key", now=99.0) == GRANT
    with pytest.raises(NotFound, match="expired"):
        open_grant(token, b"key", now=101.0)


@pytest.mark.parametrize("token", ["", ".", "x", "x.y", "é.\ud800", sign_grant(GRANT, b"other")])
def test_tokens_of_others_are_not_found(token: str):
    with pytest.raises(NotFound, match="not valid"):
        open_grant(token, b"key", now=0.0)
