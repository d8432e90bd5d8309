"""Automated parallel experiments over the public SDK."""

from openrl.research.attempt import Attempt

__all__ = ["Attempt"]
