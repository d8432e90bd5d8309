"""OpenRL: post-training of language models behind the Tinker API."""

__version__ = "0.1.0"
