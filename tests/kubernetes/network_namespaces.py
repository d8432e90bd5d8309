"""Whether this machine can make network namespaces with bridges and firewalls: tried, not guessed."""

import os
import shutil
import subprocess
from functools import cache

import pytest

_LINKS = "ip link add dev bridge0 type bridge && ip link add dev veth0 type veth peer name veth1"
_RULES = "table inet t { chain c { type filter hook input priority 0; policy drop; ct state established accept; }; }"


@cache
def obstacle() -> str:
    """Why there can be none here; empty where there can be. A missing program is none: it can be installed."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    steps = ["mount -t tmpfs none /tmp"]
    if shutil.which("ip"):
        steps.append(_LINKS)
    if shutil.which("nft"):
        steps.append(f"echo '{_RULES}' | nft -f -")
    tried = ["unshare", "--net", "--mount", "sh", "-ec", " && ".join(steps)]
    done = subprocess.run(tried, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no network namespaces here: {done.stderr.strip()}"


@pytest.fixture(scope="session")
def network_namespaces() -> None:
    """They can be made; skips the test where the machine cannot."""
    if reason := obstacle():
        pytest.skip(reason)
