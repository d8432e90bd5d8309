"""What survives a restart: rows, payloads, checkpoints."""
