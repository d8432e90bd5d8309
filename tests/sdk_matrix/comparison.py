"""Compares what two SDK versions saw, step by step."""

from typing import Any

Steps = dict[str, Any]

_PUSH = "unexpected extra argument (checkpoint_complete)"
OWN_FAULTS = {(version, "cli_push_hf"): _PUSH for version in ("0.18.0", "0.18.2", "0.20.0")}
"""Steps that the SDK itself gets wrong, and its words. In these versions `list(...)` in the file of the command means
the command of this name; it fails after it has found the adapter and `checkpoint_complete` in the archive."""


def faults(steps: Steps) -> dict[str, str]:
    """Steps that failed, with the end of their trace."""
    return {name: step["error"] for name, step in steps.items() if isinstance(step, dict) and "error" in step}


def unequal(steps: Steps, reference: Steps) -> Steps:
    """Steps that both have done, with other numbers."""
    both = steps.keys() & reference.keys() - faults(steps).keys()
    return {name: (steps[name], reference[name]) for name in sorted(both) if steps[name] != reference[name]}


def is_own_fault(version: str, step: str, error: str) -> bool:
    """Whether the step fails for a reason that lies in the SDK."""
    return OWN_FAULTS.get((version, step), "no fault is expected here") in error
