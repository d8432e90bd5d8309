"""Benchmarks: each prints one JSON line last, with the limit and a twin measured in the same run."""
