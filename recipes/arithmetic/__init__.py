"""Reinforcement learning with a verifiable reward: arithmetic."""
