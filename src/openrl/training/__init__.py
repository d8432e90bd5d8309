"""Packs datums of many runs into one pass: losses, gradients, optimizer."""
