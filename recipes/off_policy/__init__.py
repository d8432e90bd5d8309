"""Asynchronous, off-policy reinforcement learning."""
