"""Fine-tuning: one training loop for every modality and every arm."""
