"""The openrl command."""
