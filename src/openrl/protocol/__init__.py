"""The words of the Tinker API: wire types, protobuf codec, paths. No torch, no I/O."""
