import pyrage
import pytest

from openrl.errors import InvalidRequest
from openrl.protocol.age_files import encrypt_files, parse_recipient

SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@rust"


def test_each_recipient_alone_can_open_every_file():
    readers = [pyrage.x25519.Identity.generate() for _ in range(3)]
    files = encrypt_files({"a": b"one", "b/c": b"two"}, [str(reader.to_public()) for reader in readers])
    assert sorted(files) == ["a.age", "b/c.age"]
    for reader in readers:
        assert [pyrage.decrypt(files[name], [reader]) for name in sorted(files)] == [b"one", b"two"]
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(files["a.age"], [pyrage.x25519.Identity.generate()])


def test_ssh_public_keys_are_recipients_too():
    assert parse_recipient(SSH)


@pytest.mark.parametrize("text", ["", "alice", "age1xyz", "ssh-rsa AAAA", "age1" + "q" * 300])
def test_what_is_no_public_key_is_refused_by_name(text: str):
    with pytest.raises(InvalidRequest) as refused:
        parse_recipient(text)
    assert repr(text)[:60] in str(refused.value)


@pytest.mark.parametrize(
    "text", ["AGE-SECRET-KEY-1QQ", "age-secret-key-1qq", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl"]
)
def test_a_private_key_is_refused_and_repeated_nowhere(text: str):
    with pytest.raises(InvalidRequest, match="holds a private key") as refused:
        parse_recipient(text)
    assert refused.value.value is None
    assert "1qq" not in str(refused.value).lower()
    assert "b3Bl" not in str(refused.value)
