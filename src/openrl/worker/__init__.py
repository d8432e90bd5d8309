"""The process around the engines."""
