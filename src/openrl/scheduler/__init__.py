"""Decides who runs what where."""
