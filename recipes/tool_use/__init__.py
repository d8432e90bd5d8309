"""Multi-turn tool use: a calculator."""
