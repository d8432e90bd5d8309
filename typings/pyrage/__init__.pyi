"""The part of pyrage that we use; the package is compiled and carries no types."""

from collections.abc import Sequence

from pyrage import ssh as ssh
from pyrage import x25519 as x25519

class RecipientError(Exception): ...
class DecryptError(Exception): ...

def encrypt(
    plaintext: bytes, recipients: Sequence[x25519.Recipient | ssh.Recipient], armored: bool = False
) -> bytes: ...
def decrypt(ciphertext: bytes, identities: Sequence[x25519.Identity | ssh.Identity]) -> bytes: ...
