"""Headers that every response carries, whoever made it: a handler, the router or the HTTP server itself."""

from collections.abc import Sequence

SECURE_HEADERS: Sequence[tuple[bytes, bytes]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # Pages add a policy of their own; browsers keep to both.
    (b"content-security-policy", b"frame-ancestors 'none'; base-uri 'none'"),
    (b"x-frame-options", b"DENY"),
)
NO_STORE = (b"cache-control", b"no-store")
"""Of everything that the API answers: it belongs to one tenant."""
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Of pages that hold text and their own style."""
