"""The HTTP side: authenticates, refuses what is wrong, queues the rest, hands results through."""
