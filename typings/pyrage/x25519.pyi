"""Keys of the kind x25519."""

class Recipient:
    @staticmethod
    def from_str(v: str) -> Recipient: ...

class Identity:
    @staticmethod
    def generate() -> Identity: ...
    def to_public(self) -> Recipient: ...
