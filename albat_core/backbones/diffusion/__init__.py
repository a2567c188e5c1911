"""Text-to-image pipelines (diffusers) with adapters (peft)."""
