"""Which names stand for which addresses, and texts in which names and paths are replaced by them."""

import re
from collections.abc import Mapping


def dns_names(name: str, namespace: str) -> tuple[str, ...]:
    """All ways to write a Service's, or a pod's, name."""
    return (name, f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local")


def with_addresses(text: str, addresses: Mapping[str, str]) -> str:
    """The text with whole names replaced; a name that is part of a longer one stays.

    A name without dots is replaced only where it must be a host: alone, after // or @, or before a port.
    """
    if text in addresses:
        return addresses[text]
    plain = {name: address for name, address in addresses.items() if "." not in name}
    dotted = {name: address for name, address in addresses.items() if "." in name}
    text = _replaced(text, dotted, r"(?<![\w.-])(?:{})(?![\w-]|\.\w)")
    text = _replaced(text, plain, r"(?:(?<=//)|(?<=@))(?:{})(?![\w.-])")
    return _replaced(text, plain, r"(?<![\w./-])(?:{})(?=:\d)")


def with_paths(text: str, paths: Mapping[str, str]) -> str:
    """The text with whole leading directories replaced; also after `file://`, not after other paths' ends."""
    return _replaced(text, paths, r"(?:(?<=file://)|(?<![\w./-]))(?:{})(?![\w.-])")


def _replaced(text: str, by: Mapping[str, str], pattern: str) -> str:
    if not by:
        return text
    longest_first = sorted(by, key=len, reverse=True)
    return re.sub(pattern.format("|".join(map(re.escape, longest_first))), lambda found: by[found[0]], text)


def hosts_file(addresses: Mapping[str, tuple[str, ...]]) -> str:
    """What /etc/hosts says: loopback, and every name's addresses."""
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    lines += [f"{address} {name}" for name, all_of in sorted(addresses.items()) for address in all_of]
    return "\n".join((*lines, ""))
