"""Automated parallel experiments over the public SDK."""
