"""Encrypts files to age recipients (age-encryption.org), so that only they can read what is exported."""

from collections.abc import Mapping, Sequence

import pyrage

from openrl.errors import MAX_SHOWN_CHARACTERS, InvalidRequest

SUFFIX = ".age"
_SECRET_MARKS = ("AGE-SECRET-KEY-", "PRIVATE KEY")
_BOUND = "an age1… key or an SSH public key"
Recipient = pyrage.x25519.Recipient | pyrage.ssh.Recipient


def parse_recipient(text: str) -> Recipient:
    """An age1… key or an SSH public key; raises InvalidRequest naming it, unless it is secret."""
    parse = pyrage.ssh.Recipient.from_str if text.startswith("ssh-") else pyrage.x25519.Recipient.from_str
    try:
        return parse(text)
    except pyrage.RecipientError as error:
        if any(mark in text.upper() for mark in _SECRET_MARKS):
            message = f"age_encryption_recipients holds a private key; send {_BOUND}, and replace that key by another"
            raise InvalidRequest(message, "malformed", bound=_BOUND) from None
        shown = repr(text[:MAX_SHOWN_CHARACTERS])
        message = f"age_encryption_recipients: {shown} is neither an age1… key nor an SSH public key: {error}"
        raise InvalidRequest(message, "malformed", value=text, bound=_BOUND) from None


def encrypt_files(files: Mapping[str, bytes], recipients: Sequence[str]) -> dict[str, bytes]:
    """Each file as `<name>.age`, for any of the recipients to open. Raises InvalidRequest."""
    keys = [parse_recipient(text) for text in recipients]
    return {name + SUFFIX: pyrage.encrypt(content, keys) for name, content in files.items()}
