"""Continuous batching over a paged KV cache, many snapshots in one batch."""
