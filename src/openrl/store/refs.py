"""Refs of payloads: "<pack>:<offset>:<length>"."""

import re
from collections.abc import Sequence

from openrl.errors import NotFound

_REF = re.compile(r"([0-9a-f]{32}):([0-9]{1,18}):([0-9]{1,18})")


def make_refs(pack: str, start: int, payloads: Sequence[bytes]) -> list[str]:
    """Refs of payloads that lie one after the other in a pack."""
    refs: list[str] = []
    for payload in payloads:
        refs.append(f"{pack}:{start}:{len(payload)}")
        start += len(payload)
    return refs


def parse_ref(ref: str) -> tuple[str, int, int]:
    """Pack, offset and length; raises NotFound for what is no ref."""
    match = _REF.fullmatch(ref)
    if match is None:
        raise NotFound.of("payload", ref)
    return match[1], int(match[2]), int(match[3])
