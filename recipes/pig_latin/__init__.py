"""Supervised fine-tuning: pig latin, letter by letter."""
