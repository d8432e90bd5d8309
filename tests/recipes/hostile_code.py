"""What the sandbox's tests run in it: any Python, the worst that a model may write."""

import ctypes
import os
import resource
import socket
import time
from typing import Any

LOADED = (ctypes, os, resource, socket, time)
"""Before the sandbox closes: what a model's code may import is then there, and only its use can fail."""


def execute(code: str) -> Any:
    """Runs the code; its variable `result`."""
    names: dict[str, Any] = {}
    exec(code, names)
    return names.get("result")
