"""Encrypts files to age recipients (age-encryption.org), so that only they can read what is exported."""

from collections.abc import Mapping, Sequence

import pyrage

from openrl.errors import InvalidRequest

SUFFIX = ".age"
_SHOWN_CHARACTERS = 80
Recipient = pyrage.x25519.Recipient | pyrage.ssh.Recipient


def parse_recipient(text: str) -> Recipient:
    """An age1… key or an SSH public key; raises InvalidRequest naming the value."""
    parse = pyrage.ssh.Recipient.from_str if text.startswith("ssh-") else pyrage.x25519.Recipient.from_str
    try:
        return parse(text)
    except pyrage.RecipientError as error:
        shown = repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")
        raise InvalidRequest(
            f"age_encryption_recipients: {shown} is neither an age1… key nor an SSH public key: {error}"
        ) from None


def encrypt_files(files: Mapping[str, bytes], recipients: Sequence[str]) -> dict[str, bytes]:
    """Each file as `<name>.age`, for any of the recipients to open. Raises InvalidRequest."""
    keys = [parse_recipient(text) for text in recipients]
    return {name + SUFFIX: pyrage.encrypt(content, keys) for name, content in files.items()}
