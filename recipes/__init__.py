"""Training loops over the SDK, one directory each."""
