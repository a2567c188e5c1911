"""Causal language models (transformers) with adapters (peft)."""
