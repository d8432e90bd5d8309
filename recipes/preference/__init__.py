"""Preference learning: DPO."""
