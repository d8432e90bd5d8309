"""Hugging Face models with multi-adapter LoRA linears and pluggable attention."""
